"""Calibration errors by hand, their intervals on data whose truth is known."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from devices.board.confidence import ConfidenceMap
from pipeline.calibration.measures import (
    MEASURES,
    Predictions,
    calibration_change,
    measures,
    resample_weights,
)
from pipeline.calibration.probabilities import log_probabilities
from pipeline.metrics import brier_score, expected_calibration_error, negative_log_likelihood

ERRORS = ("ece", "mce", "adaptive_ece", "classwise_ece")


def drawn(count: int, classes: int, *, sharpened: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth that labels are drawn from, all multiplied by a factor afterwards."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (count, classes))
    probabilities = np.exp(log_probabilities(honest, None))
    labels = (probabilities.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return (honest * sharpened).astype(np.float32), np.minimum(labels, classes - 1)


def with_confidence(confidence: float) -> list[float]:
    return [math.log(confidence / (1 - confidence)), 0.0]


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """Of 15 bins, 0.61 lies in the one from 0.6 to 0.667, 0.69 in the next, 0.9 in the one from 0.867 to 0.933."""
    logits = np.array([with_confidence(0.9)] * 4 + [with_confidence(0.61)] * 4 + [with_confidence(0.69)] * 2)
    return logits, np.array([0, 0, 0, 1, 0, 0, 1, 1, 0, 0])


def test_errors_by_hand() -> None:
    found = measures(*by_hand())
    gaps = [abs(0.75 - 0.9), abs(0.5 - 0.61), abs(1 - 0.69)]
    assert found["ece"] == pytest.approx(0.4 * gaps[0] + 0.4 * gaps[1] + 0.2 * gaps[2])
    assert found["mce"] == pytest.approx(gaps[2])
    # Equal confidences share a bin, so the bins are the same three groups here.
    assert found["adaptive_ece"] == pytest.approx(found["ece"])
    # The second class has probabilities 0.1, 0.39 and 0.31, in three bins too, with the same gaps.
    assert found["classwise_ece"] == pytest.approx(found["ece"])
    assert found["accuracy"] == 0.7


def test_bins_of_equal_mass_by_hand() -> None:
    confidences = [0.55, 0.65, 0.75, 0.85]
    labels = np.array([1, 0, 0, 1])
    logits = np.array([with_confidence(confidence) for confidence in confidences])
    found = Predictions(logits, labels, bins=2).whole()
    assert found["adaptive_ece"] == pytest.approx((abs(1 - 1.2) + abs(1 - 1.6)) / 4)
    assert found["ece"] == pytest.approx(abs(2 - 2.8) / 4)


def test_the_class_wise_error_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.2, 0.2, 0.6]])
    labels = np.array([0, 1, 2])
    # Two bins: [0, 0.5) and [0.5, 1].
    first = abs((1 - 0.7) + (0 - 0.6)) + abs(0 - 0.2)
    second = abs(0 - 0.2 + 1 - 0.1 + 0 - 0.2)
    third = abs(0 - 0.1 + 0 - 0.3) + abs(1 - 0.6)
    found = Predictions(np.log(probabilities), labels, bins=2).whole()
    assert found["classwise_ece"] == pytest.approx((first + second + third) / 3 / 3, rel=1e-6)


logit_arrays = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 20), st.integers(2, 6)), elements=st.floats(-50, 50, width=32)
)


@given(logits=logit_arrays, data=st.data())
def test_they_are_what_the_plain_functions_say_and_keep_to_their_range(logits: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, logits.shape[1] - 1)))
    found = Predictions(logits, labels).whole()
    assert found["ece"] == pytest.approx(expected_calibration_error(logits, labels), abs=1e-9)
    assert found["nll"] == pytest.approx(negative_log_likelihood(logits, labels))
    assert found["brier"] == pytest.approx(brier_score(logits, labels))
    assert all(-1e-9 <= found[name] <= 1 + 1e-6 for name in ERRORS)
    assert found["mce"] >= found["ece"] - 1e-9
    order = data.draw(st.permutations(range(len(labels))))
    assert Predictions(logits[order], labels[order]).whole() == pytest.approx(found, abs=1e-6)


@given(logits=logit_arrays, data=st.data())
def test_weighing_images_is_repeating_them(logits: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, logits.shape[1] - 1)))
    rows = np.array(data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=len(labels), max_size=len(labels))))
    weights = np.bincount(rows, minlength=len(labels)).astype(float)[None]
    weighed = Predictions(logits, labels).measured(weights)
    repeated = Predictions(logits[rows], labels[rows]).whole()
    for name in MEASURES:
        if name != "adaptive_ece":  # whose bins stay those of the whole sample
            assert weighed[name][0] == pytest.approx(repeated[name], abs=1e-6)


def test_resamples_are_draws_with_replacement_and_equal_for_equal_seeds() -> None:
    weights = np.concatenate(list(resample_weights(50, resamples=300, seed=1)))
    assert weights.shape == (300, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05)
    np.testing.assert_array_equal(weights, np.concatenate(list(resample_weights(50, resamples=300, seed=1))))
    assert (weights != np.concatenate(list(resample_weights(50, resamples=300, seed=2)))).any()


def test_intervals_hold_the_truth_of_calibrated_data() -> None:
    """Percentiles of resamples never do: chance adds to the error twice there."""
    kept = dict.fromkeys(MEASURES, 0)
    truth = Predictions(*drawn(200_000, 4, seed=99)).whole() | dict.fromkeys(ERRORS, 0.0)
    for seed in range(40):
        found = measures(*drawn(500, 4, seed=seed))
        for name in MEASURES:
            low, high = found[f"{name}_interval"]
            assert 0 <= low <= found[name] <= high
            kept[name] += low <= truth[name] <= high
    assert min(kept.values()) >= 34, kept


def test_intervals_hold_the_truth_of_overconfident_data() -> None:
    truth = Predictions(*drawn(200_000, 4, sharpened=2.0, seed=99)).whole()
    inside = sum(
        low <= truth["ece"] <= high
        for low, high in (measures(*drawn(500, 4, sharpened=2.0, seed=seed))["ece_interval"] for seed in range(40))
    )
    assert inside >= 34
    low, _ = measures(*drawn(500, 4, sharpened=2.0))["ece_interval"]
    assert low > 0.05


def test_intervals_get_narrower_with_more_images() -> None:
    widths = []
    for count in (200, 2000, 20_000):
        low, high = measures(*drawn(count, 4, sharpened=2.0))["nll_interval"]
        widths.append(high - low)
    for wide, narrow in itertools.pairwise(widths):
        assert narrow == pytest.approx(wide / math.sqrt(10), rel=0.4)


def test_the_same_data_give_the_same_intervals() -> None:
    assert measures(*drawn(300, 3)) == measures(*drawn(300, 3))


def test_one_image() -> None:
    found = measures(np.array([[2.0, 0.0]]), np.array([0]))
    assert found["ece"] == pytest.approx(1 - 1 / (1 + math.exp(-2)))
    assert all(math.isfinite(end) for name in MEASURES for end in found[f"{name}_interval"])


def test_a_thousand_classes_take_seconds() -> None:
    logits, labels = drawn(5000, 1000)
    started = time.monotonic()
    found = measures(logits, labels)
    assert time.monotonic() - started < 30
    assert 0 < found["classwise_ece"] < 0.01


def test_a_map_changes_the_confidence_and_keeps_a_distribution() -> None:
    logits, labels = drawn(300, 5, sharpened=3.0)
    mapping = ConfidenceMap((0.2, 1.0), (0.21, 0.6))
    mapped = np.exp(log_probabilities(logits, mapping))
    plain = np.exp(log_probabilities(logits, None))
    rows, top = np.arange(300), logits.argmax(axis=1)
    np.testing.assert_allclose(mapped.sum(axis=1), 1)
    np.testing.assert_allclose(mapped[rows, top], mapping.apply(plain[rows, top]))
    rest, others = mapped.copy(), plain.copy()
    rest[rows, top] = others[rows, top] = 0
    np.testing.assert_allclose(
        rest / rest.sum(axis=1, keepdims=True), others / others.sum(axis=1, keepdims=True), rtol=1e-6
    )
    before, after = measures(logits, labels), measures(logits, labels, mapping)
    assert after["accuracy"] == before["accuracy"]
    assert after["ece"] < before["ece"] / 2
    assert Predictions(logits, labels, mapping).confidence.max() <= 0.6


def test_a_map_survives_certainty() -> None:
    logits = np.array([[2000.0, 0.0, 0.0], [2000.0, -2000.0, 0.0]])
    values = log_probabilities(logits, ConfidenceMap((0.5,), (0.9,)))
    np.testing.assert_allclose(np.exp(values), [[0.9, 0.05, 0.05], [0.9, 0.0, 0.1]], atol=1e-12)
    assert np.isfinite(values).all()


def test_the_change_against_a_reference() -> None:
    reference, labels = drawn(2000, 4)
    worse = calibration_change(reference * 2, reference, labels)
    own, other = (expected_calibration_error(logits, labels) for logits in (reference * 2, reference))
    assert worse["ece_change"] == pytest.approx(own - other)
    assert 0 < worse["ece_change_interval"][0] < worse["ece_change"] < worse["ece_change_interval"][1]
    better = calibration_change(reference, reference * 2, labels)
    assert better["ece_change_interval"][1] < 0
    noise = np.random.default_rng(0).normal(0, 0.05, reference.shape)
    low, high = calibration_change(reference + noise, reference, labels)["ece_change_interval"]
    assert low < 0 < high
    assert calibration_change(reference, reference, labels) == {"ece_change": 0.0, "ece_change_interval": [0.0, 0.0]}


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected a label for each image"):
        Predictions(np.zeros(shape), np.zeros(0, np.int64))

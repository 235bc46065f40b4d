"""Metrics against independent formulas and scikit-learn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax as scipy_log_softmax
from sklearn.metrics import brier_score_loss, log_loss

from pipeline.metrics import (
    accuracy_interval,
    brier_score,
    calibration_summary,
    count_correct,
    expected_calibration_error,
    log_softmax,
    negative_log_likelihood,
    parity,
    worst_parity,
)

logit_arrays = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 20), st.integers(2, 6)), elements=st.floats(-50, 50, width=32)
)


def drawn(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (count, classes)).astype(np.float32), rng.integers(0, classes, count)


def with_confidence(confidence: float) -> list[float]:
    """Two logits whose softmax gives the first class this probability."""
    return [math.log(confidence / (1 - confidence)), 0.0]


def test_log_softmax_is_scipys_and_survives_large_logits() -> None:
    logits = np.array([[1e4, 0, -1e4], [1, 2, 3]], np.float32)
    np.testing.assert_allclose(log_softmax(logits), scipy_log_softmax(logits.astype(np.float64), axis=1), rtol=1e-12)


def test_against_scikit_learn() -> None:
    logits, labels = drawn(200, 5)
    probabilities = np.exp(scipy_log_softmax(logits.astype(np.float64), axis=1))
    assert negative_log_likelihood(logits, labels) == pytest.approx(log_loss(labels, probabilities), rel=1e-9)
    expected = brier_score_loss(labels, probabilities, scale_by_half=False, labels=range(5))
    assert brier_score(logits, labels) == pytest.approx(expected, rel=1e-9)


def test_brier_score_by_hand() -> None:
    assert brier_score(np.array([with_confidence(0.8)]), np.array([0])) == pytest.approx(0.2**2 + 0.2**2)
    assert brier_score(np.array([with_confidence(0.8)]), np.array([1])) == pytest.approx(0.8**2 + 0.8**2)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A Wilson interval computed with R 4.3, `prop.test(correct, count, correct=FALSE)`, or from its definition."""

    correct: int
    count: int
    low: float
    high: float


@pytest.mark.parametrize(
    "case",
    [
        Interval(0, 10, 0.0, 0.27753),
        Interval(10, 10, 0.72247, 1.0),
        Interval(5, 10, 0.23659, 0.76341),
        Interval(81, 263, 0.25529, 0.36621),
        Interval(1, 1, 0.20655, 1.0),
    ],
    ids=lambda case: f"{case.correct} of {case.count}",
)
def test_wilson_interval(case: Interval) -> None:
    low, high = accuracy_interval(case.correct, case.count)
    assert (low, high) == pytest.approx((case.low, case.high), abs=5e-5)


@given(count=st.integers(1, 10_000), data=st.data())
def test_wilson_interval_holds_the_share_and_its_ends_solve_the_test(count: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, count))
    low, high = accuracy_interval(correct, count)
    assert 0 <= low <= correct / count <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            z = abs(correct / count - end) / math.sqrt(end * (1 - end) / count)
            assert z == pytest.approx(1.959964, rel=1e-4)


@pytest.mark.parametrize(("correct", "count"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_interval_refuses(correct: int, count: int) -> None:
    with pytest.raises(ValueError, match="no accuracy"):
        accuracy_interval(correct, count)


def test_calibration_error_by_hand() -> None:
    # Of 15 bins, 0.61 lies in the one from 0.6 to 0.667, 0.69 in the next, 0.9 in the one from 0.867 to 0.933.
    logits = np.array([with_confidence(0.9)] * 4 + [with_confidence(0.61)] * 4 + [with_confidence(0.69)] * 2)
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1, 0, 0])
    expected = 0.4 * abs(0.75 - 0.9) + 0.4 * abs(0.5 - 0.61) + 0.2 * abs(1 - 0.69)
    assert expected_calibration_error(logits, labels) == pytest.approx(expected)


def test_calibration_error_of_certainty() -> None:
    logits = np.array([[100.0, 0.0], [100.0, 0.0]])
    assert expected_calibration_error(logits, np.array([0, 0])) == pytest.approx(0)
    assert expected_calibration_error(logits, np.array([1, 1])) == pytest.approx(1)


@given(logits=logit_arrays, data=st.data())
def test_calibration_error_and_brier_score_keep_to_their_range(logits: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, logits.shape[1] - 1)))
    assert 0 <= expected_calibration_error(logits, labels) <= 1 + 1e-12
    assert 0 <= brier_score(logits, labels) <= 2 + 1e-12
    assert negative_log_likelihood(logits, labels) >= 0


def test_count_correct_takes_the_first_of_equal_logits() -> None:
    assert count_correct(np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([0, 1])) == 2
    assert count_correct(np.array([[1.0, 1.0]]), np.array([1])) == 0


def test_summary_holds_all_four() -> None:
    logits, labels = drawn(50, 3)
    summary = calibration_summary(logits, labels)
    assert summary["accuracy"] == count_correct(logits, labels) / 50
    assert summary["nll"] == negative_log_likelihood(logits, labels)
    assert set(summary) == {"ece", "nll", "brier", "accuracy"}


@given(logits=logit_arrays)
def test_parity_of_equal_arrays(logits: np.ndarray) -> None:
    result = parity(logits, logits.copy())
    assert result["max_logit_difference"] == result["mean_logit_difference"] == 0
    assert result["snr_db"] is None
    assert result["top1_agreement"] == 1


def test_parity_by_hand() -> None:
    reference = np.array([[0.0, 4.0], [-4.0, 2.0]], np.float32)
    logits = np.array([[1.0, 4.0], [-4.0, -4.5]], np.float32)
    result = parity(reference, logits)
    assert result["logit_range"] == 8
    assert result["max_logit_difference"] == pytest.approx(6.5 / 8)
    assert result["mean_logit_difference"] == pytest.approx(7.5 / 4 / 8)
    assert result["snr_db"] == pytest.approx(10 * math.log10((16 + 16 + 4) / (1 + 6.5**2)))
    assert result["top1_agreement"] == 0.5


def test_parity_of_constant_reference_logits() -> None:
    assert parity(np.zeros((2, 2)), np.ones((2, 2)))["max_logit_difference"] == 1


def test_parity_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        parity(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        parity(np.zeros((1, 2)), np.array([[0.0, np.nan]]))


def test_the_worst_of_several_outputs_counts() -> None:
    reference = np.array([[0.0, 1.0], [2.0, 4.0]])
    exact = parity(reference, reference)
    close = parity(reference, reference + 0.04, classes=False)
    worst = worst_parity([exact, close])
    assert worst["max_logit_difference"] == pytest.approx(0.01)
    assert worst["snr_db"] == close["snr_db"]
    assert worst["top1_agreement"] == 1.0
    assert worst_parity([exact])["snr_db"] is None
    assert close["top1_agreement"] is None

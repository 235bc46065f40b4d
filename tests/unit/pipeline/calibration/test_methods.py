"""Temperature, vector scaling and isotonic regression: what they find, and what they survive."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax as scipy_log_softmax

from pipeline.calibration.measures import measures
from pipeline.calibration.methods import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Method,
    cross_validated,
    doubts,
    fit,
    fit_temperature,
    identity,
)
from pipeline.metrics import negative_log_likelihood

METHODS: tuple[Method, ...] = ("temperature", "vector", "isotonic", "none")
logit_arrays = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 20), st.integers(2, 6)), elements=st.floats(-50, 50, width=32)
)


def drawn(count: int, classes: int, *, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth that the labels are drawn from."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (count, classes))
    probabilities = np.exp(scipy_log_softmax(honest, axis=1))
    labels = (probabilities.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return honest, np.minimum(labels, classes - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fit_temperature_recovers_a_known_one(temperature: float) -> None:
    honest, labels = drawn(20_000, 4)
    assert fit_temperature(honest * temperature, labels) == pytest.approx(temperature, rel=0.03)


@settings(max_examples=30, deadline=None)
@given(logits=logit_arrays, data=st.data())
def test_temperature_keeps_the_class_and_never_hurts(logits: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, logits.shape[1] - 1)))
    temperature = fit_temperature(logits, labels)
    assert MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE
    scaled = logits.astype(np.float64) / temperature
    top = scaled.argmax(axis=1)
    assert (np.take_along_axis(logits, top[:, None], 1)[:, 0] == logits.max(axis=1)).all()
    assert negative_log_likelihood(scaled, labels) <= negative_log_likelihood(logits, labels) + 1e-6


def test_without_a_mistake_confidence_goes_no_further_than_the_rule_of_succession() -> None:
    labels = np.arange(48) % 3
    logits = np.eye(3)[labels] * 2.0
    temperature = fit_temperature(logits, labels)
    confidence = 1 / (1 + 2 * math.exp(-2 / temperature))
    assert confidence == pytest.approx(49 / 50)
    assert fit_temperature(logits * 10, labels) == 1.0, "nothing says that it is too sure"


def test_vector_scaling_recovers_scales_and_biases() -> None:
    honest, labels = drawn(40_000, 3)
    scale, bias = np.array([2.0, 1.0, 0.5]), np.array([1.0, 0.0, -1.0])
    found = fit("vector", (honest - bias) / scale, labels)
    np.testing.assert_allclose(found.scale, scale, rtol=0.06)
    np.testing.assert_allclose(found.bias - found.bias.mean(), bias - bias.mean(), atol=0.06)
    assert found.temperature is None


def test_vector_scaling_finds_the_optimum_of_its_objective() -> None:
    """The gradient by differences, at what was found: likelihood and priors balance."""
    honest, labels = drawn(400, 3)
    logits = honest * 2 + np.array([0.5, 0.0, -0.5])
    found, start = fit("vector", logits, labels), fit("temperature", logits, labels)
    rows = np.arange(len(labels))

    def loss(scale: np.ndarray, bias: np.ndarray) -> float:
        likelihood = -scipy_log_softmax(logits * start.scale * scale + bias, axis=1)[rows, labels].sum()
        return float(likelihood + 0.5 * ((scale - 1) ** 2).sum() + 0.5 * (bias**2).sum())

    scale, bias = found.scale / start.scale, found.bias
    for step in np.eye(3) * 1e-2:
        for sign in (-1, 1):
            assert loss(scale + sign * step, bias) > loss(scale, bias)
            assert loss(scale, bias + sign * step) > loss(scale, bias)


def test_vector_scaling_of_a_class_that_validation_lacks_stays_finite() -> None:
    honest, labels = drawn(300, 4)
    kept = labels != 3
    found = fit("vector", honest[kept], labels[kept])
    assert np.isfinite(found.bias).all()
    assert abs(found.bias).max() < 6
    assert ((found.scale > 0) & np.isfinite(found.scale)).all()
    assert any("lacks 1 of 4 classes" in doubt for doubt in doubts("vector", honest[kept], labels[kept]))


@pytest.mark.parametrize("method", METHODS)
def test_folding_gives_the_scaled_logits(method: Method) -> None:
    rng = np.random.default_rng(0)
    features, kernel, bias = rng.normal(size=(200, 8)), rng.normal(size=(8, 5)) * 2, rng.normal(size=5)
    logits = features @ kernel + bias
    labels = (logits + rng.gumbel(0, 3, logits.shape)).argmax(axis=1)
    found = fit(method, logits, labels)
    new_kernel, new_bias = found.folded(kernel, bias)
    assert new_kernel.dtype == new_bias.dtype == np.float32
    np.testing.assert_allclose(features @ new_kernel + new_bias, found.logits(logits), rtol=1e-4, atol=1e-4)
    assert found.changes_logits == (method != "none")
    if method in {"temperature", "isotonic", "none"}:
        np.testing.assert_array_equal(found.logits(logits).argmax(axis=1), logits.argmax(axis=1))


def test_isotonic_regression_is_monotone_clipped_and_mends_what_a_temperature_cannot() -> None:
    honest, labels = drawn(6000, 4)
    rng = np.random.default_rng(3)
    wrong = rng.random(len(labels)) < 0.3  # a third of the labels are chance: confidence can't pass 0.78
    labels = np.where(wrong, rng.integers(0, 4, len(labels)), labels)
    half = len(labels) // 2
    found = fit("isotonic", honest[:half] * 3, labels[:half])
    assert found.confidence_map is not None
    values = found.confidence_map.apply(np.linspace(0, 1, 500))
    assert (np.diff(values) >= 0).all()
    assert 1 / (half + 2) <= values.min()
    assert values.max() <= (half + 1) / (half + 2)
    assert found.temperature == fit_temperature(honest[:half] * 3, labels[:half])
    after = measures(found.logits(honest[half:] * 3), labels[half:], found.confidence_map)
    scaled = fit("temperature", honest[:half] * 3, labels[:half])
    assert after["ece"] < measures(honest[half:] * 3, labels[half:])["ece"] / 4
    assert after["ece"] < measures(scaled.logits(honest[half:] * 3), labels[half:])["ece"] * 1.2


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(logits=logit_arrays, data=st.data())
def test_every_method_survives_every_split(method: Method, logits: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, logits.shape[1] - 1)))
    found = fit(method, logits, labels)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    assert np.isfinite(found.likelihood(logits, labels)).all()
    assert all(isinstance(doubt, str) for doubt in doubts(method, logits, labels))


def test_cross_validation_tells_the_useful_from_the_overfitted() -> None:
    honest, labels = drawn(600, 5)
    before, after = cross_validated("temperature", honest * 3, labels)
    assert after < before - 0.2
    assert doubts("temperature", honest * 3, labels) == []
    few, few_labels = drawn(40, 30)
    found = doubts("isotonic", few, few_labels)
    assert any("40 images" in doubt for doubt in found)
    before, after = cross_validated("isotonic", few, few_labels)
    assert any("worsens the negative log-likelihood" in doubt for doubt in found) == (after > before * 1.001)
    assert after > before


def test_doubts_of_a_split_without_a_mistake_and_of_one_too_small_to_divide() -> None:
    labels = np.arange(9) % 3
    found = doubts("temperature", np.eye(3)[labels] * 4, labels)
    assert len(found) == 2
    assert "9 images" in found[0]
    assert "classified correctly" in found[1]
    assert doubts("none", np.eye(3)[labels], labels) == []


def test_the_identity_changes_nothing() -> None:
    honest, labels = drawn(50, 3)
    np.testing.assert_array_equal(identity(3).logits(honest), honest)
    assert identity(3).likelihood(honest, labels).mean() == pytest.approx(negative_log_likelihood(honest, labels))
    assert identity(3).temperature == 1.0

"""The calibration error without bins."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration.smooth import smooth_calibration_error, smooth_change
from pipeline.metrics import expected_calibration_error


def drawn(seed: int, images: int, *, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.3, 0.9, images)
    return confidence, generator.random(images) < confidence + bias


@pytest.mark.parametrize("bias", [-0.1, 0.08])
def test_a_constant_bias_is_the_error(bias: float) -> None:
    assert smooth_calibration_error(*drawn(0, 100_000, bias=bias)) == pytest.approx(abs(bias), abs=0.01)


def test_a_calibrated_model_has_little_and_less_with_more_images() -> None:
    few, many = (smooth_calibration_error(*drawn(0, images)) for images in (500, 200_000))
    assert many < few < 0.05
    assert many < 0.006


def test_biases_that_cancel_are_seen() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.2, 0.8, 100_000)
    correct = generator.random(100_000) < np.where(confidence < 0.5, confidence + 0.1, confidence - 0.1)
    assert abs((confidence - correct).mean()) < 0.01
    assert smooth_calibration_error(confidence, correct) > 0.05


def two_classes(confidence: np.ndarray) -> np.ndarray:
    return np.stack([np.log(confidence), np.log1p(-confidence)], axis=1).astype(np.float32)


def test_confidences_that_cross_the_border_of_two_bins_change_little() -> None:
    """0.6 is a border of 15 bins; right and wrong images lie a hair on its two sides, then a hair on the others."""
    confidence = 0.6 + np.where(np.arange(2000) % 5 < 3, 1e-4, -1e-4)
    labels = np.where(np.arange(2000) % 5 < 3, 0, 1)
    before, after = two_classes(confidence), two_classes(np.full(2000, 0.6001))
    bins = [expected_calibration_error(each, labels) for each in (before, after)]
    assert bins[0] - bins[1] > 0.4
    change = smooth_change(before, after, labels)
    assert abs(change.change) < 0.02
    assert change.interval[0] - 1e-9 <= change.change <= change.interval[1] + 1e-9


def test_a_sharper_copy_is_worse() -> None:
    confidence, correct = drawn(2, 5000)
    confidence = np.maximum(confidence, 0.51)
    logits = two_classes(confidence)
    labels = np.where(np.random.default_rng(3).random(5000) < confidence, 0, 1)
    change = smooth_change(logits, 2 * logits, labels)
    assert change.interval[0] > 0.02
    again = smooth_change(logits, 2 * logits, labels)
    assert again == change, "the same seed"
    assert correct.any()


@pytest.mark.parametrize(("confidences", "answers"), [(0, 0), (3, 2)])
def test_an_answer_for_each_confidence(confidences: int, answers: int) -> None:
    with pytest.raises(ValueError, match="one for each image"):
        smooth_calibration_error(np.zeros(confidences), np.zeros(answers, bool))

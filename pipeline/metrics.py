"""Accuracy, calibration and parity of logits.

All functions take logits `(images, classes)` float32 and labels `(images,)` integers, and compute in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]

CALIBRATION_BINS = 15
Z_95 = 1.959963984540054


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Returns the logarithm of the softmax over classes."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def count_correct(logits: Logits, labels: Labels) -> int:
    """Returns how many images have their label as the class of the largest logit (the first one on a tie)."""
    return int((logits.argmax(axis=1) == labels).sum())


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of an accuracy (Wilson 1927, Brown et al. 2001).

    Raises:
        ValueError: `count` is not positive or `correct` is outside 0..count.
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"{correct} of {count} is no accuracy.")
    share = correct / count
    centre = share + Z_95**2 / (2 * count)
    spread = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    scale = 1 + Z_95**2 / count
    # At the ends the interval touches 0 or 1, which rounding would miss.
    low = (centre - spread) / scale if correct else 0.0
    high = (centre + spread) / scale if correct < count else 1.0
    return low, high


def negative_log_likelihood(logits: Logits, labels: Labels) -> float:
    """Returns the mean negative log-likelihood in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def brier_score(logits: Logits, labels: Labels) -> float:
    """Returns the mean squared distance of the probabilities from the one-hot label (Brier 1950), 0..2."""
    probabilities = np.exp(log_softmax(logits))
    probabilities[np.arange(len(labels)), labels] -= 1.0
    return float((probabilities**2).sum(axis=1).mean())


def expected_calibration_error(logits: Logits, labels: Labels, *, bins: int = CALIBRATION_BINS) -> float:
    """Returns the expected calibration error over bins of equal width (Guo et al. 2017, equation 3), 0..1."""
    probabilities = np.exp(log_softmax(logits))
    confidence = probabilities.max(axis=1)
    correct = logits.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for index in range(bins):
        inside = which == index
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(error)


def calibration_summary(logits: Logits, labels: Labels) -> dict[str, float]:
    """Returns calibration error (15 bins), negative log-likelihood, Brier score and accuracy.

    Cheap enough for every epoch; `pipeline.calibration.measures` has more, with intervals.
    """
    return {
        "ece": expected_calibration_error(logits, labels),
        "nll": negative_log_likelihood(logits, labels),
        "brier": brier_score(logits, labels),
        "accuracy": count_correct(logits, labels) / len(labels),
    }


def parity(reference: Logits, values: Logits, *, classes: bool = True) -> dict[str, float | None]:
    """Compares outputs with the reference's on the same samples.

    Args:
        reference: `(count, ...)`.
        values: The same shape.
        classes: Whether the largest value of a row names a class.

    Returns:
        `logit_range` (largest minus smallest reference value), `max_logit_difference` and
        `mean_logit_difference` as shares of that range, `snr_db` (power of the reference over power of the
        difference, in decibels; None where they are equal to the bit), `top1_agreement` (0..1; None without
        classes).

    Raises:
        ValueError: The shapes differ, or a value is not finite.
    """
    if reference.shape != values.shape:
        raise ValueError(f"Reference logits are {reference.shape}, the others {values.shape}.")
    if not (np.isfinite(reference).all() and np.isfinite(values).all()):
        raise ValueError("A logit is NaN or infinite.")
    expected = reference.astype(np.float64)
    difference = values.astype(np.float64) - expected
    logit_range = float(expected.max() - expected.min()) or 1.0
    noise = float((difference**2).mean())
    signal = float((expected**2).mean())
    agreement = float((reference.argmax(axis=1) == values.argmax(axis=1)).mean()) if classes else None
    return {
        "logit_range": logit_range,
        "max_logit_difference": float(np.abs(difference).max()) / logit_range,
        "mean_logit_difference": float(np.abs(difference).mean()) / logit_range,
        "snr_db": None if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise),
        "top1_agreement": agreement,
    }


def worst_parity(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Returns the worst of what `parity` found for several outputs, value by value.

    Args:
        rows: One for each output; the first one's agreement of classes counts.
    """
    noisy = [row["snr_db"] for row in rows if row["snr_db"] is not None]
    worst = max(rows, key=lambda row: row["max_logit_difference"] or 0.0)
    return {
        "logit_range": worst["logit_range"],
        "max_logit_difference": worst["max_logit_difference"],
        "mean_logit_difference": max(row["mean_logit_difference"] or 0.0 for row in rows),
        "snr_db": min(noisy) if noisy else None,
        "top1_agreement": rows[0]["top1_agreement"],
    }

"""A calibration error without bins, for comparing two files on the same images (Błasiok and Nakkiran 2023).

The error of 15 bins moves where a confidence crosses the border of two bins, though the model is as sure and as often
right as before: between float and int8 by up to a point on 1,000 images. Smoothed by a kernel instead, it changes only
as much as the confidences do (arXiv:2309.12236, theorem 9).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.metrics import Labels, Logits, log_softmax

CELLS = 2000
"""Of the confidences 0..1; a kernel of the widths found is dozens of them wide."""
RESAMPLES = 1000

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SmoothChange:
    """Smooth calibration errors of two models on the same images.

    Attributes:
        before: Of the first, 0..1.
        after: Of the second.
        interval: 95 % basic bootstrap interval of `after - before`, over resamples that are the same for both.
    """

    before: float
    after: float
    interval: tuple[float, float]

    @property
    def change(self) -> float:
        """Above zero the second is worse."""
        return self.after - self.before


def smooth_calibration_error(confidence: Values, correct: npt.NDArray[np.bool_]) -> float:
    """Returns the smooth calibration error of the top class (definition 8: the kernel's width is the error itself).

    Args:
        confidence: 0..1, `(images,)`.
        correct: `(images,)`.

    Raises:
        ValueError: There is no image, or not one confidence for each.

    Example:
        >>> round(smooth_calibration_error(np.full(1000, 0.9), np.arange(1000) < 600), 2)
        0.3
    """
    if not confidence.size or confidence.shape != correct.shape or confidence.ndim != 1:
        raise ValueError(f"Confidences are {confidence.shape}, answers {correct.shape}; expected one for each image.")
    return _error(_residuals(confidence, correct, None))


def smooth_change(before: Logits, after: Logits, labels: Labels, *, seed: int = 0) -> SmoothChange:
    """Compares two models on the same images.

    Args:
        before: `(images, classes)`, finite.
        after: The same of the other model.
        labels: `(images,)`.
        seed: Of the resamples.
    """
    pairs = [(np.exp(log_softmax(each).max(axis=1)), each.argmax(axis=1) == labels) for each in (before, after)]
    found = [smooth_calibration_error(*pair) for pair in pairs]
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        weights = np.bincount(generator.integers(0, len(labels), len(labels)), minlength=len(labels))
        one, other = (_error(_residuals(*pair, weights)) for pair in pairs)
        drawn[number] = other - one
    change = found[1] - found[0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return SmoothChange(found[0], found[1], (float(2 * change - high), float(2 * change - low)))


def _residuals(confidence: Values, correct: npt.NDArray[np.bool_], weights: npt.NDArray[np.int64] | None) -> Values:
    """Sum of `correct - confidence` in each cell, per image."""
    cells = np.minimum((confidence * CELLS).astype(np.int64), CELLS - 1)
    values = correct - confidence
    if weights is not None:
        values = values * weights
    return np.asarray(np.bincount(cells, weights=values, minlength=CELLS) / len(confidence))


def _error(residuals: Values) -> float:
    """The width at which the smoothed residuals sum up to the width; they fall as it grows, so there is one."""
    from scipy.fft import dct, idct
    from scipy.optimize import brentq

    # The cosine transform reflects at 0 and 1, as the kernel does in the paper (section 4.2).
    waves = dct(residuals, type=2, norm="ortho")
    frequencies = np.pi * np.arange(CELLS)

    def excess(width: float) -> float:
        smoothed = idct(waves * np.exp(-0.5 * (frequencies * width) ** 2), type=2, norm="ortho")
        return float(np.abs(smoothed).sum()) - width

    narrowest = 1 / CELLS
    return narrowest if excess(narrowest) <= 0 else float(brentq(excess, narrowest, 1.0, xtol=1e-6))

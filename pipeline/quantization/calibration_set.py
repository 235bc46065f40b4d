"""Which training images the ranges of a quantized network are taken from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError


def draw_calibration_set(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draws images without repetition, the same number of each class.

    The counts of two classes differ by at most one, as long as both have enough images; a class that has too
    few gives all it has, and the others make up for it.

    Args:
        labels: `(num_images,)`, the class of every image.
        count: How many images to draw.
        seed: Shapes the draw.

    Returns:
        `(count,)`, int64, the indices of the drawn images, sorted.

    Raises:
        DataError: If there are fewer images than `count`, or the arguments have the wrong form.

    Example:
        >>> draw_calibration_set(np.array([0, 0, 0, 1]), 2, seed=0)[1]
        np.int64(3)
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"received labels {labels.dtype} {labels.shape}: expected whole numbers (num_images,)")
    if not 1 <= count <= len(labels):
        raise DataError(
            f"received a calibration set of {count} images from {len(labels)}: expected 1 to {len(labels)}; "
            "lower the number of calibration images or add training images"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    _, class_indices, num_available = np.unique(labels, return_inverse=True, return_counts=True)
    shares = _shares(num_available, count, generator.permutation(len(num_available)))
    drawn = [
        generator.choice(np.flatnonzero(class_indices == index), size=share, replace=False)
        for index, share in enumerate(shares)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _shares(num_available: NDArray[np.intp], count: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images each class gives: equal shares, and one more for the first in order as needed."""
    shares = np.zeros(len(num_available), dtype=np.int64)
    level = 0
    while True:
        open_classes = [index for index in order if num_available[index] > level]
        missing = count - int(shares.sum())
        if missing < len(open_classes):
            shares[open_classes[:missing]] += 1
            return shares
        step = min(missing // len(open_classes), int(num_available[open_classes].min()) - level)
        shares[open_classes] += step
        level += step
        if count == int(shares.sum()):
            return shares

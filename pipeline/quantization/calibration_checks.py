"""Doubts about a calibration set: ranges that come from the wrong samples make a network that is quietly worse."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

NOISE_CORRELATION = 0.1
"""Of neighbouring pixels: noise has none, drawn from any distribution; a photograph has 0.9 and more."""

FOREIGN_DISTANCE = 0.5
"""Standard deviations between the mean colors of two sets of images; random halves of one set have about 0.05."""

UNBALANCED = 2.0
"""How many times as many samples one class has as another."""

Pixels = npt.NDArray[np.uint8]


def calibration_doubts(
    rows: npt.NDArray[Any],
    labels: npt.NDArray[np.int64] | None,
    *,
    num_classes: int,
    test: npt.NDArray[Any],
) -> dict[str, Any]:
    """Looks at a calibration set and returns what speaks against it, with the numbers.

    Args:
        rows: Samples `(count, ...)`; those of images are uint8 `(count, height, width, 3)`.
        labels: `(count,)`; None where there are none.
        num_classes: Of the data.
        test: Samples of the test split, of the same form as `rows`.

    Returns:
        `in_test_split` (how many samples are also in the test split, byte for byte), of labelled samples
        `smallest_class` and `largest_class`, of images `neighbor_correlation` and `distance_to_test` (None where it
        can't be told), and `warnings`, sentences.
    """
    known = {_digest(row) for row in test}
    found: dict[str, Any] = {"in_test_split": sum(_digest(row) in known for row in rows)}
    warnings = []
    if found["in_test_split"]:
        warnings.append(
            f"{found['in_test_split']} of the {len(rows)} calibration samples are also in the test split, so that the "
            f"int8 accuracy is flattered: remove the duplicates from the data."
        )
    if labels is not None:
        counts = np.bincount(labels, minlength=num_classes)
        found |= {"smallest_class": int(counts.min()), "largest_class": int(counts.max())}
        if num_classes <= len(rows) and counts.max() >= UNBALANCED * max(int(counts.min()), 1) and counts.max() > 1:
            warnings.append(
                f"The calibration set is unbalanced: {counts.min()} samples of one class and {counts.max()} of another "
                f"of {num_classes}. Give more images of the rare classes, or ask for fewer calibration images."
            )
    if rows.dtype == np.uint8 and rows.ndim == 4 and rows.shape[-1] == 3:
        found |= {
            "neighbor_correlation": neighbor_correlation(rows),
            "distance_to_test": color_distance(rows, test),
        }
        correlation, distance = found["neighbor_correlation"], found["distance_to_test"]
        if correlation is not None and correlation < NOISE_CORRELATION:
            warnings.append(
                f"The calibration images look like random noise (neighbouring pixels correlate by {correlation:.2f}; "
                f"photographs by 0.9): ranges that are taken from noise do not fit real images."
            )
        if distance is not None and distance > FOREIGN_DISTANCE:
            warnings.append(
                f"The calibration images differ from the test images by {distance:.2f} standard deviations of their "
                f"mean color: draw both from the same source."
            )
    return {**found, "warnings": warnings}


def neighbor_correlation(images: Pixels) -> float | None:
    """Returns the median over the images of how much a pixel tells of the one to its right (Pearson).

    Args:
        images: `(count, height, width, 3)`; those of one color tell nothing and are left out.

    Returns:
        -1..1; None where all are of one color or a pixel wide.
    """
    found = []
    for image in images:
        left, right = (part.astype(np.float64).ravel() for part in (image[:, :-1], image[:, 1:]))
        if left.size and left.std() > 0 and right.std() > 0:
            found.append(float(np.corrcoef(left, right)[0, 1]))
    return float(np.median(found)) if found else None


def color_distance(images: Pixels, others: Pixels) -> float | None:
    """Returns how far the mean colors of two sets of images lie apart, in standard deviations of an image's mean color.

    Args:
        images: `(count, height, width, 3)`.
        others: The same.

    Returns:
        The largest of the three colors; None with fewer than two images on a side.
    """
    if min(len(images), len(others)) < 2:
        return None
    one, other = (np.stack([row.mean(axis=(0, 1), dtype=np.float64) for row in rows]) for rows in (images, others))
    deviation = np.sqrt((one.var(axis=0) + other.var(axis=0)) / 2)
    apart = np.abs(one.mean(axis=0) - other.mean(axis=0))
    # One level of 255 is no difference, also where all images of a set are alike.
    return float((apart / np.maximum(deviation, 1.0)).max())


def _digest(row: npt.NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(row).data).digest()

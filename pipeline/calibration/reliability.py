"""The reliability diagram as data (Murphy and Winkler 1977; Guo et al. 2017, section 2)."""

from __future__ import annotations

from typing import Any

from devices.board.confidence import ConfidenceMap, top_class
from pipeline.calibration.measures import bin_of
from pipeline.metrics import CALIBRATION_BINS, Labels, Logits, accuracy_interval

RELIABILITY_FILE = "reliability.json"
PICTURE_FILE = "reliability.svg"
RELIABILITY_SCHEMA = 1


def reliability_bins(
    logits: Logits, labels: Labels, confidence_map: ConfidenceMap | None = None, *, bins: int = CALIBRATION_BINS
) -> list[dict[str, Any]]:
    """Returns the bins of equal width that the calibration error is a sum over.

    Args:
        logits: `(images, classes)`.
        labels: `(images,)`.
        confidence_map: What follows the softmax, if anything.
        bins: How many.

    Returns:
        For each `low` and `high` (its ends), `count` (of images), and `confidence` (their mean), `accuracy` and
        `accuracy_interval` (95 %, Wilson), which are None in an empty one.
    """
    top, confidence = top_class(logits, confidence_map)
    correct, which = top == labels, bin_of(confidence, bins)
    rows = []
    for index in range(bins):
        inside = which == index
        count, right = int(inside.sum()), int(correct[inside].sum())
        rows.append(
            {
                "low": index / bins,
                "high": (index + 1) / bins,
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": right / count if count else None,
                "accuracy_interval": list(accuracy_interval(right, count)) if count else None,
            }
        )
    return rows

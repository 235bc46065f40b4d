"""How far int8 spreads over draws of the calibration set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MEASURES = ("accuracy", "accuracy_drop", "snr_db", "top1_agreement")

_WORDS = (
    ("accuracy", "accuracy", 100, " %"),
    ("accuracy_drop", "drop", 100, " points"),
    ("snr_db", "signal-to-noise ratio", 1, " dB"),
    ("top1_agreement", "same top class", 100, " %"),
)
"""Measure, what it is called, and what it is multiplied by for people."""


def spread_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float] | None]:
    """Returns `min`, `median`, `max` and `standard_deviation` of each of `MEASURES` over the draws.

    Args:
        rows: At least two, each with a value of each measure or None.

    Returns:
        By measure; None for one that some draw has no value of. The standard deviation is that of a sample.
    """
    found: dict[str, dict[str, float] | None] = {}
    for name in MEASURES:
        values = [row[name] for row in rows]
        found[name] = None
        if None not in values:
            found[name] = {
                "min": min(values),
                "median": statistics.median(values),
                "max": max(values),
                "standard_deviation": statistics.stdev(values),
            }
    return found


def spread_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each target whose calibration set was drawn several times.

    Args:
        report: As a whole.
    """
    lines = []
    for found in report.get("spreads", ()):  # a report from before there were draws has none
        parts = []
        for name, words, scale, unit in _WORDS:
            values = found["spread"][name]
            # Another metric has other units; how it spreads is in the artifact.
            if values is not None and (found["metric"] == "top1" or not name.startswith("accuracy")):
                low, median, high = (f"{round(scale * values[each], 2) + 0.0:.2f}" for each in ("min", "median", "max"))
                deviation = f"{scale * values['standard_deviation']:.2f}"
                parts.append(f"{words} {low} to {high}{unit} (median {median}, standard deviation {deviation})")
        label = f"{found['target']}/{found['precision']}"
        lines.append(f"{label} over {len(found['draws'])} draws of the calibration set: {', '.join(parts)}.")
    return lines

"""Fits a calibration on validation, judges it on test, and writes down what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devices.board.confidence import CONFIDENCE_FILE
from pipeline.calibration.measures import measures
from pipeline.calibration.methods import Method, Scaling, doubts, fit, identity
from pipeline.calibration.picture import draw_reliability
from pipeline.calibration.reliability import PICTURE_FILE, RELIABILITY_FILE, RELIABILITY_SCHEMA, reliability_bins
from pipeline.errors import DataError, StageError
from pipeline.metrics import CALIBRATION_BINS, Labels, Logits
from pipeline.stages.base import Tell


@dataclass(frozen=True)
class SplitLogits:
    """What a network answers to one split.

    Attributes:
        logits: `(images, classes)`.
        labels: `(images,)`.
    """

    logits: Logits
    labels: Labels


def calibrate_confidence(
    method: Method, validation: SplitLogits, test: SplitLogits, out_dir: Path, tell: Tell
) -> tuple[Scaling, dict[str, Any]]:
    """Fits a method on validation and judges it on test.

    Writes `reliability.json`, `reliability.svg` and, where it is needed, `calibration.json`: the map of the confidence
    that a network can't hold itself (`devices.board.confidence`).

    Args:
        method: How confidence is calibrated.
        validation: What it is fitted on.
        test: What it is judged on.
        out_dir: Gets the files.
        tell: Takes warnings.

    Returns:
        What is to be folded into the network, and metrics: `method`, `temperature` (None for `vector`, whose classes
        have scales of their own), `calibration_warnings`, and for `validation` and `test` what `measures` gives
        `before` and `after`. Accuracy is among it, for vector scaling can change the top class.

    Raises:
        DataError: A split has no images.
        StageError: A logit is not finite.
    """
    splits = {"validation": validation, "test": test}
    for name, split in splits.items():
        if not len(split.labels):
            raise DataError(
                f"The {name} split has no images, but confidence is calibrated on validation and judged on test: give "
                f"images of it, or a larger data.{name}_fraction."
            )
        if not np.isfinite(split.logits).all():
            raise StageError(
                f"The network gives logits that are NaN or infinite on the {name} split: its training diverged. Lower "
                f"train.learning_rate."
            )
    tell({"message": f"calibrating confidence on {len(validation.labels)} validation images: {method}"})
    warnings = doubts(method, validation.logits, validation.labels)
    for warning in warnings:
        tell({"warning": warning})
    scaling = fit(method, validation.logits, validation.labels)
    before = identity(len(scaling.scale))
    found = {name: {"before": _found(before, split), "after": _found(scaling, split)} for name, split in splits.items()}
    diagrams: dict[str, Any] = {
        "schema_version": RELIABILITY_SCHEMA,
        "method": method,
        "bins": CALIBRATION_BINS,
        **{
            name: {
                "before": _diagram(before, split, found[name]["before"]),
                "after": _diagram(scaling, split, found[name]["after"]),
            }
            for name, split in splits.items()
        },
    }
    _write(out_dir / RELIABILITY_FILE, diagrams)
    shown = {"before": "before"} | ({} if method == "none" else {"after": f"after: {method}"})
    panels = [{"title": f"Test images, {title}", **diagrams["test"][when]} for when, title in shown.items()]
    draw_reliability(panels, out_dir / PICTURE_FILE)
    if scaling.confidence_map is not None:
        _write(out_dir / CONFIDENCE_FILE, scaling.confidence_map.to_json())
    metrics = {"method": method, "temperature": scaling.temperature, "calibration_warnings": warnings, **found}
    return scaling, metrics


def _found(scaling: Scaling, split: SplitLogits) -> dict[str, Any]:
    return measures(scaling.logits(split.logits), split.labels, scaling.confidence_map)


def _diagram(scaling: Scaling, split: SplitLogits, found: Mapping[str, Any]) -> dict[str, Any]:
    names = ("ece", "ece_interval", "accuracy", "accuracy_interval")
    bins = reliability_bins(scaling.logits(split.logits), split.labels, scaling.confidence_map)
    return {**{name: found[name] for name in names}, "bins": bins}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

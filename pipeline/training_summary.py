"""What a training made, in numbers and in words."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.metrics import accuracy_interval
from pipeline.runner import RunResult
from pipeline.tracking.csv_file import CSV_FILE
from pipeline.tracking.tensorboard import event_directory

HISTORY_FILE = "history.json"


def training_summary(result: RunResult, directory: Path) -> dict[str, Any]:
    """Returns what `edgeship train --json` prints of a run up to `calibrate`.

    Args:
        result: Of the run.
        directory: `runs/<recipe>/`.
    """
    trained, calibrated = result.artifacts["train"], result.artifacts["calibrate"]
    metrics, judged = trained.manifest.metrics, calibrated.manifest.metrics
    test, images = judged["test"], judged["test"]["test_images"]
    accuracy = test["after"]["accuracy"]
    history = _history(trained)
    speeds = [record["images_per_second"] for record in history if record.get("images_per_second")]
    events = event_directory(directory, trained.manifest.key)
    return {
        "recipe": result.recipe.name,
        "key": trained.manifest.key,
        "cached": next(record.cached for record in result.stages if record.name == "train"),
        "epochs": len(history),
        "best_epoch": metrics["best_epoch"],
        "parameters": metrics["parameters"],
        "backend": metrics["backend"],
        "training_images": metrics["training_images"],
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "train_seconds": metrics.get("train_seconds"),
        "validation_accuracy": metrics["validation_accuracy"],
        "test_accuracy": accuracy,
        "test_accuracy_interval": list(accuracy_interval(round(accuracy * images), images)),
        "test_images": images,
        "ece_before": test["before"]["ece"],
        "ece_after": test["after"]["ece"],
        "temperature": judged["temperature"],
        "artifacts": {"train": str(trained.directory), "calibrate": str(calibrated.directory)},
        "history_csv": _existing(directory / CSV_FILE),
        "tensorboard": _existing(events),
    }


def training_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and texts for people."""
    low, high = summary["test_accuracy_interval"]
    accuracy = f"{100 * summary['test_accuracy']:.2f} % of {summary['test_images']:,} images"
    error = f"{100 * summary['ece_before']:.2f} % before, {100 * summary['ece_after']:.2f} % after"
    lines = [
        ("test accuracy", f"{accuracy} (95 % interval {100 * low:.2f} to {100 * high:.2f})"),
        ("calibration error", f"{error} (temperature {summary['temperature']:.3f})"),
    ]
    if summary["epochs"]:
        speed = summary["images_per_second"]
        text = (
            f"{summary['epochs']} epochs on {summary['backend']}, the best was {summary['best_epoch']} (validation "
            f"accuracy {100 * summary['validation_accuracy']:.2f} %)"
        )
        lines.append(("training", text + (f"; {speed:,.0f} images/s" if speed else "")))
    if summary["cached"]:
        lines.append(("cached", "the artifact was there already: nothing was trained"))
    lines.append(("network", f"{summary['artifacts']['calibrate']} ({summary['parameters']:,} parameters)"))
    for name, key in (("every epoch", "history_csv"), ("TensorBoard", "tensorboard")):
        if summary[key]:
            lines.append((name, summary[key]))
    return lines


def _history(trained: Artifact) -> list[dict[str, Any]]:
    path = trained.directory / HISTORY_FILE
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None

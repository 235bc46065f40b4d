"""`edgeship train`: trains and calibrates a recipe's network, and says in numbers and in words what came of it."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.wording import counted
from pipeline.artifacts import ArtifactStore
from pipeline.calibration.report import with_interval
from pipeline.errors import InputError
from pipeline.manifest import Artifact
from pipeline.metrics import accuracy_interval
from pipeline.model_config import OwnModelConfig
from pipeline.recipe import Recipe
from pipeline.report import report_of
from pipeline.run_directory import write_run_directory
from pipeline.runner import RunResult, run_recipe
from pipeline.tracking.session import TrackingSession
from pipeline.tracking.tensorboard import event_directory
from pipeline.training.distribution import COORDINATOR, PROCESS, PROCESSES, read_cluster
from pipeline.training.history import HISTORY_CSV_FILE, HISTORY_FILE


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of several that train together, as the environment has it or the options say.

    Raises:
        InputError: They don't fit together.
    """
    given = {COORDINATOR: coordinator, PROCESSES: processes, PROCESS: process}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    try:
        read_cluster()
    except InputError as error:
        if any(value is not None for value in given.values()):
            raise InputError(f"--coordinator, --processes and --process belong together: {error.message}") from error
        raise


def train_recipe(recipe: Recipe, store: ArtifactStore, directory: Path, tracking: TrackingSession) -> dict[str, Any]:
    """Trains and calibrates the network of a recipe.

    Args:
        recipe: Its model is a network.
        store: Where artifacts are looked up and published.
        directory: `runs/<recipe>/`.
        tracking: Takes the progress events.

    Returns:
        What `edgeship train --json` prints.

    Raises:
        InputError: The recipe trains nothing.
        EdgeshipError: A stage failed.
    """
    if isinstance(recipe.model, OwnModelConfig):
        raise InputError("model.path names a model that is taken as it is, and nothing is trained: use `edgeship run`.")
    result = run_recipe(recipe, store, until="calibrate", tell=tracking.tell)
    if result.trained_along:
        return {"recipe": recipe.name, "trained_along": True, "process": read_cluster().process_index}
    report = report_of(result)
    write_run_directory(directory, result, report, store)
    tracking.finish(result, report)
    return training_summary(result, directory)


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
    cached = next(record.cached for record in result.stages if record.name == "train")
    # Without a training of this run, the files under `runs/` may be another's.
    history_csv = (trained.directory if cached else directory) / HISTORY_CSV_FILE
    return {
        "recipe": result.recipe.name,
        "key": trained.manifest.key,
        "cached": cached,
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
        "ece_before_interval": test["before"].get("ece_interval"),
        "ece_after": test["after"]["ece"],
        "ece_after_interval": test["after"].get("ece_interval"),
        "calibration_method": judged["method"],
        "temperature": judged["temperature"],
        "artifacts": {"train": str(trained.directory), "calibrate": str(calibrated.directory)},
        "history_csv": _existing(history_csv),
        "tensorboard": _existing(event_directory(directory, trained.manifest.key)),
    }


def training_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and texts for people."""
    if summary.get("trained_along"):
        return [("done", f"process {summary['process']} trained along; process 0 has the network")]
    low, high = summary["test_accuracy_interval"]
    accuracy = f"{100 * summary['test_accuracy']:.2f} % of {summary['test_images']:,} images"
    before, after = (
        with_interval({"ece": summary[f"ece_{when}"], "ece_interval": summary[f"ece_{when}_interval"]})
        for when in ("before", "after")
    )
    lines = [
        ("test accuracy", f"{accuracy} (95 % interval {100 * low:.2f} to {100 * high:.2f})"),
        ("calibration error", f"from {before} to {after} % by {_method_words(summary)}"),
    ]
    if summary["epochs"]:
        speed = summary["images_per_second"]
        text = (
            f"{counted(summary['epochs'], 'epoch')} on {summary['backend']}, the best was {summary['best_epoch']} "
            f"(validation accuracy {100 * summary['validation_accuracy']:.2f} %)"
        )
        lines.append(("training", text + (f"; {speed:,.0f} images/s" if speed else "")))
    if summary["cached"]:
        lines.append(("cached", "the artifact was there already: nothing was trained"))
    lines.append(("network", f"{summary['artifacts']['calibrate']} ({summary['parameters']:,} parameters)"))
    for name, key in (("every epoch", "history_csv"), ("TensorBoard", "tensorboard")):
        if summary[key]:
            lines.append((name, summary[key]))
    return lines


def _method_words(summary: Mapping[str, Any]) -> str:
    """Returns the method of calibration, with the temperature where it has one."""
    method, temperature = summary["calibration_method"], summary["temperature"]
    return f"{method} {temperature:.3f}" if method == "temperature" else method


def _history(trained: Artifact) -> list[dict[str, Any]]:
    path = trained.directory / HISTORY_FILE
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None

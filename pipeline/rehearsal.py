"""`edgeship train --dry-run` and `--find-learning-rate`: tries out a recipe's training, and says it in words."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.wording import counted
from pipeline.artifacts import ArtifactStore
from pipeline.errors import InputError
from pipeline.executor import StageExecutor
from pipeline.making import find_artifact
from pipeline.manifest import Artifact
from pipeline.model_config import OwnModelConfig
from pipeline.model_tables import readable_bytes, readable_count
from pipeline.network import FAKE_NETWORK, ModelConfig
from pipeline.progress import duration
from pipeline.recipe import Recipe
from pipeline.runner import check_sizes, run_recipe, train_stage
from pipeline.stages.base import Stage, Tell
from pipeline.stages.rehearse import DryRunStage, LearningRateStage
from pipeline.stages.train import TrainStage
from pipeline.store_errors import store_errors

TABLE_COLUMNS = ("learning rate", "loss", "smoothed")


def dry_run(recipe: Recipe, store: ArtifactStore, tell: Tell) -> dict[str, Any]:
    """Tries out the training of a recipe for a few steps; publishes nothing but the prepared data set.

    Returns:
        What `edgeship train --dry-run --json` prints: `network`, `data`, `training`, `hardware`, `memory`, `time` and
        `throughput`, and whether the artifact is there already.

    Raises:
        InputError: The recipe trains nothing.
        EdgeshipError: The data, or the training, can't be used.
    """
    stage, inputs = _planned(recipe, store, tell)
    known = find_artifact(stage, store, inputs)
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        trial = DryRunStage(model=stage.model, train=stage.train, backend=stage.backend)
        found = _executed(trial, inputs, Path(scratch), tell)
    return {
        "recipe": recipe.name,
        "cached": known is not None,
        "artifact": None if known is None else str(known.directory),
        **found,
    }


def learning_rate_search(recipe: Recipe, store: ArtifactStore, directory: Path, tell: Tell) -> dict[str, Any]:
    """Looks for the learning rate of a recipe; writes `learning_rate.csv` and `learning_rate.png` into a directory.

    Raises:
        InputError: The recipe trains nothing.
        StoreError: The directory can't be written.
        EdgeshipError: The data, or the training, can't be used.
    """
    stage, inputs = _planned(recipe, store, tell)
    with store_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    trial = LearningRateStage(model=stage.model, train=stage.train, backend=stage.backend)
    found = _executed(trial, inputs, directory, tell)
    files = {name: str(directory / found.pop(name)) for name in ("csv", "plot")}
    return {"recipe": recipe.name, **found, **files}


def _planned(recipe: Recipe, store: ArtifactStore, tell: Tell) -> tuple[TrainStage, dict[str, Artifact]]:
    """Returns the train stage of a recipe and what it reads, after the stages before it have run."""
    if isinstance(recipe.model, OwnModelConfig):
        raise InputError("model.path names a model that is taken as it is: there is no training to try out.")
    if isinstance(recipe.model, ModelConfig) and recipe.model.name == FAKE_NETWORK:
        raise InputError(
            "model.name is fake, a stand-in that is not trained: choose a network to try out its training."
        )
    if recipe.train.epochs == 0:
        raise InputError("train.epochs is 0: there is no training to try out. Set train.epochs.")
    artifacts = run_recipe(recipe, store, until="model", tell=tell).artifacts
    check_sizes(recipe, artifacts["data"].manifest.metrics)
    return train_stage(recipe, artifacts), {"data": artifacts["data"]}


def _executed(stage: Stage, inputs: Mapping[str, Artifact], out_dir: Path, tell: Tell) -> dict[str, Any]:
    name = "dry run" if isinstance(stage, DryRunStage) else "learning rate"
    tell({"stage": name, "state": "running", "key": ""})
    with StageExecutor(lambda event: tell({"stage": name, **event})) as executor:
        return executor.run(stage, {role: source.directory for role, source in inputs.items()}, out_dir)


def dry_run_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and texts of a dry run, for people."""
    network, data, training = found["network"], found["data"], found["training"]
    height, width, _ = network["input_shape"]
    total = network["parameters"]
    trained = network["trainable_parameters"]
    lines = [
        (
            "network",
            f"{network['name']}, {readable_count(total)} parameters"
            + (f", {readable_count(trained)} of them trained" if trained < total else "")
            + f", {readable_count(network['multiply_adds'])} multiply-adds an image of {height} x {width}",
        ),
        ("data", _data(data)),
        ("steps", _steps(training)),
        ("learning rate", _schedule(training)),
        ("optimizer", _optimizer(training)),
        ("augmentation", ", ".join(training["augmentation"]) or "none"),
        ("hardware", _hardware(found["hardware"])),
        ("memory", _memory(found["memory"])),
        ("throughput", _throughput(found["throughput"])),
        ("time", _time(found["time"], training)),
    ]
    if training["preset"]:
        lines.insert(2, ("preset", training["preset"]))
    if training["extras"]:
        lines.insert(-4, ("also", "; ".join(training["extras"])))
    if found["cached"]:
        lines.append(("cached", f"{found['artifact']}: the network is trained already, a run would take it as it is"))
    return lines


def _steps(training: Mapping[str, Any]) -> str:
    text = (
        f"{training['total_steps']:,} = {counted(training['epochs'], 'epoch')} of {training['steps_per_epoch']:,}, "
        f"{training['batch_size']} images each"
    )
    every = training["accumulate_steps"]
    return text if every == 1 else f"{text}; weights move every {every} steps, after {every * training['batch_size']:,}"


def _schedule(training: Mapping[str, Any]) -> str:
    rate = training["learning_rate"]
    warmup = f"up to {rate['peak']:.3g} over {rate['warmup_steps']:,} steps, then " if rate["warmup_steps"] else ""
    if rate["schedule"] == "constant":
        return f"{warmup}{rate['peak']:.3g} throughout"
    return f"{warmup}{rate['schedule']} from {rate['peak']:.3g} to {rate['end']:.2g} in the last step"


def _data(data: Mapping[str, Any]) -> str:
    return (
        f"{data['training_images']:,} training images, {data['validation_images']:,} for validation, "
        f"{data['classes']:,} classes"
    )


def _optimizer(training: Mapping[str, Any]) -> str:
    return (
        f"{training['optimizer']}, weight decay {training['weight_decay']:g}, "
        f"label smoothing {training['label_smoothing']:g}"
    )


def _hardware(hardware: Mapping[str, Any]) -> str:
    device = hardware["device"]
    many = f"{hardware['devices']} x {device}" if hardware["devices"] > 1 else device
    compiled = "compiled by XLA" if hardware["compiled"] else "not compiled by XLA"
    return f"{hardware['backend']} on {many}, {hardware['precision']}, {compiled}"


def _memory(memory: Mapping[str, Any]) -> str:
    parts = ", ".join(
        f"{name} {readable_bytes(memory[f'{name}_bytes'])}"
        for name in ("weights", "gradients", "optimizer", "averages", "teacher", "activations")
        if memory[f"{name}_bytes"]
    )
    text = f"about {readable_bytes(memory['estimate_bytes'])} by count ({parts})"
    if memory["measured_peak_bytes"] is None:
        return text
    before, limit = memory["measured_before_bytes"], memory["limit_bytes"]
    beside = f" ({readable_bytes(before)} before there was a network)" if before else ""
    of = f" of {readable_bytes(limit)}" if limit else ""
    return f"{text}; measured {readable_bytes(memory['measured_peak_bytes'])}{of} {memory['measured_as']}{beside}"


def _throughput(speed: Mapping[str, Any]) -> str:
    return (
        f"{speed['both_images_per_second']:,.0f} images/s; loader alone {speed['loader_images_per_second']:,.0f}, step "
        f"alone {speed['step_images_per_second']:,.0f}; the loader's share of the time is "
        f"{100 * speed['loader_share']:.0f} %"
    )


def _time(time: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    low, high = time["total_seconds_interval"]
    text = (
        f"{duration(time['total_seconds'])} ({duration(low)} to {duration(high)}), from {time['steps']} steps of "
        f"{1000 * time['step_seconds']:.0f} ms and a validation of {_brief(time['validation_seconds'])} an epoch; the "
        f"first step took {_brief(time['first_step_seconds'])}"
    )
    return f"at most {text}" if training["may_end_sooner"] else f"about {text}"


def _brief(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def learning_rate_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and texts of a search for the learning rate, for people."""
    suggested, steepest = found["suggested_learning_rate"], found["steepest_learning_rate"]
    return [
        ("suggested", f"{suggested:.2g}, a tenth of the rate of the lowest loss ({found['lowest_loss_rate']:.2g})"),
        ("steepest descent", f"{steepest:.2g}"),
        ("recipe", f"{found['recipe_learning_rate']:.2g} at the peak of its schedule"),
        ("to take it", f"--set train.learning_rate={found['train_learning_rate']:.2g}"),
        ("steps", f"{found['steps']} of {found['batch_size']} images; {found['ended']}"),
        ("files", f"{found['csv']}, {found['plot']}"),
    ]


def learning_rate_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the rows of a small table: the loss along the rates."""
    return [
        (f"{row['learning_rate']:.1e}", f"{row['loss']:.4f}", f"{row['smoothed_loss']:.4f}") for row in found["table"]
    ]

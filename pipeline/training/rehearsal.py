"""A dry run: builds all that a training would, trains a few steps, counts and measures. Loads Keras."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from devices.board.facts import parse_cpu_model
from models.accounting import count_multiply_adds, count_parameters
from pipeline.network import PREDICTION_BATCH, predict_logits
from pipeline.training.backends import accelerator, device_memory
from pipeline.training.epoch import run_steps
from pipeline.training.freezing import frozen_layers
from pipeline.training.loader import Batch, Loader, num_workers
from pipeline.training.phases import phase_of
from pipeline.training.training_model import STEP_LOSS
from pipeline.training.words import augmentation_words, extra_words

if TYPE_CHECKING:
    from pipeline.training.trial import Trial

_WARM_STEPS = 2
"""Steps after the first that are not timed: caches fill, and memory is asked for."""

_LOADER_BATCHES = 10


def rehearse(trial: Trial, *, steps: int, memory_before: int | None) -> dict[str, Any]:
    """Tries a training out in the shape that its last epoch has, which needs the most memory and time.

    Args:
        trial: A fresh one.
        steps: How many are timed.
        memory_before: What the process or the device held before the training was built, in bytes.

    Returns:
        `network`, `data`, `training`, `hardware`, `memory`, `time`, `throughput`.
    """
    config = trial.config
    last = max(0, config.epochs - 1)
    trial.tell({"message": "loading batches"})
    loader = _loader_seconds(trial, last)
    trial.tell({"message": "tracing the first step"})
    first, timed = _step_seconds(trial, trial.training.batches(last), steps, epoch=last)
    trial.tell({"message": "training on one batch again and again"})
    one = next(iter(trial.training.batches(last)))
    _, alone = _step_seconds(trial, itertools.repeat(one), steps, epoch=last)
    measured = device_memory()
    validation = _validation_seconds(trial)
    # Batches that were read ahead hide a slow loader from the first steps.
    step = max(statistics.median(timed), loader)
    quartiles = [max(value, loader) for value in np.quantile(timed, (0.25, 0.75)).tolist()]
    totals = [first + _total_seconds(trial, seconds, validation) for seconds in (step, *quartiles)]
    images = config.batch_size
    return {
        "network": _network(trial),
        "data": _data(trial),
        "training": described(trial),
        "hardware": _hardware(trial),
        "memory": _memory(trial, last) | _measured(measured, memory_before),
        "time": {
            "steps": len(timed),
            "first_step_seconds": first,
            "step_seconds": step,
            "step_seconds_quartiles": quartiles,
            "validation_seconds": validation,
            "total_seconds": totals[0],
            "total_seconds_interval": totals[1:],
        },
        "throughput": {
            "loader_images_per_second": images / loader,
            "step_images_per_second": images / statistics.median(alone),
            "both_images_per_second": images / step,
            "loader_share": max(0.0, 1 - statistics.median(alone) / step),
        },
    }


class _Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes when each step has ended on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Notes the start."""
        self.times.append(time.monotonic())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Waits for a step's end and notes it."""
        keras.ops.convert_to_numpy(logs[STEP_LOSS])
        self.times.append(time.monotonic())


def _step_seconds(trial: Trial, batches: Iterator[Batch], steps: int, *, epoch: int) -> tuple[float, list[float]]:
    """Returns the seconds of the first step, which traces the network, and of those after the warm ones."""
    clock = _Clock()
    wanted = 1 + _WARM_STEPS + steps
    model = trial.training.model(epoch)
    repeated = itertools.chain(
        batches, itertools.chain.from_iterable(iter(lambda: trial.training.batches(epoch), None))
    )
    run_steps(model, (batch.as_keras() for batch in repeated), clock, steps=wanted)
    seconds = np.diff(clock.times).tolist()
    return seconds[0], seconds[1 + _WARM_STEPS :]


def _loader_seconds(trial: Trial, epoch: int) -> float:
    """Returns seconds a batch of the loader alone, once workers are up and what lay ready is used up."""
    place = trial.config.augmentation.place
    with Loader(
        trial.images,
        trial.config,
        process_index=trial.distribution.process_index,
        process_count=trial.distribution.process_count,
        on_accelerator=place == "accelerator" or (place == "auto" and accelerator() is not None),
    ) as loader:
        batches = itertools.chain.from_iterable(loader.epoch(epoch + more) for more in itertools.count())
        for _ in itertools.islice(batches, loader.read_ahead + 1):
            pass
        started, count = time.monotonic(), 0
        while count < _LOADER_BATCHES or (count < 100 and time.monotonic() - started < 1.0):
            next(batches)
            count += 1
        return (time.monotonic() - started) / count


def _validation_seconds(trial: Trial) -> float:
    """Returns the seconds that judging an epoch takes, from a few batches."""
    images = trial.validation[0]
    few = images[: 4 * PREDICTION_BATCH]
    predict_logits(trial.training.exported, few[:PREDICTION_BATCH])
    started = time.monotonic()
    predict_logits(trial.training.exported, few)
    return (time.monotonic() - started) * len(images) / len(few)


def _total_seconds(trial: Trial, step: float, validation: float) -> float:
    """Returns the seconds of all epochs; those with smaller images are counted by their pixels."""
    config = trial.config
    full = math.prod(trial.images.size)
    shares = [math.prod(phase_of(epoch, config, trial.images.size).size) / full for epoch in range(config.epochs)]
    return step * trial.training.steps_per_epoch * sum(shares) + config.epochs * validation


def _network(trial: Trial) -> dict[str, Any]:
    network = trial.training.exported
    return {
        "name": trial.model.name,
        "parameters": count_parameters(network),
        "trainable_parameters": count_parameters(network) - _frozen(trial),
        "multiply_adds": count_multiply_adds(network),
        "input_shape": [*trial.images.size, 3],
    }


def _frozen(trial: Trial) -> int:
    """Returns how many parameters are never trained."""
    freeze = trial.config.freeze
    if freeze is None or freeze.epochs is not None:
        return 0
    return sum(
        math.prod(each.shape)
        for layer in frozen_layers(trial.training.exported, freeze.until)
        for each in layer.trainable_variables
    )


def _data(trial: Trial) -> dict[str, Any]:
    return {
        "training_images": len(trial.images),
        "validation_images": len(trial.validation[1]),
        "classes": len(trial.images.classes),
    }


def _hardware(trial: Trial) -> dict[str, Any]:
    found = accelerator()
    return {
        "backend": trial.backend,
        "device": _processor() if found is None else found["name"],
        "devices": trial.distribution.devices,
        "processes": trial.distribution.process_count,
        "precision": trial.training.precision,
        "compiled": bool(trial.training.model(max(0, trial.config.epochs - 1)).jit_compile),
        "workers": num_workers(trial.config),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    return (parse_cpu_model(path.read_text(encoding="utf-8")) if path.exists() else None) or "the CPU"


def _memory(trial: Trial, epoch: int) -> dict[str, Any]:
    """Counts what a training holds on one device; activations are all that layers give, which XLA partly fuses away."""
    model = trial.training.model(epoch)
    bytes_a_value = 4 if trial.training.precision == "float32" else 2
    values = sum(
        math.prod(tensor.shape[1:])
        for layer in trial.training.network.layers
        for tensor in (layer.output if isinstance(layer.output, list | tuple) else [layer.output])
    )
    counted = {
        "weights": _size(trial.training.network.weights) + _size(trial.training.exported.weights),
        "gradients": _size(model.trainable_variables),
        "optimizer": _size(model.optimizer.variables),
        "averages": _size(model.average_variables),
        "teacher": _size(model.teacher.weights) if model.teacher is not None else 0,
        "activations": values * bytes_a_value * trial.config.batch_size // trial.distribution.devices,
    }
    return {**{f"{name}_bytes": size for name, size in counted.items()}, "estimate_bytes": sum(counted.values())}


def _measured(measured: Mapping[str, int], before: int | None) -> dict[str, Any]:
    on_host = accelerator() is None
    return {
        "measured_peak_bytes": measured.get("peak_bytes"),
        "measured_before_bytes": before,
        "measured_as": "resident at the peak" if on_host else "in use on the device at the peak",
        "limit_bytes": measured.get("limit_bytes"),
    }


def _size(variables: Any) -> int:
    return sum(math.prod(each.shape) * np.dtype(_numpy_name(each.dtype)).itemsize for each in variables)


def _numpy_name(dtype: str) -> str:
    return "float16" if dtype == "bfloat16" else dtype


def described(trial: Trial) -> dict[str, Any]:
    """Returns how a training goes, from its config."""
    config, steps = trial.config, trial.training.total_steps
    return {
        "preset": config.preset,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "accumulate_steps": config.accumulate_steps,
        "steps_per_epoch": trial.training.steps_per_epoch,
        "total_steps": steps,
        "optimizer": config.optimizer,
        "weight_decay": config.weight_decay,
        "label_smoothing": config.label_smoothing,
        "learning_rate": {
            "schedule": config.schedule,
            "peak": config.peak_learning_rate(),
            "end": trial.training.learning_rate(steps - 1),
            "warmup_steps": round(trial.training.steps_per_epoch * config.warmup_epochs),
        },
        "augmentation": augmentation_words(config.augmentation),
        "extras": extra_words(config),
        "may_end_sooner": config.early_stopping is not None,
    }

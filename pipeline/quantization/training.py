"""Quantization-aware training: a short fine-tune of the rounded network, taught by the float one.

Loads Keras: it is imported where a training runs. Batch normalizations are folded before, so they are frozen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import keras
import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.metrics import calibration_summary
from pipeline.network import predict_logits
from pipeline.quantization.arithmetic import Range
from pipeline.quantization.config import FineTuneConfig, IntegerArithmetic
from pipeline.quantization.fake_quantization import fake_quantized, read_back
from pipeline.stages.base import Tell
from pipeline.training.backends import accelerator, jit_compile
from pipeline.training.batches import Images
from pipeline.training.config import Backend, TrainConfig
from pipeline.training.epoch import train_epoch
from pipeline.training.loader import Loader
from pipeline.training.optimizers import Schedule, make_optimizer
from pipeline.training.schedules import learning_rate
from pipeline.training.supervision import EpochPlace, Feed, Supervisor
from pipeline.training.training_model import TrainingModel

Validation = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tune gave.

    Attributes:
        network: The float network with weights that are whole steps, in the layers of the folded one.
        ranges: Of the activations.
        best_epoch: Whose weights these are; 0 for those before the first step.
        history: For each epoch, from 0: `epoch`, `validation_accuracy`, `validation_loss` of the rounded network, and
            after training also `loss`, `accuracy`, `learning_rate` and `seconds`.
    """

    network: keras.Model
    ranges: dict[str, Range]
    best_epoch: int
    history: list[dict[str, Any]]


def fine_tune(
    network: keras.Model,
    images: Images,
    validation: Validation,
    ranges: Mapping[str, Range],
    config: FineTuneConfig | None = None,
    *,
    arithmetic: IntegerArithmetic | None = None,
    teacher: keras.Model | None = None,
    tell: Tell | None = None,
) -> FineTuned:
    """Trains the rounded network and returns its best epoch by validation.

    Args:
        network: Folded, with the weights to start from; it is not changed.
        images: The training split.
        validation: Images (images, height, width, 3) uint8 and labels (images,).
        ranges: Of the activations, to start with.
        config: How it is trained.
        arithmetic: What integers can tell apart; None takes 8 bits.
        teacher: Gives logits (batch, classes) of the same images; None takes the network itself, in float.
        tell: Takes progress events.

    Raises:
        DataError: There are fewer images than one batch holds.
        StageError: The loss is no number.
        UnsupportedModelError: As in `fake_quantization.fake_quantized`.
    """
    config = config or FineTuneConfig()
    train = config.train_config()
    keras.utils.set_random_seed(config.seed)
    quantized = fake_quantized(network, ranges, arithmetic, learned_ranges=config.learned_ranges)
    best: list[npt.NDArray[Any]] | None = None
    best_epoch, history = 0, [_judged(quantized, validation, epoch=0)]
    with Loader(images, train, on_accelerator=False) as loader:
        steps = loader.steps_per_epoch
        model = _compiled(quantized, train, teacher=network if teacher is None else teacher, steps=steps)
        for epoch in range(config.epochs):
            started = time.monotonic()
            supervisor = _train_epoch(model, loader, train, epoch=epoch, tell=tell or _tell_nobody)
            record = _judged(quantized, validation, epoch=epoch + 1)
            record |= {name: float(supervisor.logs[name]) for name in ("loss", "accuracy")}
            record["learning_rate"] = _rate(train, steps, (epoch + 1) * steps - 1)
            record["seconds"] = round(time.monotonic() - started, 3)
            history.append(record)
            if _rank(record) > max(_rank(earlier) for earlier in history[:-1]):
                best, best_epoch = quantized.get_weights(), epoch + 1
            if tell is not None:
                total = config.epochs * steps
                tell({"epoch_done": record, "epochs": config.epochs, "done": (epoch + 1) * steps, "total": total})
    if best is None:
        quantized = fake_quantized(network, ranges, arithmetic)
    else:
        quantized.set_weights(best)
    tuned, found = read_back(quantized, network)
    return FineTuned(tuned, found, best_epoch, history)


def _compiled(quantized: keras.Model, train: TrainConfig, *, teacher: keras.Model, steps: int) -> TrainingModel:
    """The model of the training's own step, with the rounded network as the student."""
    taught = None
    if train.teacher is not None:
        taught = keras.models.clone_model(teacher)
        taught.set_weights(teacher.get_weights())
        taught.trainable = False
    model = TrainingModel(
        quantized,
        train,
        transform=lambda inputs: inputs["image"],
        schedule=Schedule(train, steps_per_epoch=steps),
        teacher=taught,
    )
    optimizer, backend = make_optimizer(train), cast("Backend", keras.backend.backend())
    model.compile(optimizer=optimizer, jit_compile=jit_compile(train.compile, backend))
    optimizer.build(model.trainable_variables)
    return model


def _train_epoch(model: TrainingModel, loader: Loader, train: TrainConfig, *, epoch: int, tell: Tell) -> Supervisor:
    """Trains one epoch and returns what watched it."""
    steps = loader.steps_per_epoch
    feed = Feed(loader.epoch(epoch), first_step=0)
    supervisor = Supervisor(
        EpochPlace(epoch, train.epochs, steps, 0, train.batch_size),
        feed,
        tell=tell,
        is_asynchronous=accelerator() is not None,
        learning_rate=lambda step: _rate(train, steps, step),
        diverged=lambda step, loss, _: StageError(
            f"The loss of quantization-aware training became {loss} in step {step + 1} of epoch {epoch + 1}. Lower "
            f"its learning_rate ({train.learning_rate:g})."
        ),
        save=lambda _: None,
        is_due=lambda _, __: False,
        save_every_s=float("inf"),
    )
    train_epoch(model, feed, supervisor, steps=steps)
    return supervisor


def _rate(train: TrainConfig, steps: int, step: int) -> float:
    return float(learning_rate(float(step), train, updates_per_epoch=steps))


def _judged(quantized: keras.Model, validation: Validation, *, epoch: int) -> dict[str, Any]:
    summary = calibration_summary(predict_logits(quantized, validation[0]), validation[1])
    return {"epoch": epoch, "validation_accuracy": summary["accuracy"], "validation_loss": summary["nll"]}


def _rank(record: Mapping[str, Any]) -> tuple[float, float]:
    """Orders epochs: the accuracy first, then the loss."""
    return record["validation_accuracy"], -record["validation_loss"]


def _tell_nobody(event: dict[str, Any]) -> None:
    """The progress goes nowhere."""

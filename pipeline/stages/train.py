"""Trains the network of a recipe on the training split and keeps the epoch that did best on validation.

This file and what it imports name no backend: Keras 3 runs on whichever `KERAS_BACKEND` says.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from models.pretrained import LoadedWeights, load_pretrained
from pipeline.errors import DataError, InputError, StageError
from pipeline.metrics import calibration_summary
from pipeline.network import ModelConfig, build_network, predict_logits, save_network, weights_fingerprint
from pipeline.stages.base import RESUME, Stage, Tell
from pipeline.training.checkpoint import CheckpointDirectory, TrainingState
from pipeline.training.config import Backend, TrainConfig
from pipeline.training.loader import epoch_of_batches

if TYPE_CHECKING:
    import keras

HISTORY_FILE = "history.json"


class TrainStage(Stage):
    """Reads `data`; writes the best weights, `network.json` and `history.json`."""

    stage: ClassVar[str] = "train"
    resumable: ClassVar[bool] = True

    model: ModelConfig
    train: TrainConfig
    backend: Backend = "tensorflow"

    def tool_names(self) -> tuple[str, ...]:
        """Keras, grain and the backend."""
        return ("grain", "keras", "numpy", self.backend)

    def key_config(self) -> dict[str, Any]:
        """Leaves out where weights lie: the fingerprint says what they are."""
        config = super().key_config()
        config["model"]["weights"] = None
        return config

    def fingerprint(self) -> str:
        """Stands for the weights that training starts from in the artifact's key.

        Raises:
            InputError: There are none at the path.
        """
        return weights_fingerprint(self.model.weights) if self.model.weights is not None else ""

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Trains, from the last whole epoch where an interrupted run left one.

        Raises:
            DataError: There are fewer images than one batch holds.
            StageError: The loss ran away, the backend is not installed, or the checkpoint is damaged.
        """
        try:
            import keras
        except ModuleNotFoundError as error:
            raise StageError(
                f"train.backend is {self.backend}, but {error.name} is not installed. Install it, or set "
                f"train.backend to tensorflow."
            ) from error
        data = inputs["data"]
        classes = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["classes"]
        images = np.load(data / "train_images.npy", mmap_mode="r")
        labels = np.load(data / "train_labels.npy")
        if len(images) < self.train.batch_size:
            raise DataError(
                f"train.batch_size is {self.train.batch_size}, but the training split has {len(images)} images. "
                f"Make the batch smaller or give more images."
            )
        validation = (np.load(data / "validation_images.npy"), np.load(data / "validation_labels.npy"))
        keras.utils.set_random_seed(self.train.seed)
        checkpoints = CheckpointDirectory(out_dir / RESUME)
        model, loaded = self._fresh_network(images, classes)
        resumed = checkpoints.load(model)
        state = resumed or TrainingState()
        resumed_after_epoch = resumed.epochs_done if resumed else None
        if resumed:
            tell({"message": f"going on after epoch {state.epochs_done} of {self.train.epochs}"})
        progress = _Progress(tell, self.train.epochs, len(images) // self.train.batch_size)
        while state.epochs_done < self.train.epochs:
            is_best = self._one_epoch(model, state, images, labels, validation, len(classes), progress)
            checkpoints.save(model, state, is_best=is_best)
        if self.train.epochs:
            checkpoints.load_best(model)
        else:
            self._take_as_it_is(model, state, validation, loaded)
        without_weights = self.model.model_copy(update={"weights": None})
        save_network(model, out_dir, config=without_weights, classes=classes)
        _replace_text(out_dir / HISTORY_FILE, json.dumps(state.history, indent=1) + "\n")
        return {
            "best_epoch": state.best_epoch,
            "validation_accuracy": state.best_accuracy,
            "validation_loss": state.best_loss,
            "parameters": int(model.count_params()),
            "training_images": len(images),
            "backend": self.backend,
            "train_seconds": sum(record["seconds"] for record in state.history),
            "resumed_after_epoch": resumed_after_epoch,
            "weights": None if loaded is None else {"source": loaded.source, "fresh_head": loaded.fresh_head},
        }

    def _fresh_network(
        self, images: npt.NDArray[np.uint8], classes: Sequence[str]
    ) -> tuple[keras.Model, LoadedWeights | None]:
        """Returns the network as training starts, compiled, and what its weights were taken from."""
        import keras

        model = build_network(self.model, images.shape[1:], len(classes))
        loaded = None
        if self.model.weights is not None:
            try:
                loaded = load_pretrained(
                    model,
                    name=self.model.name,
                    weights=self.model.weights,
                    width=self.model.options().get("width", 1.0),
                    classes=classes,
                )
            except ValueError as error:
                raise InputError(f"model.weights can't be used: {error}") from error
        model.compile(
            optimizer=make_optimizer(self.train, steps_per_epoch=len(images) // self.train.batch_size),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=self.train.label_smoothing),
            metrics=["accuracy"],
            jit_compile=False if self.backend == "tensorflow" else "auto",
        )
        return model, loaded

    def _take_as_it_is(
        self,
        model: keras.Model,
        state: TrainingState,
        validation: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
        loaded: LoadedWeights | None,
    ) -> None:
        """Judges a network that is not trained; its last layer must have come with the weights."""
        if loaded is None or loaded.fresh_head:
            raise InputError(
                f"train.epochs is 0, but {self.model.weights} brings no last layer for these classes: train it, or "
                f"give weights of a network with the same classes."
            )
        judged = calibration_summary(predict_logits(model, validation[0]), validation[1])
        state.best_accuracy, state.best_loss = judged["accuracy"], judged["nll"]

    def _one_epoch(
        self,
        model: keras.Model,
        state: TrainingState,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        validation: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
        num_classes: int,
        progress: _Progress,
    ) -> bool:
        """Trains one epoch, judges it, writes it into the state; returns whether it is the best so far."""
        started = time.monotonic()
        batches = epoch_of_batches(
            images,
            labels,
            num_classes=num_classes,
            batch_size=self.train.batch_size,
            augmentation=self.train.augmentation,
            seed=self.train.seed,
            epoch=state.epochs_done,
        )
        loss, accuracy = _train_on(model, batches, progress, state.epochs_done)
        if not math.isfinite(loss):
            raise self._diverged("training", loss, state)
        judged = calibration_summary(predict_logits(model, validation[0]), validation[1])
        if not math.isfinite(judged["nll"]):
            raise self._diverged("validation", judged["nll"], state)
        state.epochs_done += 1
        is_best = state.is_better(judged["accuracy"], judged["nll"])
        if is_best:
            state.best_epoch = state.epochs_done
            state.best_accuracy, state.best_loss = judged["accuracy"], judged["nll"]
        record = {
            "epoch": state.epochs_done,
            "loss": loss,
            "accuracy": accuracy,
            "validation_loss": judged["nll"],
            "validation_accuracy": judged["accuracy"],
            "seconds": round(time.monotonic() - started, 3),
        }
        state.history.append(record)
        progress.epoch_done(record)
        return is_best

    def _diverged(self, split: str, loss: float, state: TrainingState) -> StageError:
        return StageError(
            f"The {split} loss became {loss} in epoch {state.epochs_done + 1}. "
            f"Lower train.learning_rate ({self.train.learning_rate:g}) or lengthen train.warmup_epochs."
        )


def make_optimizer(config: TrainConfig, *, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Returns the optimizer with its schedule: linear warm-up, then a cosine to zero.

    Weight decay is decoupled (Loshchilov and Hutter 2019) and leaves out biases and batch-norm parameters.
    """
    import keras

    total = max(1, steps_per_epoch * config.epochs)
    warmup = round(steps_per_epoch * config.warmup_epochs) if config.epochs else 0
    schedule: Any = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else config.learning_rate,
        decay_steps=total - warmup,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    decay = config.weight_decay
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=decay)
    else:
        momentum = 0.9 if config.momentum is None else config.momentum
        optimizer = keras.optimizers.SGD(schedule, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _train_on(model: keras.Model, batches: Any, progress: _Progress, epoch: int) -> tuple[float, float]:
    """Runs one epoch of steps and returns its mean loss and accuracy; all batches have the same size."""
    losses: list[float] = []
    accuracies: list[float] = []
    for step, (images, targets) in enumerate(batches):
        result = model.train_on_batch(images, targets, return_dict=True)
        losses.append(float(result["loss"]))
        accuracies.append(float(result["accuracy"]))
        progress.step_done(epoch, step, losses, accuracies)
    return sum(losses) / len(losses), sum(accuracies) / len(accuracies)


class _Progress:
    """Tells how far the training is, a few times a second."""

    def __init__(self, tell: Tell, epochs: int, steps: int) -> None:
        self._tell, self._epochs, self._steps = tell, epochs, steps
        self._started: float | None = None
        self._last = time.monotonic()
        self._steps_seen = 0

    def step_done(self, epoch: int, step: int, losses: Sequence[float], accuracies: Sequence[float]) -> None:
        now = time.monotonic()
        if self._started is None:
            # The first step traces the network, which says nothing about the time of the others.
            self._started = now
            return
        self._steps_seen += 1
        if now - self._last < 0.25:
            return
        self._last = now
        left = (self._epochs - epoch) * self._steps - step - 1
        self._tell(
            {
                "epoch": epoch + 1,
                "epochs": self._epochs,
                "done": epoch * self._steps + step + 1,
                "total": self._epochs * self._steps,
                "loss": sum(losses) / len(losses),
                "accuracy": sum(accuracies) / len(accuracies),
                "left_s": left * (now - self._started) / self._steps_seen,
            }
        )

    def epoch_done(self, record: Mapping[str, Any]) -> None:
        self._tell(
            {
                "epoch_done": dict(record),
                "epochs": self._epochs,
                "done": record["epoch"] * self._steps,
                "total": self._epochs * self._steps,
            }
        )


def _replace_text(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")

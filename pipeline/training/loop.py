"""One training from its first step to its last. Loads Keras: it is imported where a training runs.

Each epoch, or the rest of one that was interrupted, is one call of Keras' `fit`; what happens between steps is in
`supervision`.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from models.pretrained import LoadedWeights, load_pretrained
from pipeline.errors import DataError, InputError, StageError
from pipeline.metrics import calibration_summary
from pipeline.network import ModelConfig, build_network, predict_logits
from pipeline.stages.base import Tell
from pipeline.training.averaging import Averages
from pipeline.training.backends import (
    accelerator,
    is_out_of_memory,
    jit_compile,
    resolve_precision,
)
from pipeline.training.checkpoint import Arrays, CheckpointDirectory, TrainingState, arrays_of
from pipeline.training.config import Backend, TrainConfig
from pipeline.training.distribution import Distribution, broadcast, set_up, share_directory
from pipeline.training.freezing import frozen_layers
from pipeline.training.images import TrainingImages
from pipeline.training.loader import Batch, Loader
from pipeline.training.optimizers import make_optimizer
from pipeline.training.phases import Phase, phase_of
from pipeline.training.schedules import learning_rate
from pipeline.training.supervision import EpochPlace, Feed, StepCallbacks, Supervisor
from pipeline.training.training_model import TrainingModel

Validation = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

NAMES_SHOWN = 5


class Training:
    """Everything that one training needs.

    Args:
        model: Which network.
        train: How it is trained.
        backend: On which Keras runs.
        images: The training split.
        validation: Images (images, height, width, 3) uint8 and labels (images,) that epochs are judged by.
        tell: Takes progress events.
        distribution: What it runs on; None sets that up.

    Attributes:
        network: That is trained, in the precision of the training.
        exported: The same in float32, with the weights that are judged: the averaged ones where there are such.
        loaded: What the initial weights were taken from; None where they are random.
        precision: Of the arithmetic.
        steps_per_epoch: Steps an epoch.
        total_steps: Of the whole training, if nothing ends it early.

    Raises:
        DataError: A label is no class, or there are fewer images than one batch holds.
        InputError: The config does not fit the network or the machine.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        train: TrainConfig,
        backend: Backend,
        images: TrainingImages,
        validation: Validation,
        tell: Tell,
        distribution: Distribution | None = None,
    ) -> None:
        _check_labels(images)
        self._model_config, self._config, self._backend = model, train, backend
        self._images, self._validation, self._tell = images, validation, tell
        self._distribution = set_up(train, backend) if distribution is None else distribution
        self._is_asynchronous = accelerator() is not None
        place = train.augmentation.place
        self._on_accelerator = place == "accelerator" or (place == "auto" and self._is_asynchronous)
        self.precision = resolve_precision(train.precision, backend)
        self.steps_per_epoch = self._make_loader().steps_per_epoch
        self.total_steps = self.steps_per_epoch * train.epochs
        keras.utils.set_random_seed(train.seed)
        with _dtype_policy(self.precision):
            self.network = build_network(model, (*images.size, 3), len(images.classes))
        if self.precision != "float32":
            self.network.layers[-1].dtype_policy = "float32"
        self.loaded = self._load_weights()
        with _undistributed():
            self.exported = build_network(
                model.model_copy(update={"weights": None}), (*images.size, 3), len(images.classes)
            )
        self._dropout_rates = {
            layer.name: layer.rate for layer in self.network.layers if isinstance(layer, keras.layers.Dropout)
        }
        self._averages = (
            Averages(train.averaging, self.network.weights, accumulate_steps=train.accumulate_steps)
            if train.averaging
            else None
        )
        self._teacher = self._load_teacher()
        self._phase: Phase | None = None
        self._model: TrainingModel | None = None

    def batches(self, epoch: int = 0, *, first_step: int = 0) -> Iterator[Batch]:
        """Yields batches as the training gets them."""
        phase = phase_of(epoch, self._config, self._images.size)
        with self._make_loader() as loader:
            yield from loader.epoch(epoch, first_step=first_step, size=phase.size, strength=phase.strength)

    def model(self, epoch: int = 0) -> TrainingModel:
        """Returns the compiled model as an epoch trains it, with the weights, averages and random numbers so far."""
        phase = phase_of(epoch, self._config, self._images.size)
        if self._model is None or phase != self._phase:
            self._enter(phase, first_step=epoch * self.steps_per_epoch)
        assert self._model is not None
        return self._model

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step of the training, from 0."""
        sums = self._config.accumulate_steps
        return float(learning_rate(float(step // sums), self._config, updates_per_epoch=self.steps_per_epoch / sums))

    def first_steps(self, count: int) -> list[float]:
        """Trains the first steps and returns the seconds that each took, after the one that traces the network."""
        model = self.model(0)
        seconds: list[float] = []
        for batch in self.batches():
            started = time.monotonic()
            weights = () if batch.weights is None else (batch.weights,)
            model.train_on_batch(batch.inputs, batch.targets, *weights)
            seconds.append(time.monotonic() - started)
            if len(seconds) > count:
                break
        return seconds[1:]

    def run(
        self,
        checkpoints: CheckpointDirectory,
        *,
        checkpoint_steps: int | None = None,
    ) -> TrainingState:
        """Trains to the end, from the last checkpoint where there is one; `exported` then holds the best weights.

        Args:
            checkpoints: Where checkpoints are.
            checkpoint_steps: Writes one every so many steps of an epoch; None goes by `train.checkpoint_minutes`.

        Raises:
            StageError: The loss ran away, memory was too small, or the checkpoint does not fit.
            StoreError: A checkpoint can't be written; the last one stays.
        """
        config = self._config
        share_directory(self._distribution, checkpoints.directory)
        state, metrics = self._resume(checkpoints)
        with self._make_loader() as loader:
            while state.epochs_done < config.epochs and not state.stopped_early:
                record = self._train_epoch(loader, state, metrics, checkpoints, checkpoint_steps)
                metrics = None
                best = self._judge(state, record)
                if self._distribution.is_primary:
                    checkpoints.save(self._variables(), state, best=best)
                self._tell(
                    {
                        "epoch_done": dict(state.history[-1]),
                        "epochs": config.epochs,
                        "done": state.epochs_done * self.steps_per_epoch,
                        "total": self.total_steps,
                    }
                )
        if config.epochs:
            share_directory(self._distribution, checkpoints.directory)
            with _undistributed():
                checkpoints.load_best(self.exported.weights)
        return state

    def take_as_it_is(self) -> TrainingState:
        """Judges a network that is not trained; its last layer must have come with the weights.

        Raises:
            InputError: It did not.
        """
        if self.loaded is None or self.loaded.fresh_head:
            raise InputError(
                f"train.epochs is 0, but {self._model_config.weights} brings no last layer for these classes: train "
                f"it, or give weights of a network with the same classes."
            )
        judged = self._judged()
        return TrainingState(best_accuracy=judged["accuracy"], best_loss=judged["nll"])

    def _make_loader(self) -> Loader:
        return Loader(
            self._images,
            self._config,
            process_index=self._distribution.process_index,
            process_count=self._distribution.process_count,
            on_accelerator=self._on_accelerator,
        )

    def _load_weights(self) -> LoadedWeights | None:
        config = self._model_config
        if config.weights is None:
            return None
        try:
            return load_pretrained(
                self.network,
                name=config.name,
                weights=config.weights,
                width=config.options().get("width", 1.0),
                classes=self._images.classes,
            )
        except ValueError as error:
            raise InputError(f"model.weights can't be used: {error}") from error

    def _load_teacher(self) -> keras.Model | None:
        if self._config.teacher is None:
            return None
        from pipeline.training.distillation import load_teacher

        # With growing images, the size that the teacher gets differs from phase to phase.
        shape = (None, None, 3) if self._config.progressive else (*self._images.size, 3)
        return load_teacher(self._config.teacher, classes=self._images.classes, input_shape=shape)

    def _enter(self, phase: Phase, *, first_step: int) -> None:
        """Makes the model of a phase; weights, averages and random numbers go on, and the optimizer where it can."""
        config = self._config
        keeps_optimizer = self._phase is not None and self._phase.is_frozen == phase.is_frozen
        optimizer = self._model.optimizer if self._model is not None and keeps_optimizer else None
        if config.freeze is not None:
            for layer in self.network.layers:
                layer.trainable = True
            for layer in frozen_layers(self.network, config.freeze.until) if phase.is_frozen else ():
                layer.trainable = False
        for layer in self.network.layers:
            if layer.name in self._dropout_rates and not layer.name.endswith("_drop_path"):
                layer.rate = self._dropout_rates[layer.name] * phase.strength
        if optimizer is None:
            optimizer = make_optimizer(
                config,
                steps_per_epoch=self.steps_per_epoch,
                first_step=first_step,
                scale_loss=self.precision == "float16",
            )
        model = TrainingModel(
            self._sized(phase.size),
            config,
            transform=self._transform(),
            averages=self._averages,
            teacher=self._teacher,
        )
        model.compile(optimizer=optimizer, jit_compile=jit_compile(config.compile, self._backend))
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._model, self._phase = model, phase

    def _sized(self, size: tuple[int, int]) -> keras.Model:
        """Returns the network for images of another size: the same layers, with the strides of the full size."""
        if size == self._images.size:
            return self.network
        return keras.models.clone_model(
            self.network,
            input_tensors=keras.Input((*size, 3), dtype=self.network.inputs[0].dtype),
            clone_function=lambda layer: layer,
        )

    def _transform(self) -> Callable[[Mapping[str, Any]], Any]:
        if not self._on_accelerator:
            return lambda inputs: inputs["image"]
        from pipeline.training.augmentation.accelerator import transform

        return transform

    def _variables(self) -> list[keras.Variable]:
        """Returns all that shapes the next step, in the order of checkpoints."""
        model = self._model
        assert model is not None
        return [*model.trained_state(), *model.optimizer.variables, *model.metrics_variables]

    def _resume(self, checkpoints: CheckpointDirectory) -> tuple[TrainingState, list[npt.NDArray[Any]] | None]:
        """Returns where the training stands, and the running metrics of an epoch that is to be gone on with."""
        state = checkpoints.state()
        if state is None:
            return TrainingState(), None
        # A checkpoint between two epochs was written by the model of the first.
        trained = state.epochs_done if state.steps_done else state.epochs_done - 1
        freeze = self._config.freeze
        freed = freeze is not None and freeze.epochs is not None and trained >= freeze.epochs
        self._enter(
            phase_of(trained, self._config, self._images.size),
            first_step=freeze.epochs * self.steps_per_epoch if freed and freeze and freeze.epochs else 0,
        )
        checkpoints.load(self._variables())
        where = f"step {state.steps_done} of epoch {state.epochs_done + 1}" if state.steps_done else ""
        self._tell({"message": f"going on after {where or f'epoch {state.epochs_done}'} of {self._config.epochs}"})
        self._tell({"history": state.history})
        assert self._model is not None
        return state, arrays_list(self._model.metrics_variables) if state.steps_done else None

    def _train_epoch(
        self,
        loader: Loader,
        state: TrainingState,
        metrics: list[npt.NDArray[Any]] | None,
        checkpoints: CheckpointDirectory,
        checkpoint_steps: int | None,
    ) -> dict[str, Any]:
        """Trains an epoch, or its rest, and returns its record."""
        epoch, first_step, started = state.epochs_done, state.steps_done, time.monotonic()
        before = state.epoch_seconds
        model = self.model(epoch)
        assert self._phase is not None
        feed = Feed(
            loader.epoch(epoch, first_step=first_step, size=self._phase.size, strength=self._phase.strength),
            first_step=first_step,
        )

        def save(steps: int) -> None:
            state.steps_done, state.epoch_seconds = steps, before + time.monotonic() - started
            if self._distribution.is_primary:
                checkpoints.save(self._variables(), state)

        place = EpochPlace(epoch, self._config.epochs, self.steps_per_epoch, first_step, self._config.batch_size)
        supervisor = Supervisor(
            place,
            feed,
            tell=self._tell,
            is_asynchronous=self._is_asynchronous,
            learning_rate=self.learning_rate,
            diverged=lambda step, loss, rows: self._diverged(epoch, step, loss, rows),
            save=save,
            save_every_s=self._config.checkpoint_minutes * 60,
            save_every_steps=checkpoint_steps,
            metrics=metrics,
        )
        self._fit(model, feed, supervisor, steps=self.steps_per_epoch - first_step)
        rate = supervisor.images_per_second()
        return {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self.steps_per_epoch,
            "loss": float(supervisor.logs["loss"]),
            "accuracy": float(supervisor.logs["accuracy"]),
            "learning_rate": self.learning_rate((epoch + 1) * self.steps_per_epoch - 1),
            "images_per_second": rate,
            "started": started - before,
        }

    def _fit(self, model: TrainingModel, feed: Feed, supervisor: Supervisor, *, steps: int) -> None:
        callbacks = StepCallbacks([supervisor], add_history=True, add_progbar=False, model=model, epochs=1, steps=steps)
        try:
            model.fit(feed.tuples(), epochs=1, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
        except Exception as error:
            if feed.error is not None:
                raise feed.error from error
            if is_out_of_memory(error):
                raise self._out_of_memory(error) from error
            raise
        finally:
            feed.close()

    def _judge(self, state: TrainingState, record: dict[str, Any]) -> Arrays | None:
        """Writes a finished epoch into the state; returns its weights where they are the best so far."""
        epoch = state.epochs_done + 1
        with _undistributed():
            for target, source in zip(self.exported.weights, self._judged_weights(), strict=True):
                target.assign(keras.ops.convert_to_numpy(source.value))
        judged = self._judged()
        if not math.isfinite(judged["nll"]):
            raise StageError(
                f"The validation loss became {judged['nll']} in epoch {epoch}. Lower train.learning_rate "
                f"({self._config.learning_rate:g}) or lengthen train.warmup_epochs."
            )
        state.epochs_done, state.steps_done, state.epoch_seconds = epoch, 0, 0.0
        is_best = state.is_better(judged["accuracy"], judged["nll"])
        if is_best:
            state.best_epoch = epoch
            state.best_accuracy, state.best_loss = judged["accuracy"], judged["nll"]
        self._look_for_an_end(state, judged)
        started = record.pop("started")
        state.history.append(
            {
                **record,
                "validation_loss": judged["nll"],
                "validation_accuracy": judged["accuracy"],
                "seconds": round(time.monotonic() - started, 3),
            }
        )
        return arrays_of(self.exported.weights) if is_best else None

    def _judged_weights(self) -> list[keras.Variable]:
        return self._averages.values if self._averages is not None else list(self.network.weights)

    def _judged(self) -> dict[str, float]:
        """Returns accuracy and loss of `exported` on the validation split, as process 0 has them."""
        judged: dict[str, float] = {}
        if self._distribution.is_primary:
            with _undistributed():
                judged = calibration_summary(predict_logits(self.exported, self._validation[0]), self._validation[1])
        found: dict[str, float] = json.loads(broadcast(self._distribution, json.dumps(judged).encode()))
        return found

    def _look_for_an_end(self, state: TrainingState, judged: Mapping[str, float]) -> None:
        stopping = self._config.early_stopping
        if stopping is None:
            return
        value = judged["accuracy"] if stopping.monitor == "accuracy" else -judged["nll"]
        if state.stopping_best is None or value > state.stopping_best + stopping.min_delta:
            state.stopping_best, state.stale_epochs = value, 0
        else:
            state.stale_epochs += 1
        state.stopped_early = state.stale_epochs >= stopping.patience_epochs and state.epochs_done < self._config.epochs

    def _diverged(self, epoch: int, step: int, loss: float, rows: npt.NDArray[np.int64]) -> StageError:
        names = self._images.names(rows) if len(rows) else []
        shown = ", ".join(names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        rate = self.learning_rate(epoch * self.steps_per_epoch + step)
        return StageError(
            f"The training loss became {loss} in step {step + 1} of epoch {epoch + 1}, at a learning rate of {rate:g}. "
            f"Its batch: {shown or 'unknown'}{more}. Lower train.learning_rate ({self._config.learning_rate:g}), "
            f"lengthen train.warmup_epochs, or give train.clip_norm. The last checkpoint is kept.",
            details="\n".join(names),
        )

    def _out_of_memory(self, error: Exception) -> StageError:
        """Returns the error that names a batch that fits, found by training one step of smaller ones."""
        size = self._config.batch_size
        known = f"Memory is too small for train.batch_size {size} ({_first_line(error)})."
        # What the failed step held must be given back before a smaller one is tried.
        self._model = self._teacher = self._averages = None
        error.__traceback__ = None
        if self._distribution.process_count > 1:
            return StageError(f"{known} Make the batch smaller, and train.accumulate_steps larger by the same factor.")
        fitting = self._largest_fitting_batch(size)
        if fitting is None:
            return StageError(f"{known} Not even a batch of 2 fits: choose a smaller network or smaller images.")
        return StageError(
            f"{known} A batch of {fitting} fits: set train.batch_size to {fitting} and train.accumulate_steps to "
            f"{self._config.accumulate_steps * math.ceil(size / fitting)} for the same updates."
        )

    def _largest_fitting_batch(self, size: int) -> int | None:
        while size > 2:
            size = max(2, size // 2)
            size += size % 2
            gc.collect()
            try:
                Training(
                    model=self._model_config,
                    train=self._config.model_copy(update={"batch_size": size, "devices": 1, "workers": 0}),
                    backend=self._backend,
                    images=self._images,
                    validation=self._validation,
                    tell=self._tell,
                    distribution=Distribution(),
                ).first_steps(1)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return size
        return None


def history_csv(history: list[dict[str, Any]]) -> str:
    """Returns the records of a training as CSV, one row an epoch."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(history[0]) if history else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return stream.getvalue()


def arrays_list(variables: list[keras.Variable]) -> list[npt.NDArray[Any]]:
    """Returns the values of variables."""
    return [np.array(keras.ops.convert_to_numpy(each.value)) for each in variables]


def _check_labels(images: TrainingImages) -> None:
    classes = len(images.classes)
    wrong = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {len(images.labels)} training labels are outside 0..{classes - 1}, the first is "
            f"{int(images.labels[wrong[0]])} in row {int(wrong[0])}, but the data has {classes} classes. Mend the "
            f"labels, or name all classes."
        )


@contextlib.contextmanager
def _dtype_policy(precision: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _undistributed() -> Iterator[None]:
    """Leaves variables and arrays on this process' own device."""
    before = keras.distribution.distribution()
    if before is None:
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]

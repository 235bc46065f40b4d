"""One training from its first step to its last. Loads Keras: it is imported where a training runs.

The steps of an epoch, or of the rest of one that was interrupted, are in `epoch`; what happens between them is in
`supervision`.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from models.pretrained import LoadedWeights
from pipeline.errors import DataError, InputError, StageError
from pipeline.metrics import calibration_summary
from pipeline.network import ModelConfig, predict_logits
from pipeline.stages.base import Tell
from pipeline.training.assembly import Assembly, undistributed
from pipeline.training.backends import accelerator, is_out_of_memory, resolve_precision
from pipeline.training.checkpoint import Arrays, CheckpointDirectory, TrainingState, arrays_of
from pipeline.training.config import Backend, TrainConfig
from pipeline.training.distribution import Distribution, broadcast, set_up, share_directory
from pipeline.training.epoch import train_epoch
from pipeline.training.images import TrainingImages
from pipeline.training.loader import Batch, Loader
from pipeline.training.phases import Phase, phase_of
from pipeline.training.schedules import learning_rate
from pipeline.training.supervision import EpochPlace, Feed, Supervisor
from pipeline.training.training_model import TrainingModel

Validation = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

NAMES_SHOWN = 5
SMALLEST_BATCH = 2


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
        self._assembly: Assembly | None = Assembly(
            model,
            train,
            backend=backend,
            classes=images.classes,
            size=images.size,
            precision=self.precision,
            steps_per_epoch=self.steps_per_epoch,
            on_accelerator=self._on_accelerator,
        )

    @property
    def assembly(self) -> Assembly:
        """The network, its averages and its optimizer.

        Raises:
            StageError: They were given up after memory was too small.
        """
        if self._assembly is None:
            raise StageError("The training has given up its network: memory was too small.")
        return self._assembly

    @property
    def network(self) -> keras.Model:
        """The network that is trained, in the precision of the training."""
        return self.assembly.network

    @property
    def exported(self) -> keras.Model:
        """The network in float32; after `run`, with the best weights, averaged where the config says so."""
        return self.assembly.exported

    @property
    def loaded(self) -> LoadedWeights | None:
        """What the initial weights were taken from; None where they are random."""
        return self.assembly.loaded

    def model(self, epoch: int = 0) -> TrainingModel:
        """Returns the compiled model as an epoch trains it, with the weights, averages and random numbers so far."""
        return self.assembly.model(self._phase(epoch), epoch=epoch)

    def batches(self, epoch: int = 0, *, first_step: int = 0) -> Iterator[Batch]:
        """Yields an epoch's batches as the training gets them."""
        phase = self._phase(epoch)
        with self._make_loader() as loader:
            yield from loader.epoch(epoch, first_step=first_step, size=phase.size, strength=phase.strength)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step of the training, from 0."""
        sums = self._config.accumulate_steps
        return float(learning_rate(float(step // sums), self._config, updates_per_epoch=self.steps_per_epoch / sums))

    def first_steps(self, count: int) -> list[float]:
        """Trains the first steps and returns the seconds that each took, after the one that traces the network."""
        model = self.model()
        seconds: list[float] = []
        for batch in self.batches():
            started = time.monotonic()
            model.train_on_batch(*batch.as_keras())
            seconds.append(time.monotonic() - started)
            if len(seconds) > count:
                break
        return seconds[1:]

    def run(self, checkpoints: CheckpointDirectory, *, checkpoint_steps: int | None = None) -> TrainingState:
        """Trains to the end, from the last checkpoint where there is one; `exported` then holds the best weights.

        Args:
            checkpoints: Where checkpoints are.
            checkpoint_steps: Writes one every so many steps of an epoch; None goes by `train.checkpoint_minutes`.

        Raises:
            StageError: The loss ran away, memory was too small, or the checkpoint does not fit.
            StoreError: A checkpoint can't be written; the last one stays.
        """
        share_directory(self._distribution, checkpoints.directory)
        state, metrics = self._resume(checkpoints)
        with self._make_loader() as loader:
            while state.epochs_done < self._config.epochs and not state.stopped_early:
                started = time.monotonic() - state.epoch_seconds
                record = self._train_epoch(loader, state, metrics, checkpoints, checkpoint_steps)
                metrics = None
                best = self._judge(state, record, started=started)
                if self._distribution.is_primary:
                    checkpoints.save(self.assembly.variables(), state, best=best)
                done, epochs = state.epochs_done * self.steps_per_epoch, self._config.epochs
                self._tell({"epoch_done": dict(record), "epochs": epochs, "done": done, "total": self.total_steps})
        if self._config.epochs:
            share_directory(self._distribution, checkpoints.directory)
            with undistributed():
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
        self.assembly.export()
        judged = self._judged()
        return TrainingState(best_accuracy=judged["accuracy"], best_loss=judged["nll"])

    def _phase(self, epoch: int) -> Phase:
        return phase_of(epoch, self._config, self._images.size)

    def _make_loader(self) -> Loader:
        return Loader(
            self._images,
            self._config,
            process_index=self._distribution.process_index,
            process_count=self._distribution.process_count,
            on_accelerator=self._on_accelerator,
        )

    def _resume(self, checkpoints: CheckpointDirectory) -> tuple[TrainingState, list[npt.NDArray[Any]] | None]:
        """Returns where the training stands, and the running metrics of an epoch that is to be gone on with."""
        state = checkpoints.state()
        if state is None:
            return TrainingState(), None
        # A checkpoint between two epochs was written by the model of the first.
        trained = state.epochs_done if state.steps_done else state.epochs_done - 1
        freeze = self._config.freeze
        freed_at = freeze.epochs if freeze is not None and freeze.epochs is not None else 0
        model = self.assembly.model(self._phase(trained), epoch=freed_at if trained >= freed_at else 0)
        checkpoints.load(self.assembly.variables())
        where = f"step {state.steps_done} of epoch {state.epochs_done + 1}, of"
        after = where if state.steps_done else f"epoch {state.epochs_done} of"
        self._tell({"message": f"going on after {after} {self._config.epochs}"})
        self._tell({"history": state.history})
        if not state.steps_done:
            return state, None
        return state, [np.array(keras.ops.convert_to_numpy(each.value)) for each in model.metrics_variables]

    def _train_epoch(
        self,
        loader: Loader,
        state: TrainingState,
        metrics: list[npt.NDArray[Any]] | None,
        checkpoints: CheckpointDirectory,
        checkpoint_steps: int | None,
    ) -> dict[str, Any]:
        """Trains an epoch, or its rest, and returns what was seen of it."""
        epoch, first_step = state.epochs_done, state.steps_done
        started = time.monotonic() - state.epoch_seconds
        phase, model = self._phase(epoch), self.model(epoch)
        batches = loader.epoch(epoch, first_step=first_step, size=phase.size, strength=phase.strength)
        feed = Feed(batches, first_step=first_step)

        def save(steps: int) -> None:
            state.steps_done, state.epoch_seconds = steps, time.monotonic() - started
            if self._distribution.is_primary:
                checkpoints.save(self.assembly.variables(), state)

        supervisor = Supervisor(
            EpochPlace(epoch, self._config.epochs, self.steps_per_epoch, first_step, self._config.batch_size),
            feed,
            tell=self._tell,
            is_asynchronous=self._is_asynchronous,
            learning_rate=self.learning_rate,
            diverged=lambda step, loss, rows: self._diverged(epoch, step, loss, rows),
            save=save,
            is_due=self._agreed_due,
            save_every_s=self._config.checkpoint_minutes * 60,
            save_every_steps=checkpoint_steps,
            metrics=metrics,
        )
        self._fit(model, feed, supervisor, steps=self.steps_per_epoch - first_step)
        done = (epoch + 1) * self.steps_per_epoch
        return {
            "epoch": epoch + 1,
            "step": done,
            "loss": float(supervisor.logs["loss"]),
            "accuracy": float(supervisor.logs["accuracy"]),
            "learning_rate": self.learning_rate(done - 1),
            "images_per_second": supervisor.images_per_second(),
        }

    def _fit(self, model: TrainingModel, feed: Feed, supervisor: Supervisor, *, steps: int) -> None:
        try:
            train_epoch(model, feed, supervisor, steps=steps)
        except Exception as error:
            if feed.error is not None or isinstance(error, StageError) or not is_out_of_memory(error):
                raise
            known = error
        else:
            return
        # What the failed step held must be given back before a smaller one is tried, so the error's frames go first.
        del model, feed, supervisor
        raise self._out_of_memory(str(known.with_traceback(None)))

    def _agreed_due(self, step: int, is_due: Callable[[], bool]) -> bool:
        """Returns whether a checkpoint is due, as process 0 sees it: all of them stop for it together."""
        if self._distribution.process_count == 1:
            return is_due()
        return step % 64 == 0 and broadcast(self._distribution, b"\1" if is_due() else b"\0") == b"\1"

    def _judge(self, state: TrainingState, record: dict[str, Any], *, started: float) -> Arrays | None:
        """Writes a finished epoch into its record and the state; returns its weights where they are the best so far."""
        self.assembly.export()
        judged = self._judged()
        if not math.isfinite(judged["nll"]):
            raise StageError(
                f"The validation loss became {judged['nll']} in epoch {record['epoch']}. Lower train.learning_rate "
                f"({self._config.learning_rate:g}) or lengthen train.warmup_epochs. The last checkpoint is kept."
            )
        state.epochs_done, state.steps_done, state.epoch_seconds = record["epoch"], 0, 0.0
        is_best = state.is_better(judged["accuracy"], judged["nll"])
        if is_best:
            state.best_epoch = record["epoch"]
            state.best_accuracy, state.best_loss = judged["accuracy"], judged["nll"]
        self._look_for_an_end(state, judged)
        record["validation_loss"], record["validation_accuracy"] = judged["nll"], judged["accuracy"]
        record["seconds"] = round(time.monotonic() - started, 3)
        state.history.append(record)
        return arrays_of(self.exported.weights) if is_best else None

    def _judged(self) -> dict[str, float]:
        """Returns accuracy and loss of `exported` on the validation split, as process 0 has them."""
        judged: dict[str, float] = {}
        if self._distribution.is_primary:
            with undistributed():
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
        is_over = state.epochs_done >= self._config.epochs
        state.stopped_early = state.stale_epochs >= stopping.patience_epochs and not is_over

    def _diverged(self, epoch: int, step: int, loss: float, rows: npt.NDArray[np.int64]) -> StageError:
        names = self._images.names(rows)
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        rate = self.learning_rate(epoch * self.steps_per_epoch + step)
        return StageError(
            f"The training loss became {loss} in step {step + 1} of epoch {epoch + 1}, at a learning rate of {rate:g}. "
            f"Its batch: {', '.join(names[:NAMES_SHOWN])}{more}. Lower train.learning_rate "
            f"({self._config.learning_rate:g}), lengthen train.warmup_epochs, or give train.clip_norm. The last "
            f"checkpoint is kept.",
            details="\n".join(names),
        )

    def _out_of_memory(self, reason: str) -> StageError:
        """Returns the error that names a batch that fits, found by training a step of smaller and smaller ones."""
        size = self._config.batch_size
        first = next((line.strip() for line in reason.splitlines() if line.strip()), "")[:200]
        known = f"Memory is too small for train.batch_size {size} ({first})."
        self._assembly = None
        if self._distribution.process_count > 1:
            return StageError(f"{known} Make the batch smaller and train.accumulate_steps larger by the same factor.")
        fitting = next((smaller for smaller in _halves(size) if self._fits(smaller)), None)
        if fitting is None:
            return StageError(
                f"{known} Not even a batch of {SMALLEST_BATCH} fits: choose a smaller network or smaller images."
            )
        sums = self._config.accumulate_steps * math.ceil(size / fitting)
        return StageError(
            f"{known} A batch of {fitting} fits: set train.batch_size to {fitting}, and train.accumulate_steps to "
            f"{sums} for updates from as many images."
        )

    def _fits(self, batch_size: int) -> bool:
        gc.collect()
        try:
            # By the largest images, which a training with progressive resizing comes to last.
            config = {"batch_size": batch_size, "devices": 1, "workers": 0, "progressive": None}
            Training(
                model=self._model_config,
                train=self._config.model_copy(update=config),
                backend=self._backend,
                images=self._images,
                validation=self._validation,
                tell=self._tell,
                distribution=Distribution(),
            ).first_steps(1)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True


def _halves(size: int) -> Iterator[int]:
    """Yields smaller and smaller even batches."""
    while size > SMALLEST_BATCH:
        size = max(SMALLEST_BATCH, size // 4 * 2)
        yield size


def _check_labels(images: TrainingImages) -> None:
    classes = len(images.classes)
    wrong = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {len(images.labels)} training labels are outside 0..{classes - 1}, the first is "
            f"{int(images.labels[wrong[0]])} in row {int(wrong[0])}, but the data has {classes} classes. Mend the "
            f"labels, or name all classes."
        )

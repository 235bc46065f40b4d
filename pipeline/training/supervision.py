"""Watches a training from step to step: losses, checkpoints, progress. Loads Keras."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.stages.base import Tell
from pipeline.training.loader import Batch
from pipeline.training.training_model import STEP_LOSS, TrainingModel

LOOK_EVERY = 16
"""Steps between two looks at the losses on an accelerator."""

LOOK_BEHIND = 2
"""So many steps stay unlooked at on an accelerator, so that it has work while the host looks."""

TELL_EVERY_S = 0.25


class Feed:
    """Batches on their way into Keras, whose `fit` reads ahead in a thread of its own.

    Args:
        batches: Of the loader.
        first_step: Number of the first one in its epoch.
    """

    def __init__(self, batches: Iterator[Batch], *, first_step: int) -> None:
        self._batches, self._first_step = batches, first_step
        self._rows: dict[int, npt.NDArray[np.int64]] = {}
        self._is_open = True
        self.error: Exception | None = None

    def tuples(self) -> Iterator[tuple[Any, ...]]:
        """Yields what Keras takes; an error of the loader is kept, for backends turn it into one of theirs."""
        try:
            for step, batch in enumerate(self._batches, self._first_step):
                if not self._is_open:
                    return
                self._rows[step] = batch.rows
                yield batch.as_keras()
        except Exception as error:
            self.error = error
            raise

    def rows_of(self, step: int) -> npt.NDArray[np.int64]:
        """Returns the rows of a step's batch, as long as it was not let go."""
        return self._rows.get(step, np.zeros(0, np.int64))

    def let_go(self, step: int) -> None:
        """Forgets the rows of a step and of all before it."""
        for known in [known for known in list(self._rows) if known <= step]:
            del self._rows[known]

    def close(self) -> None:
        """Lets a thread that still reads come to its end."""
        self._is_open = False


@dataclass(frozen=True)
class EpochPlace:
    """Where an epoch lies in a training.

    Attributes:
        epoch: Which, from 0.
        epochs: Of the whole training.
        steps: An epoch.
        first_step: Where this part of the epoch starts.
        batch_size: Images a step.
    """

    epoch: int
    epochs: int
    steps: int
    first_step: int
    batch_size: int


class Supervisor(keras.callbacks.Callback):  # type: ignore[misc]
    """One epoch's (or its rest's) watch.

    Args:
        place: Of the epoch.
        feed: Its batches.
        tell: Takes progress events.
        is_asynchronous: Whether steps run on while the host goes on; else each loss is looked at at once.
        learning_rate: Of a step of the training, from 0.
        diverged: Makes the error of a loss that is no number, from (step in the epoch, loss, rows).
        save: Writes a checkpoint after so many steps of the epoch.
        is_due: Whether one is written after so many steps, from what this process' clock says.
        save_every_s: How often.
        save_every_steps: How often, in steps; None goes by time.
        metrics: Values of the running metrics that the epoch goes on with.
    """

    def __init__(
        self,
        place: EpochPlace,
        feed: Feed,
        *,
        tell: Tell,
        is_asynchronous: bool,
        learning_rate: Callable[[int], float],
        diverged: Callable[[int, float, npt.NDArray[np.int64]], StageError],
        save: Callable[[int], None],
        is_due: Callable[[int, Callable[[], bool]], bool],
        save_every_s: float,
        save_every_steps: int | None = None,
        metrics: list[npt.NDArray[Any]] | None = None,
    ) -> None:
        super().__init__()
        self._place, self._feed, self._tell = place, feed, tell
        self._look_every, self._behind = (LOOK_EVERY, LOOK_BEHIND) if is_asynchronous else (1, 0)
        self._learning_rate, self._diverged = learning_rate, diverged
        self._save, self._save_every_s, self._save_every_steps = save, save_every_s, save_every_steps
        self._is_due = is_due
        self._metrics = metrics
        self.logs: dict[str, float] = {}
        self._pending: deque[tuple[int, Any, Any]] = deque()
        self._step_seconds: list[float] = []
        self._last_look: tuple[float, int] | None = None
        self._last_tell = self._last_save = time.monotonic()

    def images_per_second(self) -> float | None:
        """Returns the median over steps; None where there were too few."""
        return self._place.batch_size / statistics.median(self._step_seconds) if self._step_seconds else None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Restores the running metrics, which Keras has just reset."""
        if self._metrics is not None:
            for variable, value in zip(self.model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keeps the step's loss, and looks, tells and saves where that is due."""
        step = self._place.first_step + batch
        self._pending.append((step, logs[STEP_LOSS], logs))
        is_last = step + 1 == self._place.steps
        if len(self._pending) >= self._look_every + self._behind:
            self._look(self._behind)
        if not is_last and self._save_is_due(step + 1):
            self._look(0)
            _synchronize(self.model)
            self._save(step + 1)
            self._last_save = time.monotonic()
            self._last_look = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Looks at what is left, and keeps the epoch's metrics as `logs`."""
        self._look(0)
        self.logs = logs

    def _save_is_due(self, steps: int) -> bool:
        if self._save_every_steps is not None:
            return steps % self._save_every_steps == 0
        return self._is_due(steps, lambda: time.monotonic() - self._last_save >= self._save_every_s)

    def _look(self, behind: int) -> None:
        logs = None
        step = -1
        while len(self._pending) > behind:
            step, loss, logs = self._pending.popleft()
            value = float(keras.ops.convert_to_numpy(loss))
            if not math.isfinite(value):
                raise self._diverged(step, value, self._feed.rows_of(step))
        if logs is None:
            return
        self._feed.let_go(step)
        now = time.monotonic()
        if self._last_look is not None:
            steps = step - self._last_look[1]
            self._step_seconds.append((now - self._last_look[0]) / steps)
        self._last_look = (now, step)
        if now - self._last_tell >= TELL_EVERY_S and self._step_seconds:
            self._last_tell = now
            self._report(step, logs)

    def _report(self, step: int, logs: Any) -> None:
        place = self._place
        done, total = place.epoch * place.steps + step + 1, place.epochs * place.steps
        seconds = statistics.median(self._step_seconds)
        self._tell(
            {
                "epoch": place.epoch + 1,
                "epochs": place.epochs,
                "done": done,
                "total": total,
                "step": done,
                "loss": float(keras.ops.convert_to_numpy(logs["loss"])),
                "accuracy": float(keras.ops.convert_to_numpy(logs["accuracy"])),
                "learning_rate": self._learning_rate(done - 1),
                "images_per_second": place.batch_size / seconds,
                "left_s": (total - done) * seconds,
            }
        )


def _synchronize(model: TrainingModel) -> None:
    """Brings the values of a running epoch into the variables, where the backend keeps them elsewhere."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()

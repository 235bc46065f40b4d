"""What an interrupted training goes on from: the last whole epoch, written by one rename.

Arrays are stored, not a Keras file: that one knows neither the state of the dropout layers' random numbers nor which
variables the optimizer spares from weight decay, and a resumed training would end with other weights.
"""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StageError

if TYPE_CHECKING:
    import keras

_DAMAGED = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

STATE_FILE = "state.json"
LAST_FILE = "last.npz"
BEST_FILE = "best.npz"


@dataclass
class TrainingState:
    """Where a training stands.

    Attributes:
        epochs_done: Whole epochs behind it.
        best_epoch: Epoch of the best validation result, from 1; 0 before the first.
        best_accuracy: Validation accuracy of that epoch, 0..1.
        best_loss: Its validation loss (negative log-likelihood, nats).
        history: One record an epoch.
    """

    epochs_done: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)

    def is_better(self, accuracy: float, loss: float) -> bool:
        """Whether a validation result beats the best so far: by accuracy, then by loss."""
        return (accuracy, -loss) > (self.best_accuracy, -self.best_loss)


class CheckpointDirectory:
    """Holds one checkpoint; a new one replaces it whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def _current(self) -> Path:
        return self._directory / "current"

    def save(self, model: keras.Model, state: TrainingState, *, is_best: bool) -> None:
        """Writes a checkpoint: network, optimizer and random state, the best weights so far, the state."""
        fresh = self._directory / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _write(fresh / LAST_FILE, [*_network_variables(model), *model.optimizer.variables])
        if is_best:
            _write(fresh / BEST_FILE, model.weights)
        else:
            shutil.copyfile(self._current / BEST_FILE, fresh / BEST_FILE)
        (fresh / STATE_FILE).write_text(json.dumps(asdict(state)), encoding="utf-8")
        previous = self._directory / "previous"
        shutil.rmtree(previous, ignore_errors=True)
        if self._current.exists():
            self._current.rename(previous)
        fresh.rename(self._current)
        shutil.rmtree(previous, ignore_errors=True)

    def load(self, model: keras.Model) -> TrainingState | None:
        """Puts what the last checkpoint holds into a freshly compiled network; None where there is no checkpoint.

        A run that was killed between the two renames of `save` left its checkpoint as `previous`.

        Raises:
            StageError: The checkpoint is damaged or belongs to another network.
        """
        previous = self._directory / "previous"
        if not self._current.exists() and previous.exists():
            previous.rename(self._current)
        if not (self._current / STATE_FILE).exists():
            return None
        try:
            state = TrainingState(**json.loads((self._current / STATE_FILE).read_text(encoding="utf-8")))
            model.optimizer.build(model.trainable_variables)
            _read(self._current / LAST_FILE, [*_network_variables(model), *model.optimizer.variables])
        except _DAMAGED as error:
            raise self._damaged(error) from error
        return state

    def load_best(self, model: keras.Model) -> None:
        """Puts the weights of the best epoch into a network.

        Raises:
            StageError: They can't be read.
        """
        try:
            _read(self._current / BEST_FILE, model.weights)
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StageError:
        return StageError(
            f"The checkpoint in {self._current} can't be read: {error}. Remove that directory to train from the start."
        )


def _network_variables(model: keras.Model) -> list[Any]:
    """Returns weights, moving averages and the state of random numbers; metrics start anew in every epoch."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _write(path: Path, variables: Iterable[Any]) -> None:
    import keras

    arrays = {f"{index:05d}": keras.ops.convert_to_numpy(variable.value) for index, variable in enumerate(variables)}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def _read(path: Path, variables: Iterable[Any]) -> None:
    known = list(variables)
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        if len(archive.files) != len(known):
            raise ValueError(f"{path.name} holds {len(archive.files)} arrays, the network has {len(known)}")
        for name, variable in zip(archive.files, known, strict=True):
            if archive[name].shape != tuple(variable.shape):
                raise ValueError(f"an array is {archive[name].shape}, {variable.path} is {tuple(variable.shape)}")
            variable.assign(archive[name])

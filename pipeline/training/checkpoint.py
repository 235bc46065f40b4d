"""What an interrupted training goes on from: its last checkpoint, written by one rename.

Arrays are stored, not a Keras file: that one knows neither the state of the dropout layers' random numbers nor which
variables the optimizer spares from weight decay, and a resumed training would end with other weights.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError, StoreError
from pipeline.store_errors import store_error

if TYPE_CHECKING:
    import keras

_DAMAGED = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

STATE_FILE = "state.json"
LAST_FILE = "last.npz"
BEST_FILE = "best.npz"

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass
class TrainingState:
    """Where a training stands.

    Attributes:
        epochs_done: Whole epochs behind it.
        steps_done: Steps behind it in the epoch that follows; 0 between epochs.
        best_epoch: Epoch of the best validation result, from 1; 0 before the first.
        best_accuracy: Validation accuracy of that epoch, 0..1.
        best_loss: Its validation loss (negative log-likelihood, nats).
        stale_epochs: Epochs since early stopping saw something better.
        stopping_best: The best that early stopping saw, higher is better; None before the first epoch.
        stopped_early: Whether early stopping ended the training.
        epoch_seconds: How long the unfinished epoch was trained before the checkpoint.
        history: One record an epoch.
    """

    epochs_done: int = 0
    steps_done: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = float("inf")
    stale_epochs: int = 0
    stopping_best: float | None = None
    stopped_early: bool = False
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def is_better(self, accuracy: float, loss: float) -> bool:
        """Whether a validation result beats the best so far: by accuracy, then by loss."""
        return (accuracy, -loss) > (self.best_accuracy, -self.best_loss)


class CheckpointDirectory:
    """Holds one checkpoint; a new one replaces it whole or not at all.

    Args:
        directory: Where.
        recipe: What the training is made with; a checkpoint of another one is refused.
    """

    def __init__(self, directory: Path, *, recipe: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        self._recipe = json.loads(json.dumps(recipe)) if recipe is not None else None

    @property
    def _current(self) -> Path:
        return self.directory / "current"

    def save(self, variables: Iterable[keras.Variable], state: TrainingState, *, best: Arrays | None = None) -> None:
        """Writes a checkpoint.

        Args:
            variables: All that shapes the next step, always in the same order.
            state: Where the training stands.
            best: The weights of the best epoch, where that is the one just ended; else those of the last checkpoint
                stay.

        Raises:
            StoreError: It can't be written; the last checkpoint stays.
        """
        fresh = self.directory / "fresh"
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            _write(fresh / LAST_FILE, arrays_of(variables))
            if best is not None:
                _write(fresh / BEST_FILE, best)
            elif (self._current / BEST_FILE).exists():
                _link(self._current / BEST_FILE, fresh / BEST_FILE)
            text = json.dumps({"state": asdict(state), "recipe": self._recipe})
            (fresh / STATE_FILE).write_text(text, encoding="utf-8")
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise self._not_written(error) from error
        previous = self.directory / "previous"
        shutil.rmtree(previous, ignore_errors=True)
        if self._current.exists():
            self._current.rename(previous)
        fresh.rename(self._current)
        shutil.rmtree(previous, ignore_errors=True)

    def state(self) -> TrainingState | None:
        """Returns where the last checkpoint stands; None where there is none.

        A run that was killed between the two renames of `save` left its checkpoint as `previous`.

        Raises:
            StageError: The checkpoint is damaged, or belongs to another recipe.
        """
        previous = self.directory / "previous"
        if not self._current.exists() and previous.exists():
            previous.rename(self._current)
        if not (self._current / STATE_FILE).exists():
            return None
        try:
            held = json.loads((self._current / STATE_FILE).read_text(encoding="utf-8"))
            state, recipe = TrainingState(**held["state"]), held["recipe"]
        except _DAMAGED as error:
            raise self._damaged(error) from error
        if self._recipe is not None and recipe is not None and recipe != self._recipe:
            raise StageError(
                f"The checkpoint in {self._current} is of another recipe: {_difference(recipe, self._recipe)}. "
                f"Train with the recipe it was begun with, or remove that directory to train from the start."
            )
        return state

    def load(self, variables: Iterable[keras.Variable]) -> None:
        """Puts what the last checkpoint holds into variables, given in the order of `save`.

        Raises:
            StageError: The checkpoint is damaged or belongs to another network.
        """
        try:
            _read(self._current / LAST_FILE, variables)
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def load_best(self, variables: Iterable[keras.Variable]) -> None:
        """Puts the weights of the best epoch into variables.

        Raises:
            StageError: They can't be read.
        """
        try:
            _read(self._current / BEST_FILE, variables)
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StageError:
        return StageError(
            f"The checkpoint in {self._current} can't be read: {error}. Remove that directory to train from the start."
        )

    def _not_written(self, error: OSError) -> StoreError:
        kept = "the one before it is whole" if self._current.exists() else "there is none before it"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StoreError(
                f"No space left on the device for a checkpoint in {self.directory}; {kept}. Free some space and run "
                f"the same command again: it goes on from the last checkpoint."
            )
        meant = store_error(error, self.directory)
        return StoreError(f"A checkpoint can't be written; {kept}. {meant.message}")


def arrays_of(variables: Iterable[keras.Variable]) -> dict[str, npt.NDArray[Any]]:
    """Returns the values of variables, by number."""
    import keras

    return {f"{index:05d}": keras.ops.convert_to_numpy(each.value) for index, each in enumerate(variables)}


def _write(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)


def _read(path: Path, variables: Iterable[keras.Variable]) -> None:
    known = list(variables)
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        if len(archive.files) != len(known):
            raise ValueError(f"{path.name} holds {len(archive.files)} arrays, the network has {len(known)}")
        for name, variable in zip(archive.files, known, strict=True):
            value = archive[name]
            if value.shape != tuple(variable.shape):
                raise ValueError(f"an array is {value.shape}, {variable.path} is {tuple(variable.shape)}")
            variable.assign(value)


def _difference(one: Any, other: Any, key: str = "") -> str:
    """Returns the first key whose values differ, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            if one.get(name) != other.get(name):
                return _difference(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    return f"{key} was {json.dumps(one)} and is {json.dumps(other)}"

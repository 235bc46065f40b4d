"""What an interrupted training goes on from: the last whole epoch, written by one rename."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError

if TYPE_CHECKING:
    import keras

_DAMAGED = (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile)

STATE_FILE = "state.json"
LAST_FILE = "last.keras"
BEST_FILE = "best.weights.h5"


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

    @property
    def best_weights(self) -> Path:
        """Weights of the best epoch of the current checkpoint."""
        return self._current / BEST_FILE

    def save(self, model: keras.Model, state: TrainingState, *, is_best: bool) -> None:
        """Writes a checkpoint: network, optimizer and random state, the best weights so far, the state."""
        fresh = self._directory / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        model.save(fresh / LAST_FILE)
        if is_best:
            model.save_weights(fresh / BEST_FILE)
        else:
            shutil.copyfile(self.best_weights, fresh / BEST_FILE)
        (fresh / STATE_FILE).write_text(json.dumps(asdict(state)), encoding="utf-8")
        previous = self._directory / "previous"
        shutil.rmtree(previous, ignore_errors=True)
        if self._current.exists():
            self._current.rename(previous)
        fresh.rename(self._current)
        shutil.rmtree(previous, ignore_errors=True)

    def load(self) -> tuple[keras.Model, TrainingState] | None:
        """Returns what the last checkpoint holds; None where there is none.

        A run that was killed between the two renames of `save` left its checkpoint as `previous`.
        """
        import keras

        previous = self._directory / "previous"
        if not self._current.exists() and previous.exists():
            previous.rename(self._current)
        if not (self._current / STATE_FILE).exists():
            return None
        try:
            state = TrainingState(**json.loads((self._current / STATE_FILE).read_text(encoding="utf-8")))
            return keras.saving.load_model(self._current / LAST_FILE), state
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def load_best(self, model: keras.Model) -> None:
        """Puts the weights of the best epoch into a network.

        Raises:
            StageError: They can't be read.
        """
        try:
            model.load_weights(self.best_weights)
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StageError:
        return StageError(
            f"The checkpoint in {self._current} can't be read: {error}. Remove that directory to train from the start."
        )

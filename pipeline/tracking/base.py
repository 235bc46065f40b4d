"""What a tracker is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Record = Mapping[str, Any]
"""What the train stage tells of an epoch: `epoch` from 1, `loss`, `accuracy`, `validation_loss`,
`validation_accuracy`, `seconds`, `learning_rate`, `images_per_second`, and what else there is to say."""

End = Literal["finished", "failed", "killed"]


@dataclass(frozen=True)
class TrackedRun:
    """A training that is watched.

    Attributes:
        name: Of the recipe.
        key: Of the train artifact: a resumed training has the same, any other training another one.
        directory: `runs/<recipe>/`.
        parameters: Values of the recipe, JSON.
    """

    name: str
    key: str
    directory: Path
    parameters: Mapping[str, Any]


class Tracker(Protocol):
    """Keeps a record of one training somewhere.

    Each method brings that record to a state, whatever state an interrupted run or an error left it in. So epochs are
    neither lost nor doubled, and after an error the next call makes up for what is missing.
    """

    def write(self, history: Sequence[Record]) -> None:
        """Takes all epochs so far, in order."""

    def finish(self, results: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Takes what was measured after training, and files by the name that they are kept under."""

    def close(self, end: End) -> None:
        """Ends the record."""


def numbers_of(record: Record) -> dict[str, float]:
    """Returns what of an epoch's record is a number, without the epoch itself."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def wall_times(history: Sequence[Record]) -> list[float]:
    """Returns when each epoch ended (seconds since 1970), if the last one did just now and none was interrupted."""
    times, now = [], time.time()
    for record in reversed(history):
        times.append(now)
        now -= float(record.get("seconds", 0.0))
    return times[::-1]


def flattened(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping) and bool(value)
        flat |= flattened(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return flat

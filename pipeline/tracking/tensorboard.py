"""TensorBoard event files, written without TensorFlow."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking.base import End, Record, TrackedRun, numbers_of, wall_times

TENSORBOARD_DIRECTORY = "tensorboard"
_KEY_LENGTH = 12


class TensorBoardTracker:
    """Appends to an event file in a directory of the training's own, so that TensorBoard shows trainings side by side.

    A resumed training gets a new file that holds the epochs before as well, and the old file goes: an event file can't
    be mended, and one that a kill cut short would hide all that is appended to it.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._directory = event_directory(run.directory, run.key)
        self._writer: Any = None
        self._file: Path | None = None
        self._written: list[Record] = []
        self._opened = 0

    def write(self, history: Sequence[Record]) -> None:
        """Appends what is new; begins a new file where that is not all."""
        if self._writer is not None and list(history[: len(self._written)]) != self._written:
            self._drop()
        begins = self._writer is None
        try:
            if begins:
                self._open()
            times = wall_times(history)
            for index in range(len(self._written), len(history)):
                record = history[index]
                values = {tag_of(name): value for name, value in numbers_of(record).items()}
                self._add(values, step=int(record["epoch"]), at=times[index])
            self._writer.flush()
        except BaseException:
            self._drop()
            raise
        self._written = list(history)
        if begins:
            self._remove_other_files()

    def finish(self, results: Mapping[str, float], files: Mapping[str, Path]) -> None:  # noqa: ARG002 (as MLflow does)
        """Adds the results at the last epoch; `write` comes before."""
        try:
            step = int(self._written[-1]["epoch"]) if self._written else 0
            self._add(results, step=step, at=time.time())
            self._writer.flush()
        except BaseException:
            self._drop()
            raise

    def close(self, end: End) -> None:  # noqa: ARG002 (as MLflow does)
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._directory.mkdir(parents=True, exist_ok=True)
        self._opened += 1
        before = set(self._directory.iterdir())
        # The writer at work beneath tensorboardX's SummaryWriter: that one hands events to a thread, where an error,
        # such as a full disk, would be lost, and the next flush would wait for ever.
        self._writer = EventsWriter(str(self._directory / "events"), f".{time.time_ns()}.{self._opened}")
        self._file = next(iter(set(self._directory.iterdir()) - before), None)
        self._written = []
        self._add_text("recipe", "```json\n" + json.dumps(self._run.parameters, indent=2) + "\n```")

    def _drop(self) -> None:
        """Forgets the file at work, so that the next call begins a new one."""
        writer, self._writer, self._written = self._writer, None, []
        if writer is not None:
            try:
                writer.close()
            except (OSError, ValueError):
                return  # It failed already; what it holds is written again.

    def _remove_other_files(self) -> None:
        for path in self._directory.iterdir():
            if path != self._file and "tfevents" in path.name:
                path.unlink(missing_ok=True)

    def _add(self, values: Mapping[str, float], *, step: int, at: float) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        scalars = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.write_event(event_pb2.Event(wall_time=at, step=step, summary=summary_pb2.Summary(value=scalars)))

    def _add_text(self, tag: str, text: str) -> None:
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import text as text_summary

        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=0, summary=text_summary(tag, text)))


def event_directory(directory: Path, key: str) -> Path:
    """Returns where the event files of a training lie below `runs/<recipe>/`."""
    return directory / TENSORBOARD_DIRECTORY / key[:_KEY_LENGTH]


def tag_of(name: str) -> str:
    """Returns the tag of a value: TensorBoard groups charts by what stands before the slash."""
    split, _, rest = name.partition("_")
    return f"validation/{rest}" if split == "validation" and rest else f"train/{name}"

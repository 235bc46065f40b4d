"""`history.csv`: one row an epoch, for spreadsheets and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.artifacts import write_durably
from pipeline.tracking.base import End, Record, TrackedRun
from pipeline.training.history import HISTORY_CSV_FILE, history_csv


class CsvTracker:
    """Writes the file anew after every epoch; a reader sees the old one or the new one, never half of one."""

    def __init__(self, run: TrackedRun) -> None:
        self._path = run.directory / HISTORY_CSV_FILE

    def write(self, history: Sequence[Record]) -> None:
        """Writes all epochs."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, history_csv(history))

    def finish(self, results: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Writes nothing more: results are no epochs, and stand in the report."""

    def close(self, end: End) -> None:
        """Has nothing open."""

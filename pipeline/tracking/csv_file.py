"""`history.csv`: one row an epoch, for spreadsheets and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.artifacts import write_durably
from pipeline.tracking.base import End, Record, TrackedRun

CSV_FILE = "history.csv"


class CsvTracker:
    """Writes the file anew after every epoch; a reader sees the old one or the new one, never half of one."""

    def __init__(self, run: TrackedRun) -> None:
        self._path = run.directory / CSV_FILE

    def write(self, history: Sequence[Record]) -> None:
        """Writes all epochs; a column for each thing that any of them tells."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        columns = dict.fromkeys(name for record in history for name in record)
        text = io.StringIO()
        rows = csv.DictWriter(text, list(columns), lineterminator="\n")
        rows.writeheader()
        rows.writerows(history)
        write_durably(self._path, text.getvalue())

    def finish(self, results: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Writes nothing more: results are no epochs, and stand in the report."""

    def close(self, end: End) -> None:
        """Has nothing open."""

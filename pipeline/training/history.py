"""The history of a training, one record an epoch, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

HISTORY_FILE = "history.json"
HISTORY_CSV_FILE = "history.csv"


def history_csv(history: Sequence[Mapping[str, Any]]) -> str:
    """Returns the records as CSV, one row an epoch; a column for each thing that any of them tells."""
    columns = dict.fromkeys(name for record in history for name in record) or {"epoch": None}
    stream = io.StringIO()
    rows = csv.DictWriter(stream, list(columns), lineterminator="\n")
    rows.writeheader()
    rows.writerows(history)
    return stream.getvalue()

"""What is in a model of one's own, found out in a process that a damaged file may crash."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.executor import StageExecutor
from pipeline.imports.description import ModelDescription
from pipeline.imports.formats import format_of
from pipeline.stages.base import Tell
from pipeline.stages.import_model import ImportStage


def inspect_in_child(path: Path, description: ModelDescription, tell: Tell | None = None) -> dict[str, Any]:
    """Imports a model into a temporary directory and returns the metrics of `ImportStage`.

    Args:
        path: A file, or the directory of a SavedModel.
        description: What is known about the model.
        tell: Takes progress events.

    Raises:
        InputError: The model can't be read, or does not fit the description.
        ModelFileError: The same, or the model crashes its parser.
    """
    format_of(path)
    stage = ImportStage(path=str(path.resolve()), description=description)
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch, StageExecutor(tell or _discard) as executor:
        return executor.run(stage, {}, Path(scratch))


def _discard(_: dict[str, Any]) -> None:
    """Takes progress events that nobody wants."""

"""What an importer is, and what the importers share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from devices.board.errors import ModelRejected
from devices.board.runners import RUNNERS
from pipeline.errors import ModelFileError
from pipeline.imports.description import ModelDescription
from pipeline.signature import InputTensor, Signature

MAX_REASON = 400

_NOISE = re.compile(r"\x1b\[[0-9;]*m|Exception from [\w./-]+:\d+:")
"""Colours, and where in OpenVINO's source an exception came from."""


class Imported(NamedTuple):
    """An imported model.

    Attributes:
        signature: What it takes and gives.
        parameters: How many numbers were learnt; None where the format does not tell them from other constants.
    """

    signature: Signature
    parameters: int | None


Importer = Callable[[Path, Path, ModelDescription], Imported]
"""Takes the model's path, an existing directory to write into, and the description."""


def printable(text: str) -> str:
    """Returns a text that may hold what a damaged file had in it, as one line that every terminal can show."""
    line = " ".join(_NOISE.sub("", text).split())
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def one_line(error: BaseException | str) -> str:
    """Returns what an error of a library says as one line of bounded length, without a full stop."""
    text = printable(str(error)) or type(error).__name__
    return (text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…").rstrip(".")


def check_loads(runtime: str, path: Path, inputs: tuple[InputTensor, ...]) -> None:
    """Loads a normalized model with the runner that boards use.

    Args:
        runtime: Key of `devices.board.runners.RUNNERS`.
        path: The normalized model.
        inputs: Its inputs.

    Raises:
        ModelFileError: The runtime refuses the model.
    """
    try:
        RUNNERS[runtime]().load(str(path), num_threads=1, input_shapes={tensor.name: tensor.shape for tensor in inputs})
    except ModelRejected as error:
        reason = str(error).replace(f" refuses {path}", " refuses it")
        raise ModelFileError(
            f"The model can't be run: {one_line(reason)}. Export it with operations and types that the runtime has."
        ) from error

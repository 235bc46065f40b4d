"""Every error that Edgeship raises on purpose.

    EdgeshipError                    exit code
    ├── InputError                   2   bad usage or bad input
    │   ├── RecipeError              2   a recipe, an override or a matrix that can't be used
    │   ├── DataError                2   images, labels or splits that can't be used
    │   ├── ModelFileError           2   a model file that can't be read
    │   └── StoreError               2   the artifact store can't be used: no permission, no space, a bad address
    │       └── CorruptArtifactError 2   a published file no longer has the digest its manifest states
    ├── GateError                    1   a measured value is outside its limit; the report is already written
    └── StageError                   4   a stage failed for a reason that is not the user's input
        ├── UnsupportedModelError    2   a target or a precision can't take the model: an operation, a type, a shape
        └── StageCrashError          4   the stage's process ended without an answer (signal, out of memory)

Errors of boards live in `devices.errors` (`DeviceError`, exit code 3, and `ProfileError`, exit code 2), because
`devices` never imports `pipeline`.

Every message says what was received, what was expected and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeshipError(Exception):
    """Base of all errors that reach the user as one message without a traceback.

    Args:
        message: What was received, what was expected, what to do.
        details: Long text that is shown only on request (`--debug`): a traceback, the end of a stream.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InputError(EdgeshipError):
    """Bad usage or bad input."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe, an override or a matrix that can't be used."""


class DataError(InputError):
    """Images, labels or splits that can't be used."""


class ModelFileError(InputError):
    """A model file that can't be read."""


class StoreError(InputError):
    """The artifact store can't be used."""


class CorruptArtifactError(StoreError):
    """A published file no longer has the digest that its manifest states."""


class GateError(EdgeshipError):
    """A measured value is outside its limit."""

    exit_code = 1


class StageError(EdgeshipError):
    """A stage failed for a reason that is not the user's input."""

    exit_code = 4


class UnsupportedModelError(StageError):
    """A target or a precision can't take a model; the message names what of it.

    It ends one export, not the run: another target may take the model.
    """

    exit_code = 2


class StageCrashError(StageError):
    """A stage's process ended without an answer."""


ERRORS: dict[str, type[EdgeshipError]] = {
    error.__name__: error
    for error in (
        EdgeshipError,
        InputError,
        RecipeError,
        DataError,
        ModelFileError,
        StoreError,
        CorruptArtifactError,
        GateError,
        StageError,
        UnsupportedModelError,
        StageCrashError,
    )
}
"""By name, so that an error raised in a stage's process is raised again as itself in the runner's."""

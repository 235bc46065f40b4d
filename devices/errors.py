"""Every error that a board, its profile or its agent raises on purpose.

    DeviceError                      exit code
    ├── ProfileError                 2   a device profile that can't be read, or a device nobody described
    ├── BadInputError                2   what was asked for can't be had on this board: cores, a governor, an image
    ├── ModelRejectedError           2   the runtime raised while it loaded the file: bad file, wrong digest
    │   └── CompiledMisfitError      2   a compiled file is of another version of the runtime, or another processor
    ├── AgentCrashedError            3   the agent's process ended without an answer
    ├── AgentTimeoutError            3   the agent did not answer in time and was ended
    ├── RuntimeMissingError          3   the runtime is not installed on the device
    ├── ConnectionFailedError        3   the device can't be reached, or the connection to it broke
    │   ├── HostKeyError             3   the host's key is unknown, or another one than the known
    │   └── LoginRefusedError        3   the host accepts none of the keys
    ├── PythonMissingError           3   the board has no Python, or one that is too old
    ├── StorageFullError             3   the board's storage has no room
    ├── TransferFailedError          3   a file did not arrive whole
    ├── DeviceBusyError              3   somebody else has held the board for too long
    ├── WheelMissingError            3   a package has no wheel for this board
    ├── BundleError                  2   a bundle is damaged, or not signed by somebody the device trusts
    ├── ReleaseRefusedError          3   a release failed its self-test, its budget or the watch of its service
    ├── FleetError                   2   a fleet that is being deployed to already, a journal that can't be used
    ├── ResultsError                 2   the file of results can't be read or written
    └── VirtualBoardError            2   a virtual board that has not been built, or can't be on this machine

`pipeline.errors` holds the errors of the host side; `devices` never imports `pipeline`.
"""

from __future__ import annotations

from typing import ClassVar


class DeviceError(Exception):
    """A device or the way to it failed.

    Args:
        message: What was received, what was expected, what to do.
        details: Long text that is shown only on request: a traceback, the end of a stream.

    Attributes:
        shows_details: Whether the details are what a user needs at once: the command, its exit status and the end of
            both streams, and never a traceback.
        step: Of an installation, at which the device refused it; empty where it did not.
    """

    exit_code: ClassVar[int] = 3
    shows_details: ClassVar[bool] = False

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.step = ""


class ProfileError(DeviceError):
    """A device profile that can't be used, or a device that has none."""

    exit_code = 2


class BadInputError(DeviceError):
    """Something in the request can't be had on this board, which only the board could know."""

    exit_code = 2


class ModelRejectedError(DeviceError):
    """The runtime refused the model file with an exception, or its digest is not the expected one."""

    exit_code = 2


class CompiledMisfitError(ModelRejectedError):
    """A compiled file was made for another version of the runtime or another processor than the device has."""


class AgentCrashedError(DeviceError):
    """The agent's process ended (signal or exit status) before it answered."""


class AgentTimeoutError(DeviceError):
    """The agent did not answer within the time given, and was ended."""


class RuntimeMissingError(DeviceError):
    """The runtime that a model needs is not installed on the device."""


class ConnectionFailedError(DeviceError):
    """The device can't be reached, or the connection to it broke."""

    shows_details = True


class HostKeyError(ConnectionFailedError):
    """The host's key is unknown, or is another one than the known."""


class LoginRefusedError(ConnectionFailedError):
    """The host accepts none of the keys that were offered."""


class PythonMissingError(DeviceError):
    """The board has no Python, or one that is too old."""

    shows_details = True


class StorageFullError(DeviceError):
    """The board's storage has no room for what is to be sent; nothing of it was left there."""


class TransferFailedError(DeviceError):
    """A file did not arrive whole."""


class DeviceBusyError(DeviceError):
    """Somebody else has held the board for longer than one would wait."""


class WheelMissingError(DeviceError):
    """A package that a runtime needs has no wheel for this board."""

    shows_details = True


class BundleError(DeviceError):
    """A bundle is damaged, or is not signed by somebody whom the device trusts."""

    exit_code = 2


class ReleaseRefusedError(DeviceError):
    """The device did not take a release: a failed self-test, budget or watch, or releases that can't be written."""


class FleetError(DeviceError):
    """A deployment to a fleet that can't begin or go on: somebody else's is under way, its journal can't be used."""

    exit_code = 2


class ResultsError(DeviceError):
    """The file of results can't be read or written."""

    exit_code = 2


class VirtualBoardError(DeviceError):
    """A virtual board has not been built, or can't be built or run on this machine."""

    exit_code = 2


ERRORS: dict[str, type[DeviceError]] = {
    error.__name__: error
    for error in (
        DeviceError,
        ProfileError,
        BadInputError,
        ModelRejectedError,
        CompiledMisfitError,
        AgentCrashedError,
        AgentTimeoutError,
        RuntimeMissingError,
        ConnectionFailedError,
        HostKeyError,
        LoginRefusedError,
        PythonMissingError,
        StorageFullError,
        TransferFailedError,
        DeviceBusyError,
        WheelMissingError,
        BundleError,
        ReleaseRefusedError,
        FleetError,
        ResultsError,
        VirtualBoardError,
    )
}
"""By name, so that an error recorded in a result or sent by a stage's process is raised again as itself."""

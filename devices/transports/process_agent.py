"""An agent behind a child process, local or the client of a remote shell."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from devices.board.launch import PROTOCOL_VERSION
from devices.errors import (
    AgentCrashedError,
    AgentTimeoutError,
    BadInputError,
    DeviceError,
    ModelRejectedError,
    RuntimeMissingError,
)
from devices.peer import (
    JsonLinesProcess,
    PeerDiedError,
    PeerError,
    PeerReplyError,
    PeerStartError,
    PeerTimeoutError,
)
from devices.transports.base import OnEvent

_log = logging.getLogger(__name__)

_REPLY_ERRORS: dict[str, type[DeviceError]] = {
    "BadInput": BadInputError,
    "ModelRejected": ModelRejectedError,
    "RuntimeMissing": RuntimeMissingError,
}
_HELLO_TIMEOUT_S = 60.0


class ProcessAgent:
    """Requests to an agent's process; what goes wrong becomes a `DeviceError`.

    Args:
        arguments: The command that starts the agent.
        env: Its whole environment.
        cwd: Its working directory.
        device: The name of the device, for messages.

    Raises:
        DeviceError: The agent does not start, does not answer, or speaks another protocol.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None = None,
        device: str,
    ) -> None:
        self._work = ""
        try:
            self._process = JsonLinesProcess(arguments, env=env, cwd=cwd, name=f"the agent of device '{device}'")
        except PeerStartError as error:
            raise DeviceError(f"{error.message}; check `python` in the device's profile") from error
        try:
            hello = self.request("hello", timeout_s=_HELLO_TIMEOUT_S)
            protocol = hello["protocol"]
            if protocol != PROTOCOL_VERSION:
                raise DeviceError(
                    f"the agent of device '{device}' speaks protocol {protocol}, expected "
                    f"{PROTOCOL_VERSION}: it is of another version of Edgeship"
                )
            if hello.get("mended"):
                _log.warning("device '%s': %s", device, hello["mended"])
        except BaseException:
            self._process.close()
            raise

    def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Any:
        """See `Agent`."""
        if method == "load" and params:
            self._work = f" (model {params.get('path')}, runtime {params.get('runtime')})"
        try:
            return self._process.request(
                method, params, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s, on_event=on_event
            )
        except PeerError as error:
            raise _device_error(error, self._work) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


def _device_error(error: PeerError, work: str) -> DeviceError:
    details = f"the end of standard error:\n{error.stderr_tail}" if error.stderr_tail.strip() else ""
    if isinstance(error, PeerDiedError):
        return AgentCrashedError(error.message + work, details=details)
    if isinstance(error, PeerTimeoutError):
        return AgentTimeoutError(error.message + work, details=details)
    if isinstance(error, PeerReplyError):
        kind = _REPLY_ERRORS.get(error.kind)
        details = "\n".join(filter(None, (error.details, details)))
        if kind is not None:
            return kind(error.message, details=details)
        expected = error.kind == "AgentError"
        message = error.message if expected else f"{error.kind}: {error.message}"
        return DeviceError(f"{error.name} refuses '{error.method}'{work}: {message}", details=details)
    return DeviceError(error.message, details=details)

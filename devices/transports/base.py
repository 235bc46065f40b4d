"""What a way to a device is, and what an agent at its end is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

OnEvent = Callable[[dict[str, Any]], None]


class Agent(Protocol):
    """An agent that answers the requests listed in `devices.board.agent`; use it as a context manager."""

    def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Any:
        """Sends one request and waits for its answer.

        Raises:
            BadInputError: What is asked for can't be had there: cores, a governor, an image.
            ModelRejectedError: The model file is bad or another one.
            RuntimeMissingError: The runtime is not installed there.
            AgentCrashedError: The agent's process ended.
            AgentTimeoutError: It took longer than `timeout_s`, or was silent for `idle_timeout_s`, and was
                ended.
            DeviceError: Anything else the agent reports.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Transport(Protocol):
    """A way to one device."""

    def put(self, local_path: str) -> str:
        """Makes a local file available on the device and returns its path there."""

    def get(self, device_path: str, local_path: str) -> None:
        """Copies a file of the device to a local path."""

    def start_agent(self, *, releases_only: bool = False) -> Agent:
        """Starts an agent of its own process.

        Args:
            releases_only: It needs no package on the device and knows releases alone, see
                `devices.board.release_agent`.

        Raises:
            DeviceError: It could not be started, or speaks another protocol.
        """

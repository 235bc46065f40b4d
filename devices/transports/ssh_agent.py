"""The agent at the other end of an SSH connection: its source, shipped once, and its process."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from devices.board_program import agent_archive
from devices.errors import AgentCrashedError, AgentTimeoutError, ConnectionFailedError, DeviceError
from devices.peer import PeerDiedError, describe_end
from devices.transports.base import OnEvent
from devices.transports.process_agent import ProcessAgent
from devices.transports.ssh_files import RESERVE_BYTES, send_together, wait_while_busy
from devices.transports.ssh_link import SshLink

_UNPACK_TIMEOUT_S = 1800.0


class SshAgent:
    """Requests to an agent on a board.

    Args:
        agent: The client's process.
        link: The connection that it shares.
        command: What runs there, for messages.
        held: Closed with the agent.
    """

    def __init__(self, agent: ProcessAgent, link: SshLink, command: str, held: contextlib.ExitStack) -> None:
        self._agent, self._link, self._command, self._held = agent, link, command, held

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
        try:
            return self._agent.request(
                method, params, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s, on_event=on_event
            )
        except AgentCrashedError as error:
            raise explain_crash(error, self._link, self._command) from error
        except AgentTimeoutError:
            # The process that shares its connection with the client, which has been ended, tells the board of that
            # end only when it wakes up for something else (seen with OpenSSH 9.2).
            self._agent.__exit__()
            with contextlib.suppress(DeviceError):
                self._link.request("ping", repeat=False)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._held:
            self._agent.__exit__()


def explain_crash(error: AgentCrashedError, link: SshLink, command: str) -> AgentCrashedError | ConnectionFailedError:
    """The same with the host, and with what the exit status of the client says of the agent (see `board.launch`)."""
    place, status = link.place, error.__cause__.returncode if isinstance(error.__cause__, PeerDiedError) else 1
    # The agent writes its answers to the one stream, and what anything else would write there to the other.
    said = error.details.removeprefix("the end of standard error:\n").strip() or "(nothing)"
    details = f"command: {command} on {place}\nexit status: {status}\nthe end of both streams:\n{said}"
    if status == link.lost_status:
        return ConnectionFailedError(
            f"the connection to {place} broke: {error.message}; was the board switched off or restarted?",
            details=details,
        )
    ending = describe_end(128 - status if 128 < status < 193 else status)
    message = error.message.replace(describe_end(status), ending)
    return AgentCrashedError(f"{message}, on {place}", details=details)


def ship_agent(link: SshLink) -> str:
    """Brings the agent's source to the board, once for each version of it.

    Returns:
        The directory there that Python runs.
    """
    archive = agent_archive()
    folder = f"agents/{hashlib.sha256(archive).hexdigest()[:32]}"
    found = link.request("find", {"folder": folder})["path"]
    if found is None:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "agent.zip"
            path.write_bytes(archive)
            found = unpack(link, folder, [path], wheels=False)
    return str(found)


def unpack(link: SshLink, folder: str, archives: list[Path], *, wheels: bool) -> str:
    """Sends archives and unpacks them into one folder on the board, which appears when it is whole.

    Returns:
        The path of the folder there.
    """
    room = {"size": sum(map(_needed_bytes, archives)), "reserve": RESERVE_BYTES}
    link.request("room", room)
    sent = [send_together(link, [archive])[archive.name] for archive in archives]
    params = {"folder": folder, "archives": sent, "wheels": wheels, "reserve": RESERVE_BYTES}
    answer = wait_while_busy(lambda: link.request("unpack", params, timeout_s=_UNPACK_TIMEOUT_S), folder)
    return str(answer["path"])


def _needed_bytes(archive: Path) -> int:
    """Of the archive and of what it unpacks to, which lie on the board side by side for a while."""
    with zipfile.ZipFile(archive) as source:
        return archive.stat().st_size + sum(member.file_size for member in source.infolist())

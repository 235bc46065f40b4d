"""Which client leads to a board, by its transport."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from devices.errors import DeviceError
from devices.transport_config import AdbTransport, SshTransport
from devices.transports import adb_client, ssh_client

Remote = SshTransport | AdbTransport
"""Transports whose other end is a courier."""


class Client(Protocol):
    """The command lines for one board."""

    @property
    def directory(self) -> Path:
        """Private to one connection."""

    def prepare(self) -> None:
        """What must be done before the first command.

        Raises:
            DeviceError: Something is missing on this machine, or the board is not there.
        """

    def command(self, remote: Sequence[str], *, master: bool) -> list[str]:
        """The command line that runs `remote` on the board; see `SshClient`."""


def make_client(transport: Remote, directory: Path) -> Client:
    """The client of a transport."""
    if isinstance(transport, SshTransport):
        return ssh_client.SshClient(transport, directory)
    return (adb_client.AdbSshClient if transport.way == "ssh" else adb_client.AdbShellClient)(transport, directory)


def describe(transport: Remote) -> str:
    """The board as people name it."""
    if isinstance(transport, SshTransport):
        return ssh_client.describe(transport)
    return adb_client.describe(transport)


def explain_end(transport: Remote, python: str, status: int, output: str) -> DeviceError:
    """Why a connection or the first command on it ended; see `ssh_client.explain_end`."""
    if isinstance(transport, SshTransport):
        return ssh_client.explain_end(transport, python, status, output)
    return adb_client.explain_end(transport, python, status, output)


def lost_status(transport: Remote) -> int:
    """The exit status of a client whose connection broke."""
    shell = isinstance(transport, AdbTransport) and transport.way == "shell"
    return adb_client.SHELL_LOST_STATUS if shell else ssh_client.LOST_STATUS


def connect_seconds(transport: Remote) -> float:
    """How long a connection may take, over all hosts in between."""
    between = len(transport.jump) if isinstance(transport, SshTransport) else 0
    return transport.connect_timeout_s * (1 + between)

"""The way to a virtual board: SSH, once it runs."""

from __future__ import annotations

import os

from devices.cache import cache_directory
from devices.profile import DeviceProfile
from devices.transport_config import SshTransport, VirtualTransport
from devices.transports.ssh import SshDevice
from devices.virtual import plan
from devices.virtual.control import IDLE_S, RunningBoard, find_running, start_board


def open_virtual(profile: DeviceProfile) -> SshDevice:
    """Starts the board of a profile where it does not run, and returns the way to it.

    A board that is started here ends by itself after ten minutes without a connection.

    Raises:
        VirtualBoardError: It has not been built, or this machine can't run it.
        DeviceError: It does not start.
    """
    transport = profile.transport
    if not isinstance(transport, VirtualTransport):
        raise TypeError(f"device '{profile.name}' has the transport '{transport.kind}', expected 'virtual'")
    board = plan.find_board(transport.architecture)
    running = start_board(board, cache_directory(os.environ), idle_s=IDLE_S)
    return SshDevice(profile.model_copy(update={"transport": ssh_transport(transport, running)}))


def running_transport(transport: VirtualTransport) -> SshTransport | None:
    """How the board is reached where it runs already; nothing is started."""
    files = plan.board_files(plan.find_board(transport.architecture), cache_directory(os.environ))
    running = find_running(files)
    return None if running is None else ssh_transport(transport, running)


def ssh_transport(transport: VirtualTransport, running: RunningBoard) -> SshTransport:
    """How a running board is reached."""
    return SshTransport(
        host="127.0.0.1",
        user=plan.USER,
        port=running.port,
        identity_file=str(running.files.identity),
        known_hosts=str(running.files.known_hosts),
        directory=transport.directory,
        wheelhouse=transport.wheelhouse,
        connect_timeout_s=60.0,  # a key exchange takes seconds under emulation
    )

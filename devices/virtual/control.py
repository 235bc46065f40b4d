"""Starts virtual boards, ends them, and tells which ones run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

import devices
from devices.errors import DeviceError, VirtualBoardError
from devices.virtual import plan, requirements
from devices.virtual.build import look_at_host, prepare_emulation

IDLE_S = 600.0
"""A board that was started by a command which needs one ends after so long without a connection."""

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.1
_PACKAGES_DIR = Path(devices.__file__).resolve().parent.parent


@dataclass(frozen=True)
class RunningBoard:
    """A board whose SSH server answers.

    Attributes:
        files: Where it lies.
        pid: Its first process.
        port: Of its SSH server, on 127.0.0.1.
        idle_s: After so long without a connection it ends; None: once it is stopped.
    """

    files: plan.BoardFiles
    pid: int
    port: int
    idle_s: float | None


def start_board(board: plan.VirtualBoard, cache: Path, *, idle_s: float | None = None) -> RunningBoard:
    """Starts a board, or finds it running.

    Args:
        board: Which one; it must have been built.
        cache: See `devices.cache.cache_directory`.
        idle_s: After so long without a connection it ends; None lets it run until `stop_board`. A running board keeps
            what it was started with, unless this is None.

    Raises:
        VirtualBoardError: It has not been built, or this machine can't run it.
        DeviceError: Its SSH server does not answer.
    """
    files = plan.board_files(board, cache)
    if not files.directory.is_dir():
        raise VirtualBoardError(f"the virtual board {board.architecture} has not been built; run: make board")
    with FileLock(files.lock):
        running = find_running(files)
        if running is not None and (running.idle_s is None or idle_s is not None):
            return running
        requirements.check_host(look_at_host(), requirements.RUN_PROGRAMS, [board])
        if running is not None:
            _end(running)
        prepare_emulation(board, tell=_say_nothing)
        return _start(board, files, idle_s)


def stop_board(files: plan.BoardFiles) -> bool:
    """Ends a board with everything that runs on it; False where it did not run.

    Raises:
        DeviceError: It does not end.
    """
    with FileLock(files.lock):
        running = find_running(files)
        if running is not None:
            _end(running)
        files.state.unlink(missing_ok=True)
    return running is not None


def find_running(files: plan.BoardFiles) -> RunningBoard | None:
    """The running board, or None."""
    try:
        record = json.loads(files.state.read_text(encoding="utf-8"))
        running = RunningBoard(files, record["pid"], record["port"], record["idle_s"])
    except (OSError, ValueError, KeyError):
        return None
    return running if _is_alive(running) else None


def list_built(cache: Path) -> list[plan.BoardFiles]:
    """All roots in a cache, those of earlier versions of Edgeship too."""
    found = (cache / "boards").glob("*-*")
    return [plan.BoardFiles(path) for path in sorted(found) if path.is_dir() and not path.suffix]


def board_states(cache: Path) -> list[dict[str, Any]]:
    """What `edgeship devices virtual status` shows of each board of this version.

    Returns:
        For each `board`, `state` ("not built", "built" or "running"), `directory`, and of a running one `pid`, `port`,
        `idle_s` and `login`, the command line that opens a shell there; these are None elsewhere.
    """
    states: list[dict[str, Any]] = []
    for board in plan.BOARDS.values():
        files = plan.board_files(board, cache)
        running = find_running(files)
        built = "built" if files.directory.is_dir() else "not built"
        states.append(
            {
                "board": board.host_name,
                "state": built if running is None else "running",
                "directory": str(files.directory),
                "pid": running and running.pid,
                "port": running and running.port,
                "idle_s": running and running.idle_s,
                "login": running and shlex.join(plan.login_command(files, running.port)),
            }
        )
    return states


def _start(board: plan.VirtualBoard, files: plan.BoardFiles, idle_s: float | None) -> RunningBoard:
    files.state.unlink(missing_ok=True)
    port = _free_port()
    settings = {
        "architecture": board.architecture,
        "directory": str(files.directory),
        "port": port,
        "idle_s": idle_s,
    }
    files.known_hosts.write_text(plan.known_hosts_line(files.host_key.read_text(encoding="ascii"), port))
    with files.log.open("wb") as log:
        subprocess.run(
            plan.start_command(sys.executable, json.dumps(settings)),
            check=True,
            env={**os.environ, "PYTHONPATH": str(_PACKAGES_DIR)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    for _ in _until(_START_TIMEOUT_S):
        running = find_running(files)
        if running is not None and _answers(port):
            return running
        if running is None and files.state.exists():
            break
    running = find_running(files)
    if running is not None:
        _end(running)
    said = files.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise DeviceError(
        f"the virtual board {board.architecture} did not start: its SSH server on port {port} does not answer. "
        f"The end of {files.log}: " + ("\n".join(said[-10:]) or "nothing"),
        details="\n".join(said),
    )


def _end(running: RunningBoard) -> None:
    """Ends process 1 of the board; the kernel ends all others with it before it says that it has ended."""
    try:
        process = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        if select.select([process], [], [], _STOP_TIMEOUT_S)[0]:
            return
    finally:
        os.close(process)
    raise DeviceError(f"process {running.pid} of the virtual board in {running.files.directory} does not end")


def _is_alive(running: RunningBoard) -> bool:
    """Whether the board's first process lives: a process of that number that works for that board."""
    try:
        arguments = Path(f"/proc/{running.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # A process that is gone but not yet buried has no arguments.
    return b"devices.virtual.supervise" in arguments and str(running.files.directory).encode() in b" ".join(arguments)


def _answers(port: int) -> bool:
    """Whether an SSH server greets on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10.0) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _until(timeout_s: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        yield
        time.sleep(_POLL_S)


def _say_nothing(line: str) -> None:
    """Takes a line and drops it."""

"""The first process of a running virtual board: makes its mounts, runs its SSH server, ends when nobody needs it.

It is process 1 of a process namespace: once it ends, the kernel ends all others and drops the mounts.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from devices.virtual import plan

_PAUSE_S = 1.0
_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")


def main(settings: dict[str, Any]) -> int:
    """Runs a board until its server ends or nobody has been connected for a while.

    Args:
        settings: `architecture`, `directory` (see `plan.BoardFiles`), `port`, and `idle_s`, after which a board
            without a connection ends; None lets it run until it is stopped.

    Returns:
        The exit status.
    """
    board, files = plan.find_board(settings["architecture"]), plan.BoardFiles(Path(settings["directory"]))
    # /proc is still the host's, where this process has another number than its own 1.
    record = {"pid": int(str(Path("/proc/self").readlink())), "port": settings["port"], "idle_s": settings["idle_s"]}
    beside = files.state.with_suffix(".new")
    beside.write_text(json.dumps(record), encoding="utf-8")
    beside.replace(files.state)
    socket.sethostname(board.host_name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _mount_all(board, files.root)
    server = subprocess.Popen(
        plan.sshd_command(files.root, settings["port"]),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "QEMU_CPU": board.cpu},
        stdin=subprocess.DEVNULL,
    )
    return _watch(server.pid, settings["idle_s"])


def _watch(server: int, idle_s: float | None) -> int:
    """Waits for the server's end, and buries the orphans of the namespace meanwhile."""
    used = time.monotonic()
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 1
            if pid == server:
                return os.waitstatus_to_exitcode(status) or 1
            if pid == 0:
                break
        others = {path.name for path in Path("/proc").iterdir() if path.name.isdigit()} - {
            str(os.getpid()),
            str(server),
        }
        if others:
            used = time.monotonic()
        elif idle_s is not None and time.monotonic() - used >= idle_s:
            os.kill(server, signal.SIGTERM)
            return 0
        time.sleep(_PAUSE_S)


def _mount_all(board: plan.VirtualBoard, root: Path) -> None:
    """Mounts what a kernel would give the board."""
    num_cpus = len(os.sched_getaffinity(0))
    _mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc")
    _mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", str(root / "proc"))
    for name, options in {"run": "mode=0755", "sys": "mode=0755", "tmp": "mode=1777"}.items():
        _mount("-t", "tmpfs", "-o", f"nosuid,nodev,{options}", "tmpfs", str(root / name))
    (root / "run" / "sshd").mkdir(mode=0o755)
    (root / "run" / "cpuinfo").write_text(plan.cpuinfo(board, num_cpus), encoding="ascii")
    _mount("--bind", str(root / "run" / "cpuinfo"), str(root / "proc" / "cpuinfo"))
    for name, text in plan.sysfs_files(board, num_cpus).items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    _mount("-o", "remount,ro,bind", str(root / "sys"))
    _make_devices(root / "dev")


def _make_devices(directory: Path) -> None:
    """The host's devices that no program can do without; the file system of the cache may allow none of its own."""
    _mount("-t", "tmpfs", "-o", "nosuid,mode=0755", "tmpfs", str(directory))
    for name in _DEVICES:
        (directory / name).touch()
        _mount("--bind", f"/dev/{name}", str(directory / name))
    for name in ("pts", "shm"):
        (directory / name).mkdir()
    _mount("-t", "devpts", "-o", "newinstance,gid=5,mode=0620,ptmxmode=0666", "devpts", str(directory / "pts"))
    _mount("-t", "tmpfs", "-o", "nosuid,nodev,mode=1777", "tmpfs", str(directory / "shm"))
    for name, target in {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1",
                         "stderr": "fd/2"}.items():  # fmt: skip
        (directory / name).symlink_to(target)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))

"""Real OpenSSH servers on loopback ports, each with a home of its own: as many boards as a test wants.

Without root the servers run as the user of the test, with root as root; a wrapper gives each its HOME.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.board.courier import LOCK_DIRECTORY_VARIABLE
from devices.profile import DeviceProfile
from devices.transport_config import SshTransport
from tests.bundles import make_key
from tests.ssh_board import wait_for

_SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_PRIVILEGE_DIRECTORY = Path("/run/sshd")
_ATTEMPTS = 5


def missing() -> str:
    """Why this machine can't have one; nothing where it can."""
    if shutil.which("sshd", path=_SEARCHED) is None:
        return "no OpenSSH server on this machine (Debian: openssh-server)"
    return "" if shutil.which("ssh-keygen") else "no OpenSSH client on this machine"


@dataclass
class OpensshServer:
    """One server and the files that a client needs for it.

    Attributes:
        directory: Holds its keys, its settings, `known_hosts`, its log and the board's `home`.
        port: On the loopback interface.
        process: Its first one; whatever it started is ended with it, where a connection does not outlive it.
    """

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def log(self) -> str:
        return (self.directory / "sshd.log").read_text(errors="replace")

    def switch_on(self) -> None:
        """Takes connections again, on the same port."""
        self.process = _run(self.directory)
        assert not wait_for(lambda: _greets(self.port), 60), self.log

    def switch_off(self) -> None:
        """Takes no new connections."""
        self.process.terminate()
        self.process.wait(30)

    def transport(self, **changes: Any) -> dict[str, Any]:
        """The `transport` section of a profile."""
        return {
            "kind": "ssh",
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity_file": str(self.directory / "client_key"),
            "known_hosts": str(self.directory / "known_hosts"),
            "connect_timeout_s": 60,
            **changes,
        }

    def profile(self, name: str = "board", **changes: Any) -> DeviceProfile:
        """Of a board with this machine's Python and the fake runtime."""
        return DeviceProfile(
            name=name,
            description="A board of the test.",
            python=sys.executable,
            runtimes={"fake": ""},
            preference=("fake",),
            transport=SshTransport(**self.transport(**changes)),
            latency_label="simulated",
        )


@contextlib.contextmanager
def openssh_server(directory: Path) -> Iterator[OpensshServer]:
    """Runs one server; the directory must be new or empty, and nobody else may write above it."""
    server = _start(directory)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


@contextlib.contextmanager
def openssh_servers(directory: Path, count: int) -> Iterator[list[OpensshServer]]:
    """Runs several, in `directory/0` and so on."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(openssh_server(directory / str(number))) for number in range(count)]


def _start(directory: Path) -> OpensshServer:
    home = directory / "home"
    home.mkdir(parents=True)
    for name in ("host_key", "client_key"):
        make_key(directory / name)
    shutil.copy(directory / "client_key.pub", directory / "authorized_keys")
    environment = {"HOME": str(home), LOCK_DIRECTORY_VARIABLE: str(directory), "LANG": "C.UTF-8"}
    assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    wrapper = directory / "as-the-board"
    # sshd sets HOME from the user's record, so it is set anew in front of each command.
    wrapper.write_text(f'#!/bin/sh\ncd {shlex.quote(str(home))} && exec env {assigned} sh -c "$SSH_ORIGINAL_COMMAND"\n')
    wrapper.chmod(0o755)
    if os.geteuid() == 0:
        _PRIVILEGE_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    for _ in range(_ATTEMPTS):  # another process may take a port that was free a moment ago
        port = _free_port()
        (directory / "sshd_config").write_text(_settings(directory, wrapper, port))
        process = _run(directory)
        answers = not wait_for(lambda process=process, port=port: process.poll() is not None or _greets(port), 60)
        if answers and process.poll() is None:
            public = " ".join((directory / "host_key.pub").read_text().split()[:2])
            (directory / "known_hosts").write_text(f"[127.0.0.1]:{port},[localhost]:{port} {public}\n")
            return OpensshServer(directory, port, process)
        process.kill()
        process.wait(30)
    raise RuntimeError(f"sshd does not start: {(directory / 'sshd.log').read_text(errors='replace')}")


def _run(directory: Path) -> subprocess.Popen[bytes]:
    program = str(shutil.which("sshd", path=_SEARCHED))  # it starts itself anew, by its full path
    with (directory / "sshd.log").open("ab") as log:
        return subprocess.Popen(
            [program, "-D", "-e", "-f", str(directory / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _settings(directory: Path, wrapper: Path, port: int) -> str:
    return f"""\
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
ForceCommand {shlex.quote(str(wrapper))}
AllowUsers {getpass.getuser()}
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
PidFile none
MaxSessions 100
MaxStartups 100
"""


def _greets(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        return stream.recv(4) == b"SSH-"
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

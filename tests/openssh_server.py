"""OpenSSH's own server on a loopback port, where it is installed; `tests.ssh_server` is one in this process."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.board.courier import LOCK_DIRECTORY_VARIABLE
from tests.bundles import make_key
from tests.ssh_board import wait_for

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass
class OpenSshServer:
    """A server; see `tests.ssh_server.SshServer`.

    Attributes:
        directory: Holds the keys, `known_hosts` and the board's `home`.
        port: On the loopback interface.
    """

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def transport(self) -> dict[str, Any]:
        """The `transport` section of a profile."""
        return {
            "kind": "ssh",
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity_file": str(self.directory / "client_key"),
            "known_hosts": str(self.directory / "known_hosts"),
            "connect_timeout_s": 30,
        }

    def switch_on(self) -> None:
        """Listens."""
        assert SSHD is not None
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", self.directory / "config"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        assert not wait_for(self.is_listening), self.log()

    def is_listening(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def switch_off(self) -> None:
        """Takes no new connections."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[OpenSshServer]:
    """Runs a server with keys of its own, each session of which has `home` as its home."""
    (directory / "home").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = OpenSshServer(directory, probe.getsockname()[1])
    host_key, client_key = make_key(directory / "host_key"), make_key(directory / "client_key")
    public = host_key.with_name("host_key.pub").read_text().strip()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {public}\n")
    shutil.copy(client_key.with_name("client_key.pub"), directory / "authorized_keys")
    settings = {
        "ListenAddress": f"127.0.0.1:{server.port}",
        "HostKey": host_key,
        "AuthorizedKeysFile": directory / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "SetEnv": f'HOME={server.home} {LOCK_DIRECTORY_VARIABLE}={directory} "PATH={os.environ["PATH"]}"',
    }
    (directory / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd locks up its unprivileged half
    server.switch_on()
    try:
        yield server
    finally:
        server.switch_off()

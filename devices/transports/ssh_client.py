"""The system's OpenSSH client: its configuration, its command lines, and what its failures mean."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
)
from devices.peer import describe_end
from devices.transport_config import SshTransport

LOADER = (
    "import sys; v = sys.version_info[:2]; "
    'v >= (3, 9) or sys.exit("edgeship: Python %d.%d is too old" % v); '
    "import json, os; r = sys.stdin.buffer; q = json.loads(r.readline().decode()); os.set_blocking(0, False); "
    'n = {"__name__": "bootstrap"}; exec(compile(q["params"].pop("source"), "bootstrap.py", "exec"), n); '
    'n["main"](q, r.peek() or b"")'
)
"""Runs `devices/board/bootstrap.py`, whose source comes with the first request. Python 3.4 too can read it."""

LOST_STATUS = 255
_SHELL_ENDINGS = {126: "can't be run", 127: "does not exist"}


@dataclass(frozen=True)
class SshClient:
    """The command lines for one board.

    Attributes:
        transport: How the board is reached.
        directory: Private, with a short path; gets the configuration file and the socket of the shared connection.
    """

    transport: SshTransport
    directory: Path

    def prepare(self) -> None:
        """Writes the configuration file.

        Raises:
            DeviceError: There is no OpenSSH client here, or a file that the transport names is missing.
        """
        if shutil.which("ssh") is None:
            raise DeviceError("there is no OpenSSH client on this machine; on Debian: apt install openssh-client")
        self._configuration.write_text(ssh_configuration(self.transport), encoding="utf-8")

    def command(self, remote: Sequence[str], *, master: bool) -> list[str]:
        """The command line that runs `remote` on the board.

        Args:
            remote: The program there and its arguments.
            master: Whether this is the process whose connection the others share.
        """
        transport = self.transport
        options = {
            "ControlMaster": "yes" if master else "no",
            "ControlPath": str(self.directory / "s"),
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
        }
        if transport.identity_file is not None:
            options["IdentitiesOnly"] = "yes"
        line = ["ssh", "-F", str(self._configuration), "-T"]
        for name, value in options.items():
            line += ["-o", f"{name}={value}"]
        if transport.user is not None:
            line += ["-l", transport.user]
        if transport.port is not None:
            line += ["-p", str(transport.port)]
        if transport.jump:
            line += ["-J", ",".join(transport.jump)]
        return [*line, "--", transport.host, shlex.join(remote)]

    @property
    def _configuration(self) -> Path:
        return self.directory / "config"


def ssh_configuration(transport: SshTransport) -> str:
    """The client's configuration: what must hold first, then the user's own, for the first value counts.

    It is a file and not a row of options, because only a file holds for the hosts in between as well.

    Raises:
        DeviceError: A file that the transport names is missing.
    """
    lines = [
        "BatchMode yes",
        "StrictHostKeyChecking yes",
        "UpdateHostKeys no",
        f"ConnectTimeout {math.ceil(transport.connect_timeout_s)}",
        "ConnectionAttempts 1",
        f"ServerAliveInterval {transport.keep_alive_s}",
        "ServerAliveCountMax 3",
        "LogLevel ERROR",
        "RequestTTY no",
        "EscapeChar none",
        "ForwardAgent no",
        "ForwardX11 no",
        "PermitLocalCommand no",
        "RemoteCommand none",
    ]
    for option, name, path in (
        ("UserKnownHostsFile", "known_hosts", transport.known_hosts),
        ("IdentityFile", "identity_file", transport.identity_file),
    ):
        if path is not None:
            found = Path(path).expanduser().absolute()
            if not found.is_file():
                raise DeviceError(f"there is no file {found}, which the transport of the device names as {name}")
            lines.append(f"{option} {_quoted(found)}")
    lines += ["Include ~/.ssh/config", "Include /etc/ssh/ssh_config"]
    return "\n".join(lines) + "\n"


def explain_end(transport: SshTransport, python: str, status: int, output: str) -> DeviceError:
    """Why a connection or the first command on it ended.

    Args:
        transport: How the board was to be reached.
        python: The interpreter that was to be run there.
        status: The exit status of the client.
        output: The end of what came on both streams.
    """
    place = describe(transport)
    details = f"command: {python} on {place}\nexit status: {status}\nthe end of both streams:\n{output.strip()}"
    if old := re.search(r"edgeship: Python (\S+) is too old", output):
        return PythonMissingError(
            f"{python} on {place} is Python {old[1]}, expected 3.9 or later; install a later one and name it as "
            "`python` in the device's profile",
            details=details,
        )
    if re.search(r"[Uu]nknown option:? -I", output):
        return PythonMissingError(
            f"{python} on {place} is Python 2, expected Python 3.9 or later; name one as `python` in the device's "
            "profile",
            details=details,
        )
    if status in _SHELL_ENDINGS:
        return PythonMissingError(
            f"{python} {_SHELL_ENDINGS[status]} on {place}, and Python 3.9 or later is needed there; install it "
            "(on Debian: apt install python3) or name it as `python` in the device's profile",
            details=details,
        )
    if status == LOST_STATUS:
        return _explain_failure(place, output, details)
    if status < 0:
        return ConnectionFailedError(f"the SSH client for {place} {describe_end(status)}", details=details)
    return DeviceError(f"{python} on {place} {describe_end(status)}{_last_line(output)}", details=details)


def _explain_failure(place: str, output: str, details: str) -> ConnectionFailedError:
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in output or "differs from the key" in output:
        return HostKeyError(
            f"the host key of {place} is not the one in the known hosts: somebody may be in between, or the board "
            "was set up anew. Find out which, and only then remove the old key (ssh-keygen -R) and add the new one",
            details=details,
        )
    if "Host key verification failed" in output or "host key is known for" in output:
        return HostKeyError(
            f"the host key of {place} is not among the known hosts; connect once with ssh and compare the "
            "fingerprint, or add the key to the file that `known_hosts` names",
            details=details,
        )
    if "UNPROTECTED PRIVATE KEY FILE" in output:
        return LoginRefusedError(
            f"{place} was not asked, because others can read the private key; take that from them: chmod 600 FILE",
            details=details,
        )
    if "Permission denied" in output or "Too many authentication failures" in output:
        return LoginRefusedError(
            f"{place} accepts none of the keys that were offered; add one with ssh-copy-id, load it into the agent "
            "with ssh-add, or name it as `identity_file` (passwords are not asked for)",
            details=details,
        )
    return ConnectionFailedError(f"the connection to {place} failed{_last_line(output)}", details=details)


def describe(transport: SshTransport) -> str:
    """The host as people write it: `pi@board.local:2222`."""
    user = f"{transport.user}@" if transport.user else ""
    port = f":{transport.port}" if transport.port else ""
    through = f" through {', '.join(transport.jump)}" if transport.jump else ""
    return f"{user}{transport.host}{port}{through}"


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else " without a word"


def _quoted(path: Path) -> str:
    """A path as the client's configuration takes it: in quotes, and no `%` that would be expanded."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'

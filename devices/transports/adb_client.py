"""The command lines for a phone, over Termux's SSH server or by `adb shell`, and what their failures mean."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from devices.errors import ConnectionFailedError, DeviceError, HostKeyError, LoginRefusedError, PythonMissingError
from devices.transport_config import AdbTransport, SshTransport
from devices.transports import adb, adb_dial, ssh_client

SHELL_LOST_STATUS = 0
"""`adb shell` ends so where the connection breaks (seen with 29.0.6); a courier or an agent never does by itself."""

_SHELL_HOME = "/data/local/tmp"


class AdbSshClient:
    """OpenSSH's client, connected through adb.

    Args:
        transport: With the serial of the phone.
        directory: As of `SshClient`.
    """

    def __init__(self, transport: AdbTransport, directory: Path) -> None:
        self.transport, self.directory = transport, directory
        self._ssh = ssh_client.SshClient(as_ssh(transport), directory)

    def prepare(self) -> None:
        """Sees to it that the phone is there, and writes the configuration file.

        Raises:
            DeviceError: It can't be used now, or something is missing on this machine.
        """
        adb.find_phone(self.transport)
        self._ssh.prepare()

    def command(self, remote: Sequence[str], *, master: bool) -> list[str]:
        """See `SshClient`."""
        first, *rest = self._ssh.command(remote, master=master)
        options = {
            "ProxyCommand": dial_command(self.transport),
            "ProxyUseFdpass": "yes",
            "HostKeyAlias": host_alias(self.transport),
        }
        return [first, *(word for name, value in options.items() for word in ("-o", f"{name}={value}")), *rest]


class AdbShellClient:
    """`adb shell`: each command is a process of its own there, all over the one connection that adb's server has.

    Args:
        transport: With the serial of the phone.
        directory: Not used.
    """

    def __init__(self, transport: AdbTransport, directory: Path) -> None:
        self.transport, self.directory = transport, directory

    def prepare(self) -> None:
        """See `AdbSshClient`."""
        adb.find_phone(self.transport)

    def command(self, remote: Sequence[str], *, master: bool) -> list[str]:  # noqa: ARG002 (there is no master)
        """See `SshClient`. adb joins its arguments with spaces for the phone's shell, so it gets a single one."""
        line = shell_line(self.transport, remote)
        return ["adb", "-s", str(self.transport.serial), "shell", "-T", line]


def shell_line(transport: AdbTransport, remote: Sequence[str]) -> str:
    """The line for the phone's shell that runs a program with a home that it can write to."""
    app = transport.run_as
    if app is None:
        return f"HOME={_SHELL_HOME} exec {shlex.join(remote)}"
    files = f"/data/data/{app}/files"
    environment = {
        "HOME": f"{files}/home",
        "PREFIX": f"{files}/usr",
        "PATH": f"{files}/usr/bin:/system/bin",
        "TMPDIR": f"{files}/usr/tmp",
        "LANG": "C.UTF-8",
    }
    settings = [f"{name}={value}" for name, value in environment.items()]
    return f"exec {shlex.join(['run-as', app, 'env', *settings, *remote])}"


def default_python(transport: AdbTransport) -> str:
    """The interpreter where the profile names none."""
    return "python3" if transport.run_as is None else f"/data/data/{transport.run_as}/files/usr/bin/python3"


def dial_command(transport: AdbTransport) -> str:
    """The line by which the SSH client's shell starts `adb_dial`; the client expands `%`."""
    host, port = adb.server_address()
    program = [sys.executable, "-I", adb_dial.__file__]
    place = [host, str(port), str(transport.serial), str(transport.port), f"{transport.connect_timeout_s:g}"]
    return shlex.join([*program, *place]).replace("%", "%%")


def host_alias(transport: AdbTransport) -> str:
    """Under this name the known hosts have the key of the phone's SSH server, whatever way leads there."""
    return "phone-" + re.sub(r"[^\w.:-]", "_", str(transport.serial))


def as_ssh(transport: AdbTransport) -> SshTransport:
    """What the SSH client is told of the phone."""
    return SshTransport(
        host=host_alias(transport),
        user=transport.user,
        identity_file=transport.identity_file,
        known_hosts=transport.known_hosts,
        directory=transport.directory,
        connect_timeout_s=transport.connect_timeout_s,
        keep_alive_s=transport.keep_alive_s,
    )


def describe(transport: AdbTransport) -> str:
    """The phone as people know it."""
    app = "" if transport.run_as is None else f" as {transport.run_as}"
    return f"phone {transport.serial}{app}"


def explain_end(transport: AdbTransport, python: str, status: int, output: str) -> DeviceError:
    """As `ssh_client.explain_end`, of either way."""
    place = describe(transport)
    details = f"command: {python} on {place}\nexit status: {status}\nthe end of both streams:\n{output.strip()}"
    dialed = re.search(rf"^{re.escape(adb_dial.PREFIX)}(.*)$", output, re.MULTILINE)
    if dialed is not None:
        hint = "; in Termux on the phone: pkg install openssh, then sshd" if "on port" in dialed[1] else ""
        return ConnectionFailedError(f"the connection to {place} failed: {dialed[1].strip()}{hint}", details=details)
    if transport.way == "shell":
        told = _explain_shell(transport, status, output, details)
        if told is not None:
            return told
    ssh = as_ssh(transport)
    error = ssh_client.explain_end(ssh, python, status, output)
    message = error.message.replace(ssh_client.describe(ssh), place)
    if isinstance(error, PythonMissingError):
        message += ". On a phone Termux has one: pkg install python"
    elif isinstance(error, HostKeyError | LoginRefusedError):
        message += ". `edgeship devices doctor` gives the command, through adb"
    return type(error)(message, details=details)


def _explain_shell(transport: AdbTransport, status: int, output: str, details: str) -> DeviceError | None:
    place = describe(transport)
    refused = re.search(r"^run-as: (.*)$", output, re.MULTILINE)
    if refused is not None:
        return LoginRefusedError(
            f"the app {transport.run_as} on the phone {transport.serial} can't be entered: {refused[1].strip()}. "
            "run-as needs a build that can be debugged, as Termux's builds on GitHub are and F-Droid's are not; with "
            "any build, `way: ssh` works",
            details=details,
        )
    if "only supports allocating a pty" in output:
        return ConnectionFailedError(f"{place} has no shell protocol; Android 7 or later is needed", details=details)
    if status == SHELL_LOST_STATUS:
        return ConnectionFailedError(f"the connection to {place} broke", details=details)
    failed = re.search(r"^(?:adb: )?error: (.*)$", output, re.MULTILINE)
    if failed is not None and status == 1:
        return ConnectionFailedError(f"the connection to {place} failed: {failed[1].strip()}", details=details)
    return None

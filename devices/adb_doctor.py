"""What mends a phone: the commands that the doctor gives for one, by the state that it is in right now."""

from __future__ import annotations

import os
import shlex
import shutil

from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
    StorageFullError,
    WheelMissingError,
)
from devices.profile import DeviceProfile
from devices.provision_android import TERMUX_PACKAGES, termux_packages
from devices.transport_config import AdbTransport
from devices.transports import adb
from devices.transports.adb_client import host_alias, shell_line

TERMUX = "com.termux/com.termux.app.TermuxActivity"
"""What `am start` brings to the front."""

_RECONNECT = "adb reconnect offline"
_BY_STATE = {
    "unauthorized": _RECONNECT,
    "authorizing": _RECONNECT,
    "offline": _RECONNECT,
    "connecting": _RECONNECT,
    "no permissions": 'sudo apt-get install android-sdk-platform-tools-common && sudo usermod -aG plugdev "$USER"',
}


def mend(profile: DeviceProfile, transport: AdbTransport, error: DeviceError) -> str | None:
    """The command, to be run on this machine, that mends what keeps a phone from being used; None where none does."""
    if shutil.which("adb") is None:
        return adb.INSTALL
    try:
        phones = adb.list_phones()
    except DeviceError:
        return "adb kill-server && adb start-server"
    serial = transport.serial or os.environ.get("ANDROID_SERIAL") or (next(iter(phones)) if len(phones) == 1 else None)
    if serial is None or (serial not in phones and not adb.is_address(serial)):
        return "adb devices -l"
    if serial not in phones:
        return shlex.join(["adb", "connect", serial])
    if phones[serial] == adb.READY:
        return _mend_ready(profile, transport.model_copy(update={"serial": serial}), error)
    return _BY_STATE.get(phones[serial], shlex.join(["adb", "-s", serial, "reboot"]))


def on_phone(transport: AdbTransport, command: str) -> str | None:
    """The command line that runs a shell command on a phone; None for what only a superuser could do there."""
    if "sudo " in command:
        return None
    if transport.way == "shell":
        serial = [] if transport.serial is None else ["-s", transport.serial]
        # The shell of a phone has the programs of Android, the app's shell has those of Termux.
        return shlex.join(["adb", *serial, "shell", "-t", shell_line(transport, ["sh", "-c", command])])
    return f"{_forward(transport)} && {shlex.join(['ssh', '-t', *_ssh_options(transport), 'localhost', command])}"


def _mend_ready(profile: DeviceProfile, transport: AdbTransport, error: DeviceError) -> str | None:
    """Of a phone that adb reaches, by the kind of the error."""
    packages = [TERMUX_PACKAGES["numpy"], *termux_packages(profile.runtimes.values())]
    termux = transport.way == "ssh" or transport.run_as is not None
    mends: list[tuple[type[DeviceError], str | None]] = [
        (PythonMissingError, on_phone(transport, "pkg install -y python") if termux else None),
        (WheelMissingError, on_phone(transport, shlex.join(["pkg", "install", "-y", *packages])) if termux else None),
        (StorageFullError, on_phone(transport, f"rm -rf {transport.directory}/files {transport.directory}/envs")),
    ]
    if transport.way == "ssh":
        options = _ssh_options(transport)
        mends += [
            (HostKeyError, f"{_forward(transport)} && {shlex.join(['ssh', *options, 'localhost'])}"),
            (LoginRefusedError, f"{_forward(transport)} && {shlex.join(['ssh-copy-id', *options, 'localhost'])}"),
            # Nothing answers: the SSH server is started in Termux, which this brings to the front.
            (
                ConnectionFailedError,
                shlex.join(["adb", "-s", str(transport.serial), "shell", "am", "start", "-n", TERMUX]),
            ),
        ]
    return next((command for kind, command in mends if isinstance(error, kind)), None)


def _forward(transport: AdbTransport) -> str:
    serial = [] if transport.serial is None else ["-s", transport.serial]
    return shlex.join(["adb", *serial, "forward", f"tcp:{transport.port}", f"tcp:{transport.port}"])


def _ssh_options(transport: AdbTransport) -> list[str]:
    options = ["-p", str(transport.port), "-o", f"HostKeyAlias={host_alias(transport)}"]
    options += [] if transport.known_hosts is None else ["-o", f'UserKnownHostsFile="{transport.known_hosts}"']
    options += [] if transport.user is None else ["-l", transport.user]
    return options + ([] if transport.identity_file is None else ["-i", transport.identity_file])

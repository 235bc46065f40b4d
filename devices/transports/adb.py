"""The system's adb client: which phones there are, in which state, and what to do where one can't be used."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

from devices.errors import ConnectionFailedError, DeviceError, LoginRefusedError
from devices.transport_config import AdbTransport

INSTALL = "sudo apt-get install adb"
READY = "device"
"""The state of a phone that can be used."""

_TIMEOUT_S = 20.0
"""adb itself gives up a connection after ten."""
_SERVER = ("127.0.0.1", 5037)

_UNTRUSTED = "does not trust this machine yet: unlock the phone and accept the key that its dialog shows"
# As adb prints them; see docs/user/adb.1.md and transport.cpp in Android's packages/modules/adb.
_STATES = {
    "unauthorized": _UNTRUSTED,
    "authorizing": _UNTRUSTED,
    "offline": "is offline: plug its cable in again, or switch USB debugging off and on",
    "connecting": "is still connecting: try again in a moment",
    "recovery": "has been started into recovery: restart it",
    "sideload": "waits for a system package: restart it",
    "bootloader": "stands in its bootloader: restart it",
    "no permissions": "may not be opened by this user: the USB rules for phones are missing, or the user is not in the "
    "group plugdev",
}


def list_phones() -> dict[str, str]:
    """The state of each phone by its serial; starts adb's server where it does not run.

    Raises:
        DeviceError: There is no adb, or it fails.
    """
    done = run_adb(["devices"])
    phones = {}
    for line in done.stdout.splitlines():
        serial, tab, state = line.partition("\t")
        if tab:
            phones[serial] = state.partition(" (")[0].partition(";")[0].strip()
    if done.returncode != 0:
        raise ConnectionFailedError(f"adb can't list the phones: {last_line(done)}", details=in_full(done))
    return phones


def find_phone(transport: AdbTransport) -> str:
    """The serial of the phone of a transport, once it can be used; an address is connected to where it is not yet.

    Raises:
        LoginRefusedError: Nobody has accepted this machine's key on the phone.
        ConnectionFailedError: It is not there or not ready, or there are several and none is named.
        DeviceError: There is no adb, or it fails.
    """
    serial = transport.serial or os.environ.get("ANDROID_SERIAL") or None
    phones = list_phones()
    tried = ""
    if serial is not None and is_address(serial) and phones.get(serial) in (None, "offline"):
        # After a cut, adb shows a dead connection for a while, and connecting again does nothing until it is forgotten.
        if serial in phones:
            run_adb(["disconnect", serial])
        tried = connect(serial)
        phones = list_phones()
    there = ", ".join(f"{name} ({state})" for name, state in sorted(phones.items())) or "none"
    if serial is None:
        if len(phones) > 1:
            raise ConnectionFailedError(
                f"there are several phones: {there}. Name one: ANDROID_SERIAL in the environment, `serial` in the "
                "transport of a profile of your own, or --host SERIAL where a command takes that"
            )
        if not phones:
            raise ConnectionFailedError(
                "adb sees no phone: switch on USB debugging in its developer options and plug it in, or name the "
                "address of one with wireless debugging, as in ANDROID_SERIAL=10.0.0.7:5555"
            )
        serial = next(iter(phones))
    if serial not in phones:
        raise ConnectionFailedError(f"adb sees no phone {serial}{tried}; there are: {there}")
    _require_ready(serial, phones[serial], tried)
    return serial


def connect(address: str) -> str:
    """Connects to a phone with wireless debugging; adb says by words alone whether that went well.

    Returns:
        What went wrong, to be put behind a sentence; empty where nothing did.
    """
    done = run_adb(["connect", address])
    answer = last_line(done)
    return "" if answer.startswith(("connected to", "already connected")) else f" ({answer})"


def is_address(serial: str) -> bool:
    """Whether a serial is `host:port`, which adb can connect to."""
    return re.fullmatch(r"[^\s:]+:\d{1,5}|\[[\w:.%-]+\]:\d{1,5}", serial) is not None


def run_adb(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs adb to its end.

    Its streams go to files: the server that adb may start keeps what it inherits, and would keep a pipe open.

    Raises:
        DeviceError: There is no adb on this machine.
        ConnectionFailedError: It took longer than twenty seconds and was ended.
    """
    command = ["adb", *arguments]
    if shutil.which("adb") is None:
        raise DeviceError(f"there is no adb on this machine, Android's debug bridge; on Debian: {INSTALL}")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=_TIMEOUT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise ConnectionFailedError(
                f"`{shlex.join(command)}` did not end within {_TIMEOUT_S:g} s and was ended; adb's server may hang: "
                "adb kill-server"
            ) from error
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    # What the client says of the server that it starts is no error.
    stderr = "".join(line for line in texts[1].splitlines(keepends=True) if not line.startswith("* daemon"))
    return subprocess.CompletedProcess(command, code, texts[0], stderr)


def server_address() -> tuple[str, int]:
    """Where adb's server listens, as its client finds it.

    Raises:
        DeviceError: The environment names something that is no address.
    """
    host, port = _SERVER
    named = os.environ.get("ADB_SERVER_SOCKET")
    try:
        if named:
            kind, _, rest = named.partition(":")
            first, _, last = rest.rpartition(":")
            if kind != "tcp":
                raise ValueError(kind)
            return first or host, int(last)
        return host, int(os.environ.get("ANDROID_ADB_SERVER_PORT") or port)
    except ValueError as error:
        raise DeviceError(
            "ADB_SERVER_SOCKET or ANDROID_ADB_SERVER_PORT names no address of adb's server that Edgeship can use; "
            "expected ones such as tcp:127.0.0.1:5037 and 5037"
        ) from error


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last words of a command, of either stream."""
    lines = [line.strip() for text in (done.stdout, done.stderr) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"


def in_full(done: subprocess.CompletedProcess[str]) -> str:
    """Command, exit status and both streams."""
    return (
        f"command: {shlex.join(done.args)}\nexit status: {done.returncode}\n"
        f"standard output:\n{done.stdout.strip()}\nstandard error:\n{done.stderr.strip()}"
    )


def _require_ready(serial: str, state: str, tried: str) -> None:
    if state == READY:
        return
    what = _STATES.get(state, f"is in the state '{state}', expected '{READY}'")
    kind = LoginRefusedError if state in ("unauthorized", "authorizing") else ConnectionFailedError
    raise kind(f"the phone {serial} {what}{tried}", details=f"command: adb devices\n{serial}\t{state}")

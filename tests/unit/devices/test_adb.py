"""The adb client's answers in each state of a phone, from an adb that prints what the real one (29.0.6) does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from devices import adb_doctor
from devices.address import host_variable
from devices.doctor import diagnose
from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
    StorageFullError,
    TransferFailedError,
    WheelMissingError,
)
from devices.fact_table import profile_rows
from devices.profile import load_profile
from devices.transport_config import AdbTransport
from devices.transports import adb, open_transport

STARTED = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"
HEAD = "List of devices attached\n"
NO_RULES = "no permissions (missing udev rules? user is in the plugdev group); see [http://developer.android.com]"

AdbMaker = Callable[..., Path]


@pytest.fixture
def fake_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdbMaker:
    """Makes an adb that answers commands in turn; returns the file of what it was asked."""
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)

    def make(*answers: tuple[str, str, int], **more: list[tuple[str, str, int]]) -> Path:
        directory = tmp_path / "bin"
        directory.mkdir()
        (directory / "answers.json").write_text(json.dumps({"devices": answers, **more}))
        script = f"""#!{sys.executable}
import json, sys
from pathlib import Path
home = Path({str(directory)!r})
with (home / "asked").open("a") as asked:
    asked.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((home / "answers.json").read_text())
queue = answers.get(sys.argv[1], [["", "", 0]])
output, errors, code = queue.pop(0) if len(queue) > 1 else queue[0]
(home / "answers.json").write_text(json.dumps(answers))
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""
        (directory / "adb").write_text(script)
        (directory / "adb").chmod(0o755)
        monkeypatch.setenv("PATH", str(directory))
        return directory / "asked"

    return make


@dataclass(frozen=True)
class State:
    """What adb prints, and what becomes of it."""

    id: str
    listed: str
    kind: type[DeviceError] | None
    says: str
    mend: str | None
    serial: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


STATES = (
    State("ready", "R58M12\tdevice\n", None, "R58M12", None),
    State("named", "R58M12\tdevice\nother\tdevice\n", None, "R58M12", None, serial="R58M12"),
    State("a serial with a space", "adb-1 (2)._adb._tcp\tdevice\n", None, "adb-1 (2)._adb._tcp", None),
    State("named by adb's variable", "R58M12\tdevice\nother\tdevice\n", None, "other", None,
          environment={"ANDROID_SERIAL": "other"}),
    State("none", "", ConnectionFailedError, "switch on USB debugging", "adb devices -l"),
    State("another", "R58M12\tdevice\n", ConnectionFailedError, "no phone X1; there are: R58M12 (device)",
          "adb devices -l", serial="X1"),
    State("several", "R58M12\tdevice\nemulator-5554\toffline\n", ConnectionFailedError,
          "several phones: R58M12 (device), emulator-5554 (offline). Name one: ANDROID_SERIAL in the environment",
          "adb devices -l"),
    State("unauthorized", "R58M12\tunauthorized\n", LoginRefusedError, "accept the key that its dialog shows",
          "adb reconnect offline"),
    State("authorizing", "R58M12\tauthorizing\n", LoginRefusedError, "accept the key", "adb reconnect offline"),
    State("offline", "R58M12\toffline\n", ConnectionFailedError, "is offline: plug its cable", "adb reconnect offline"),
    State("no rules", f"R58M12\t{NO_RULES}\n", ConnectionFailedError, "the USB rules for phones are missing",
          'sudo apt-get install android-sdk-platform-tools-common && sudo usermod -aG plugdev "$USER"'),
    State("recovery", "R58M12\trecovery\n", ConnectionFailedError, "into recovery", "adb -s R58M12 reboot"),
    State("a state of a later adb", "R58M12\tasleep\n", ConnectionFailedError, "in the state 'asleep'",
          "adb -s R58M12 reboot"),
)  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.id)
def test_a_phone_in_each_state(state: State, fake_adb: AdbMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_adb((HEAD + state.listed, STARTED, 0))
    for name, value in state.environment.items():
        monkeypatch.setenv(name, value)
    transport = AdbTransport(serial=state.serial)
    if state.kind is None:
        assert adb.find_phone(transport) == state.says
        return
    with pytest.raises(state.kind) as caught:
        adb.find_phone(transport)
    assert type(caught.value) is state.kind
    assert caught.value.exit_code == 3
    assert state.says in caught.value.message
    profile = load_profile("android-phone", environment={}).model_copy(update={"transport": transport})
    (finding,) = diagnose(profile).findings
    assert (finding.check, finding.state, finding.mend) == ("connection", "problem", state.mend)
    assert state.says in finding.message


def test_no_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    profile = load_profile("android-phone", environment={})
    with pytest.raises(DeviceError, match="there is no adb on this machine") as caught:
        open_transport(profile)
    assert caught.value.exit_code == 3
    assert diagnose(profile).findings[0].mend == "sudo apt-get install adb"


def test_a_server_that_can_not_be_reached(fake_adb: AdbMaker) -> None:
    reason = "adb: failed to check server version: protocol fault (couldn't read status): Connection reset by peer\n"
    fake_adb(("", STARTED + reason, 1))
    with pytest.raises(ConnectionFailedError, match=r"can't list the phones: .*protocol fault") as caught:
        adb.list_phones()
    assert caught.value.details == (
        f"command: adb devices\nexit status: 1\nstandard output:\n\nstandard error:\n{reason.strip()}"
    )
    assert diagnose(load_profile("android-phone", environment={})).findings[0].mend == (
        "adb kill-server && adb start-server"
    )


def test_an_address_is_connected_to(fake_adb: AdbMaker) -> None:
    asked = fake_adb(
        (HEAD, "", 0), (f"{HEAD}10.0.0.7:5555\tdevice\n", "", 0), connect=[("connected to 10.0.0.7:5555\n", "", 0)]
    )
    assert adb.find_phone(AdbTransport(serial="10.0.0.7:5555")) == "10.0.0.7:5555"
    assert asked.read_text().splitlines() == ['["devices"]', '["connect", "10.0.0.7:5555"]', '["devices"]']


def test_a_dead_connection_to_an_address_is_made_anew(fake_adb: AdbMaker) -> None:
    asked = fake_adb(
        (f"{HEAD}10.0.0.7:5555\toffline\n", "", 0), (f"{HEAD}10.0.0.7:5555\tdevice\n", "", 0),
        connect=[("connected to 10.0.0.7:5555\n", "", 0)],
    )  # fmt: skip
    assert adb.find_phone(AdbTransport(serial="10.0.0.7:5555")) == "10.0.0.7:5555"
    assert '["disconnect", "10.0.0.7:5555"]' in asked.read_text().splitlines()


def test_an_address_that_refuses(fake_adb: AdbMaker) -> None:
    answer = "failed to connect to '10.0.0.7:5555': Connection refused"
    fake_adb((HEAD, "", 0), connect=[(f"{answer}\n", "", 0)])
    transport = AdbTransport(serial="10.0.0.7:5555")
    with pytest.raises(ConnectionFailedError, match=r"sees no phone 10.0.0.7:5555 \(failed to connect .* refused\)"):
        adb.find_phone(transport)
    mend = adb_doctor.mend(load_profile("android-phone", environment={}), transport, ConnectionFailedError(""))
    assert mend == "adb connect 10.0.0.7:5555"


@pytest.mark.parametrize(
    ("serial", "expected"),
    [("10.0.0.7:5555", True), ("phone.local:37123", True), ("[fe80::1%eth0]:5555", True), ("R58M12", False),
     ("emulator-5554", False), ("adb-1 (2)._adb._tcp", False)],
)  # fmt: skip
def test_addresses(serial: str, expected: bool) -> None:
    assert adb.is_address(serial) is expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("127.0.0.1", 5037)),
        ({"ANDROID_ADB_SERVER_PORT": "15037"}, ("127.0.0.1", 15037)),
        ({"ADB_SERVER_SOCKET": "tcp:5038"}, ("127.0.0.1", 5038)),
        ({"ADB_SERVER_SOCKET": "tcp:lab.local:5038", "ANDROID_ADB_SERVER_PORT": "1"}, ("lab.local", 5038)),
        ({"ADB_SERVER_SOCKET": "localfilesystem:/run/adb"}, None),
        ({"ANDROID_ADB_SERVER_PORT": "many"}, None),
    ],
    ids=str,
)
def test_where_the_server_is(
    environment: dict[str, str], expected: tuple[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        with pytest.raises(DeviceError, match="expected ones such as"):
            adb.server_address()
    else:
        assert adb.server_address() == expected


SSH_OPTIONS = "-p 8022 -o HostKeyAlias=phone-R58M12"
FORWARD = "adb -s R58M12 forward tcp:8022 tcp:8022"


@dataclass(frozen=True)
class Mend:
    """A failure of a phone that adb reaches, and what mends it."""

    id: str
    error: DeviceError
    mend: str | None
    transport: dict[str, Any] = field(default_factory=dict)


SHELL = {"way": "shell"}
MENDS = (
    Mend("host key", HostKeyError(""), f"{FORWARD} && ssh {SSH_OPTIONS} localhost"),
    Mend("key refused", LoginRefusedError(""), f"{FORWARD} && ssh-copy-id {SSH_OPTIONS} localhost"),
    Mend("key refused, with a user", LoginRefusedError(""),
         f"{FORWARD} && ssh-copy-id {SSH_OPTIONS} -o 'UserKnownHostsFile=\"/a b\"' -l me -i /k localhost",
         {"user": "me", "identity_file": "/k", "known_hosts": "/a b"}),
    Mend("no server", ConnectionFailedError(""),
         "adb -s R58M12 shell am start -n com.termux/com.termux.app.TermuxActivity"),
    Mend("no Python", PythonMissingError(""), f"{FORWARD} && ssh -t {SSH_OPTIONS} localhost 'pkg install -y python'"),
    Mend("no wheel", WheelMissingError(""),
         f"{FORWARD} && ssh -t {SSH_OPTIONS} localhost "
         "'pkg install -y python-numpy python-onnxruntime python-tflite-runtime'"),
    Mend("full", StorageFullError(""),
         f"{FORWARD} && ssh -t {SSH_OPTIONS} localhost 'rm -rf .edgeship/files .edgeship/envs'"),
    Mend("something else", TransferFailedError(""), None),
    Mend("no Python, by a shell", PythonMissingError(""), None, SHELL),
    Mend("full, by a shell", StorageFullError(""),
         """adb -s R58M12 shell -t 'HOME=/data/local/tmp exec sh -c '"'"'rm -rf .edgeship/files .edgeship/envs'"'"''""",
         SHELL),
    Mend("lost, by a shell", ConnectionFailedError(""), None, SHELL),
)  # fmt: skip


@pytest.mark.parametrize("case", MENDS, ids=lambda case: case.id)
def test_what_mends_a_phone_that_is_there(case: Mend, fake_adb: AdbMaker) -> None:
    fake_adb((f"{HEAD}R58M12\tdevice\n", "", 0))
    profile = load_profile("android-phone", environment={})
    assert adb_doctor.mend(profile, AdbTransport.model_validate(case.transport), case.error) == case.mend


def test_a_phone_has_no_superuser() -> None:
    transport = AdbTransport(serial="R58M12")
    assert adb_doctor.on_phone(transport, "echo performance | sudo tee /sys/x") is None
    assert adb_doctor.on_phone(transport, "top") == f"{FORWARD} && ssh -t {SSH_OPTIONS} localhost top"


def test_which_phone_is_said_as_for_other_boards() -> None:
    variable = host_variable("android-phone")
    assert variable == "EDGESHIP_HOST_ANDROID_PHONE"
    assert load_profile("android-phone", environment={}).transport == AdbTransport()
    by_variable = load_profile("android-phone", environment={variable: "R58M12"})
    assert by_variable.transport == AdbTransport(serial="R58M12")
    assert load_profile("android-phone", host="10.0.0.7:5555", environment={variable: "R58M12"}).transport == (
        AdbTransport(serial="10.0.0.7:5555")
    )


def test_a_profile_shows_how_it_is_reached() -> None:
    assert ("transport", "kind: adb", "") in profile_rows(load_profile("android-phone", environment={}))


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    text = "extends: android-phone\nname: mine\ntransport: {serial: R58M12, way: shell, run_as: com.termux}\n"
    (tmp_path / "mine.yaml").write_text(text)
    transport = load_profile(tmp_path / "mine.yaml", environment={}).transport
    assert transport == AdbTransport(serial="R58M12", way="shell", run_as="com.termux")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"serial": "-s"}, "serial"),
        ({"run_as": "com.termux"}, "needs `way: shell`"),
        ({"way": "shell", "run_as": "a; rm"}, "run_as"),
        ({"port": 0}, "port"),
    ],
    ids=str,
)
def test_bad_transports(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AdbTransport.model_validate(values)

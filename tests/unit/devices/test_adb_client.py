"""The command lines for a phone, the dialing program, and what their failures mean."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devices.errors import (
    AgentCrashedError,
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
)
from devices.transport_config import AdbTransport, SshTransport
from devices.transports import adb_dial, client
from devices.transports.adb_client import (
    AdbShellClient,
    AdbSshClient,
    default_python,
    describe,
    dial_command,
    explain_end,
    shell_line,
)

PHONE = AdbTransport(serial="R58M12")
SHELL = AdbTransport(serial="R58M12", way="shell")
ODD = ["printf", "%s|", "a b", "'", '"', "$HOME", "`id`", "\\", "*", "line\nbreak", "", "~", "100%"]


def test_arguments_reach_a_program_of_the_phone_as_they_are(tmp_path: Path) -> None:
    line = AdbShellClient(SHELL, tmp_path).command(ODD, master=True)
    assert line[:-1] == ["adb", "-s", "R58M12", "shell", "-T"]
    # adb joins what it gets with spaces, and the phone's shell reads that.
    done = subprocess.run(["/bin/sh", "-c", " ".join(line[5:])], capture_output=True, text=True, check=True)
    assert done.stdout == "|".join(ODD[2:]) + "|"


def test_an_app_is_entered_with_its_own_environment(tmp_path: Path) -> None:
    transport = AdbTransport(serial="R58M12", way="shell", run_as="com.termux")
    (tmp_path / "run-as").write_text('#!/bin/sh\necho "$1"\nshift\nexec "$@"\n')
    (tmp_path / "run-as").chmod(0o755)
    told = "import os, sys; print(os.environ['HOME'], os.environ['TMPDIR'], sys.argv[1:])"
    line = shell_line(transport, [sys.executable, "-c", told, "a b", "'"])
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    files = "/data/data/com.termux/files"
    assert done.stdout == f"com.termux\n{files}/home {files}/usr/tmp ['a b', \"'\"]\n"
    assert default_python(transport) == f"{files}/usr/bin/python3"
    assert default_python(PHONE) == "python3"


def test_the_ssh_client_is_connected_by_the_dialing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "15037")
    monkeypatch.delenv("ADB_SERVER_SOCKET", raising=False)
    transport = AdbTransport(serial="odd 'serial' 100%", user="me")
    line = AdbSshClient(transport, tmp_path).command(["true"], master=True)
    assert line[0] == "ssh"
    assert "ProxyUseFdpass=yes" in line
    assert "HostKeyAlias=phone-odd__serial__100_" in line
    assert line[line.index("-l") + 1] == "me"
    (option,) = (word for word in line if word.startswith("ProxyCommand="))
    text = option.removeprefix("ProxyCommand=")
    assert "100%%" in text
    told = subprocess.run(
        ["/bin/sh", "-c", f"set -- {text.replace('%%', '%')}; shift 3; printf '%s|' \"$@\""],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert told == "127.0.0.1|15037|odd 'serial' 100%|8022|15|"


@contextmanager
def adb_server(answers: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers requests in turn, then sends a word and echoes; gives its port and what it was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in answers:
                size = int(connection.recv(4, socket.MSG_WAITALL), 16)
                asked.append(connection.recv(size, socket.MSG_WAITALL))
                connection.sendall(answer)
                if answer != b"OKAY":
                    return
            connection.sendall(b"SSH-2.0\r\n" + connection.recv(5, socket.MSG_WAITALL))

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join(10)


def dial(port: int, output: socket.socket, serial: str = "R58M12") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", adb_dial.__file__, "127.0.0.1", str(port), serial, "8022", "5"]
    return subprocess.run(command, stdout=output.fileno(), stderr=subprocess.PIPE, check=False, timeout=30)


def test_dialing_hands_the_connection_over_and_ends() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, adb_server([b"OKAY", b"OKAY"]) as (port, asked):
        done = dial(port, theirs, serial="sérial")
        assert (done.returncode, done.stderr) == (0, b"")
        data, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        assert data == b"\0"
        with socket.socket(fileno=descriptors[0]) as connection:
            connection.settimeout(10)
            connection.sendall(b"hello")
            assert connection.makefile("rb").read() == b"SSH-2.0\r\nhello"
    assert asked == ["host:transport:sérial".encode(), b"tcp:8022"]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([b"FAIL0019device 'R58M12' not found"], "edgeship: adb: device 'R58M12' not found"),
        ([b"OKAY", b"FAIL0006closed"], "edgeship: adb: nothing answers on port 8022 of the phone (closed)"),
        ([b"HTTP"], "edgeship: adb: HTTP"),
        ([b"OK"], "edgeship: adb: adb's server broke the connection"),
    ],
    ids=str,
)
def test_dialing_that_fails(answers: list[bytes], says: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, adb_server(answers) as (port, _):
        done = dial(port, theirs)
    assert done.returncode == 1
    assert done.stderr.decode().strip() == says


def test_dialing_a_server_that_is_not_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = dial(1, theirs)
    assert done.returncode == 1
    assert b"edgeship: adb: [Errno 111] Connection refused" in done.stderr


@dataclass(frozen=True)
class Ending:
    id: str
    transport: AdbTransport
    status: int
    output: str
    kind: type[DeviceError]
    says: str
    changes: dict[str, Any] = field(default_factory=dict)


APP = AdbTransport(serial="R58M12", way="shell", run_as="com.termux")
ENDINGS = (
    Ending("no server in Termux", PHONE, 255,
           "edgeship: adb: nothing answers on port 8022 of the phone (closed)\nproxy dialer did not pass back",
           ConnectionFailedError, "pkg install openssh, then sshd"),
    Ending("gone", PHONE, 255, "edgeship: adb: device 'R58M12' not found", ConnectionFailedError, "not found"),
    Ending("unknown host", PHONE, 255, "Host key verification failed.", HostKeyError, "`edgeship devices doctor`"),
    Ending("refused key", PHONE, 255, "x: Permission denied (publickey).", LoginRefusedError, "phone R58M12 accepts"),
    Ending("no python", PHONE, 127, "bash: python3: command not found", PythonMissingError, "pkg install python"),
    Ending("old python", SHELL, 1, "edgeship: Python 3.5 is too old", PythonMissingError, "expected 3.9 or later"),
    Ending("lost shell", SHELL, 0, "", ConnectionFailedError, "the connection to phone R58M12 broke"),
    Ending("gone from the shell", SHELL, 1, "error: device 'R58M12' not found", ConnectionFailedError, "not found"),
    Ending("later words of adb", SHELL, 1, "adb: error: device offline", ConnectionFailedError, "device offline"),
    Ending("no shell protocol", SHELL, 1, "error: device only supports allocating a pty", ConnectionFailedError,
           "Android 7 or later"),
    Ending("not debuggable", APP, 1, "run-as: package not debuggable: com.termux", LoginRefusedError,
           "can't be entered: package not debuggable"),
    Ending("no app", APP, 1, "run-as: unknown package: com.termux", LoginRefusedError, "unknown package"),
    Ending("something else", SHELL, 3, "Illegal instruction", DeviceError, "status 3: Illegal instruction"),
)  # fmt: skip


@pytest.mark.parametrize("case", ENDINGS, ids=lambda case: case.id)
def test_a_failure_says_what_to_do(case: Ending) -> None:
    error = explain_end(case.transport, "python3", case.status, case.output)
    assert type(error) is case.kind
    assert error.exit_code == 3
    assert case.says in error.message
    for part in (f"exit status: {case.status}", case.output):
        assert part in error.details


def test_the_right_client_for_each_transport(tmp_path: Path) -> None:
    board = SshTransport(host="b", jump=("x",), connect_timeout_s=5)
    assert client.make_client(board, tmp_path).command(["true"], master=True)[0] == "ssh"
    assert isinstance(client.make_client(PHONE, tmp_path), AdbSshClient)
    assert isinstance(client.make_client(SHELL, tmp_path), AdbShellClient)
    assert [client.lost_status(transport) for transport in (board, PHONE, SHELL)] == [255, 255, 0]
    assert [client.connect_seconds(transport) for transport in (board, PHONE)] == [10.0, 15.0]
    assert [client.describe(transport) for transport in (board, PHONE, APP)] == [
        "b through x", "phone R58M12", "phone R58M12 as com.termux",
    ]  # fmt: skip
    assert describe(PHONE) in client.explain_end(PHONE, "python3", 255, "").message
    assert dial_command(PHONE).endswith("R58M12 8022 15")
    assert not issubclass(AgentCrashedError, ConnectionFailedError)

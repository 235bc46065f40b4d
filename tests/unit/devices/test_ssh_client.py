"""The command lines of the SSH client, its configuration, and what its failures mean."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
)
from devices.transport_config import SshTransport
from devices.transports.ssh_client import LOADER, SshClient, describe, explain_end, ssh_configuration

BOARD = SshTransport(host="board.local", user="pi", port=2222, jump=("ann@gate:22", "lab"))


def test_the_command_line_is_a_list_and_the_remote_command_one_word(tmp_path: Path) -> None:
    line = SshClient(BOARD, tmp_path).command(["python3", "-c", "print('a b; rm $HOME')"], master=True)
    assert line[:4] == ["ssh", "-F", str(tmp_path / "config"), "-T"]
    assert line[-3:] == ["--", "board.local", """python3 -c 'print('"'"'a b; rm $HOME'"'"')'"""]
    assert line[line.index("-l") + 1] == "pi"
    assert line[line.index("-p") + 1] == "2222"
    assert line[line.index("-J") + 1] == "ann@gate:22,lab"
    assert "ControlMaster=yes" in line
    assert "ControlMaster=no" in SshClient(BOARD, tmp_path).command(["true"], master=False)


def test_what_is_not_said_is_left_to_the_users_configuration(tmp_path: Path) -> None:
    line = SshClient(SshTransport(host="board"), tmp_path).command(["true"], master=False)
    assert not {"-l", "-p", "-J", "-i"} & set(line)
    text = ssh_configuration(SshTransport(host="board"))
    assert "IdentityFile" not in text
    assert "UserKnownHostsFile" not in text
    assert "Include ~/.ssh/config" in text


def test_host_keys_are_checked_whatever_the_user_configured() -> None:
    lines = ssh_configuration(BOARD).splitlines()
    assert lines.index("StrictHostKeyChecking yes") < lines.index("Include ~/.ssh/config")
    assert lines.index("BatchMode yes") < lines.index("Include ~/.ssh/config")


def test_paths_are_quoted_and_must_exist(tmp_path: Path) -> None:
    odd = tmp_path / 'known "100%" hosts'
    odd.write_text("")
    text = ssh_configuration(SshTransport(host="board", known_hosts=str(odd)))
    assert f'UserKnownHostsFile "{tmp_path}/known \\"100%%\\" hosts"' in text
    with pytest.raises(DeviceError, match="names as identity_file"):
        ssh_configuration(SshTransport(host="board", identity_file=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    "values",
    [
        {"host": "-oProxyCommand=x"},
        {"host": "b c"},
        {"host": "b", "user": "-l"},
        {"host": "b", "jump": ["-W"]},
        {"host": "b", "jump": ["a,b"]},
    ],
    ids=str,
)
def test_names_that_read_as_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SshTransport.model_validate(values)


def test_a_board_is_described_as_people_write_it() -> None:
    assert describe(BOARD) == "pi@board.local:2222 through ann@gate:22, lab"
    assert describe(SshTransport(host="board")) == "board"


def test_even_an_old_python_reads_the_loader() -> None:
    ast.parse(LOADER, feature_version=(3, 4))
    assert "\n" not in LOADER
    assert "'" not in LOADER


@dataclass(frozen=True)
class Ending:
    id: str
    status: int
    output: str
    kind: type[DeviceError]
    says: str


CHANGED = "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n"
UNKNOWN = (
    "No ED25519 host key is known for board and you have requested strict checking.\nHost key verification failed."
)
REFUSED = "pi@board: Permission denied (publickey,password).\n"
ENDINGS = (
    Ending("unknown_host", 255, UNKNOWN, HostKeyError, "not among the known hosts"),
    Ending("changed_host_key", 255, CHANGED, HostKeyError, "ssh-keygen -R"),
    Ending("refused_key", 255, REFUSED, LoginRefusedError, "ssh-copy-id"),
    Ending("open_key", 255, f"UNPROTECTED PRIVATE KEY FILE!\n{REFUSED}", LoginRefusedError, "chmod 600"),
    Ending("no_route", 255, "ssh: connect to host b port 22: No route to host\n", ConnectionFailedError, "No route"),
    Ending("silence", 255, "", ConnectionFailedError, "without a word"),
    Ending("no_python", 127, "bash: python3: command not found\n", PythonMissingError, "apt install python3"),
    Ending("not_executable", 126, "sh: 1: python3: Permission denied\n", PythonMissingError, "can't be run"),
    Ending("old_python", 1, "edgeship: Python 3.5 is too old\n", PythonMissingError, "is Python 3.5, expected 3.9"),
    Ending("python_2", 2, "Unknown option: -I\nusage: python3 [option]\n", PythonMissingError, "is Python 2"),
    Ending("something_else", 1, "This account is not available.\n", DeviceError, "status 1: This account"),
)


@pytest.mark.parametrize("case", ENDINGS, ids=lambda case: case.id)
def test_a_failure_says_what_to_do(case: Ending) -> None:
    error = explain_end(BOARD, "python3", case.status, case.output)
    assert type(error) is case.kind
    assert error.exit_code == 3
    assert case.says in error.message
    assert "pi@board.local:2222" in error.message
    for part in ("command: python3", f"exit status: {case.status}", case.output.strip()):
        assert part in error.details

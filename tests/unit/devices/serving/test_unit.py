from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from devices.board import program
from devices.board.errors import AgentError
from devices.board.serving.notify import Supervisor
from devices.board.serving.unit import recovery_text, unit_text

TOKEN_FILE = "/etc/edgeship/token"  # noqa: S105
TEMPORARY = "/tmp/b"  # noqa: S108
COMMAND = ["/usr/bin/true", "-m", "board", "serve"]


def settings(text: str) -> dict[str, list[str]]:
    """All values of each key; refuses what is neither a section, a comment nor a setting."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line or line.startswith(("#", "[")):
            continue
        match = re.fullmatch(r"([A-Z][A-Za-z]+)=(.*)", line)
        assert match is not None, line
        found.setdefault(match.group(1), []).append(match.group(2))
    return found


def test_the_unit() -> None:
    found = settings(unit_text(COMMAND, root="/srv/edgeship", packages=["/opt/edgeship", "/opt/more"]))
    assert found["ExecStart"] == ["/usr/bin/true -m board serve"]
    assert found["Type"] == ["notify"]
    assert found["DynamicUser"] == found["NoNewPrivileges"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["IPAddressDeny"] == ["any"]
    assert found["Environment"] == ["PYTHONPATH=/opt/edgeship:/opt/more"]
    assert found["ProtectHome"] == ["yes"]
    assert "SupplementaryGroups" not in found
    assert "BindReadOnlyPaths" not in found


def test_releases_at_home_and_a_token() -> None:
    secrets = {"token-file": TOKEN_FILE, "key": "/etc/edgeship/100%.key"}
    root = "/home/pi/.local/share/edgeship"
    text = unit_text(COMMAND, root=root, secrets=secrets, group="pi", loopback=False)
    found = settings(text)
    assert found["ProtectHome"] == ["tmpfs"]
    assert found["BindReadOnlyPaths"] == ["/home/pi/.local/share/edgeship"]
    assert found["LoadCredential"] == [f"token-file:{TOKEN_FILE}", "key:/etc/edgeship/100%%.key"]
    directory = "${CREDENTIALS_DIRECTORY}"
    assert found["ExecStart"][0].endswith(f"serve --token-file {directory}/token-file --key {directory}/key")
    assert found["SupplementaryGroups"] == ["pi"]
    assert "IPAddressDeny" not in found


def test_all_that_lies_at_home_can_be_read() -> None:
    text = unit_text(COMMAND, root="/srv/a", packages=["/home/pi/agent"], reads=["/home/pi/venv", TEMPORARY, "/usr"])
    found = settings(text)
    assert found["ProtectHome"] == ["tmpfs"]
    assert found["BindReadOnlyPaths"] == ["/home/pi/agent", "/home/pi/venv", TEMPORARY]


def test_words_are_quoted() -> None:
    words = ["/usr/bin/true", "a b", 'say "hi"', "100%", "$HOME", "back\\slash", ""]
    (line,) = settings(unit_text(words, root="/srv/a"))["ExecStart"]
    assert line == '/usr/bin/true "a b" "say \\"hi\\"" 100%% "$$HOME" "back\\\\slash" ""'


def test_words_that_a_unit_can_not_hold() -> None:
    with pytest.raises(AgentError, match="control character"):
        unit_text([*COMMAND, "a\nUser=root"], root="/srv")
    with pytest.raises(AgentError, match="absolute"):
        unit_text(COMMAND, root="srv")


def test_what_runs_at_boot() -> None:
    found = settings(recovery_text(COMMAND, root="/srv/edgeship", user="pi", packages=["/opt/edgeship"]))
    assert found["Type"] == ["oneshot"]
    assert found["User"] == ["pi"]
    assert found["Before"] == ["edgeship-board.service"]
    assert found["ReadWritePaths"] == ["/srv/edgeship"]
    assert found["ProtectHome"] == ["yes"]
    assert "BindPaths" not in found
    text = recovery_text(
        COMMAND, root="/home/pi/r", user="pi", reads=["/home/pi/venv"], before=["a.service", "b.service"]
    )
    found = settings(text)
    assert found["ProtectHome"] == ["tmpfs"]
    assert (found["BindPaths"], found["BindReadOnlyPaths"]) == (["/home/pi/r"], ["/home/pi/venv"])
    assert found["Before"] == ["a.service b.service"]
    with pytest.raises(AgentError, match="control character"):
        recovery_text(COMMAND, root="/srv", user="pi\nExecStart=/bin/sh")


def test_the_command_writes_what_runs_at_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_check_owned_by_root", lambda _: None)
    output = tmp_path / "unit"
    assert program.main(["unit", "--recover", "--root", str(tmp_path), "--output", str(output)]) == 0
    found = settings(output.read_text())
    assert found["ExecStart"][0].endswith(f" -m devices.board recover --no-restart --root {tmp_path}")
    assert found["User"] == [pwd.getpwuid(tmp_path.stat().st_uid).pw_name]


def test_root_runs_nothing_that_others_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    program._check_owned_by_root(["/usr/bin"])
    (tmp_path / "code").mkdir()
    os.chown(tmp_path / "code", 1234, 1234)
    with pytest.raises(AgentError, match="others may change"):
        program._check_owned_by_root([str(tmp_path / "code" / "..") + "/code"])
    os.chown(tmp_path / "code", 0, 0)
    (tmp_path / "code").chmod(0o777)
    with pytest.raises(AgentError, match="others may change"):
        program._check_owned_by_root([str(tmp_path / "code")])


@pytest.mark.parametrize("recovery", [False, True], ids=["server", "recovery"])
@pytest.mark.parametrize("root", ["/srv/edgeship", "/home/pi/edge ship"])
def test_systemd_takes_the_unit(tmp_path: Path, root: str, *, recovery: bool) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / "edgeship-board.service"
    made = (
        recovery_text(COMMAND, root=root, user="root")
        if recovery
        else unit_text(COMMAND, root=root, secrets={"token-file": TOKEN_FILE})
    )
    path.write_text(made.replace("Before=edgeship-board.service\n", ""))
    done = subprocess.run([analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, complaints) == (0, [])
    command = [analyze, "security", "--offline=true", "--no-pager", str(path)]
    security = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    exposure = re.search(r"Overall exposure level for edgeship-board\.service: ([\d.]+)", security)
    assert exposure is not None, security
    assert float(exposure.group(1)) <= 2.0, security


def test_the_command_writes_it(tmp_path: Path) -> None:
    output = tmp_path / "unit"
    arguments = ["unit", "--root", "/srv/edgeship", "--workers", "2", "--name", "net", "--output", str(output)]
    assert program.main(arguments) == 0
    (line,) = settings(output.read_text())["ExecStart"]
    assert " -m devices.board serve --root /srv/edgeship --host 127.0.0.1 --port 8000 --name net --workers 2" in line


def test_systemd_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        supervisor = Supervisor({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000"})
        supervisor.tell("READY=1", "STATUS=serves")
        assert listener.recv(100) == b"READY=1\nSTATUS=serves"
    assert supervisor.watchdog_s == 30
    supervisor.tell("READY=1")  # nobody listens any more


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
def test_nobody_waits_for_signs_of_life(environment: dict[str, str]) -> None:
    supervisor = Supervisor(environment)
    assert supervisor.watchdog_s is None
    supervisor.tell("READY=1")

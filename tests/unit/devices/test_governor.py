"""The governor is set, and put back whoever is killed meanwhile."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices.board import governor
from devices.board.errors import AgentError, BadInput
from devices.board.governor import GovernorKeeper, restore_governors, set_governor
from devices.board.launch import DIRECTORY_VARIABLE
from devices.peer import JsonLinesProcess
from devices.transports.process_agent import ProcessAgent

sys.path.insert(0, str(Path(__file__).parent))

from boards import CPU, RASPBERRY_PI_4, plant

ROOT = Path(__file__).resolve().parents[3]
AGENT = "import sys; from devices.board.__main__ import main; main(sys.argv[1])"
HOST = """
import os, sys, time
from devices.peer import JsonLinesProcess
agent = JsonLinesProcess([sys.executable, "-c", sys.argv[1], sys.argv[2]])
agent.request("set_governor", {"governor": "performance"})
print(agent.pid, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The root of a Raspberry Pi 4, one of whose cores has another governor than the rest."""
    plant(tmp_path / "root", {**RASPBERRY_PI_4, "proc/sys/kernel/random/boot_id": "first\n"})
    (tmp_path / "root" / CPU / "cpu2/cpufreq/scaling_governor").write_text("powersave\n")
    return tmp_path / "root"


OLD = ["ondemand", "ondemand", "powersave", "ondemand"]


def governors(board: Path) -> list[str]:
    return [(board / CPU / f"cpu{core}/cpufreq/scaling_governor").read_text().strip() for core in range(4)]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), DIRECTORY_VARIABLE: str(tmp_path / "notes")}


def start(tmp_path: Path) -> JsonLinesProcess:
    command = [sys.executable, "-c", AGENT, str(tmp_path / "root")]
    return JsonLinesProcess(command, env=environment(tmp_path), name="the agent")


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_it_is_set_and_put_back(board: Path) -> None:
    old = set_governor("performance", str(board))
    assert governors(board) == ["performance"] * 4
    restore_governors(old)
    assert governors(board) == OLD


def test_a_governor_that_can_not_be_set(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"this kernel offers none .* measure without --governor"):
        set_governor("performance", str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match="this kernel offers: conservative, ondemand, userspace"):
        set_governor("performnace", str(board))
    real = governor.write_text

    def refuse(path: str, text: str) -> None:
        if "cpu2" in path:
            raise PermissionError(13, "Permission denied")
        real(path, text)

    monkeypatch.setattr(governor, "write_text", refuse)
    keeper = GovernorKeeper(str(tmp_path / "notes"), str(board))
    with pytest.raises(AgentError, match=r"cpu2.*Permission denied. Only root may"):
        keeper.set("performance")
    assert governors(board) == OLD
    assert list((tmp_path / "notes").iterdir()) == []
    with pytest.raises(AgentError, match=r"set them by hand: .*cpu2.* to 'ondemand'"):
        restore_governors([(str(board / CPU / "cpu2/cpufreq/scaling_governor"), "ondemand")])


def test_the_note_is_there_before_the_change(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    note = tmp_path / "notes" / "governors.json"
    monkeypatch.setattr(governor, "write_text", lambda *_: seen.append(json.loads(note.read_text())))
    GovernorKeeper(str(tmp_path / "notes"), str(board)).set("performance")
    assert [(each["boot_id"], each["set"]) for each in seen] == [("first", "performance")] * 4
    assert [old for _, old in seen[0]["old"]] == OLD


def test_the_next_agent_puts_back_what_a_killed_one_left(
    board: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start(tmp_path) as agent:
        agent.request("set_governor", {"governor": "performance"})
        with start(tmp_path) as other:
            assert other.request("hello")["mended"] == ""
            with pytest.raises(Exception, match="another process of Edgeship has set the governor"):
                other.request("set_governor", {"governor": "powersave"})
        assert governors(board) == ["performance"] * 4, "its owner lives"
        os.kill(agent.pid, signal.SIGKILL)
        wait_for(lambda: agent._process.poll() is not None)
    assert governors(board) == ["performance"] * 4
    command = [sys.executable, "-c", AGENT, str(board)]
    with caplog.at_level(logging.WARNING), ProcessAgent(command, env=environment(tmp_path), device="pi") as next_one:
        assert governors(board) == OLD
        assert next_one.request("hello")["mended"] == ""
    (message,) = caplog.messages
    assert message == (
        "device 'pi': a measurement that was cut off had set the governor 'performance'; it is 'ondemand' again, as "
        "before"
    )
    assert list((tmp_path / "notes").iterdir()) == []


def test_a_killed_host_leaves_the_old_governor(board: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOST, AGENT, str(board)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(tmp_path)) as host:
        assert host.stdout is not None
        agent = Path(f"/proc/{int(host.stdout.readline())}")
        assert governors(board) == ["performance"] * 4
        host.kill()
    wait_for(lambda: governors(board) == OLD, 5)
    wait_for(lambda: not agent.exists() or "Z" in (agent / "stat").read_text().rpartition(")")[2], 5)
    assert list((tmp_path / "notes").iterdir()) == []


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_an_agent_that_is_ended_leaves_the_old_governor(end: str, board: Path, tmp_path: Path) -> None:
    with start(tmp_path) as agent:
        agent.request("set_governor", {"governor": "performance"})
        if end == "terminate":
            os.kill(agent.pid, signal.SIGTERM)
            wait_for(lambda: agent._process.poll() is not None)
            assert agent._process.returncode == -signal.SIGTERM
    assert governors(board) == OLD


def test_what_is_not_ours_to_put_back_is_left_alone(board: Path, tmp_path: Path) -> None:
    note, keeper = tmp_path / "notes" / "governors.json", GovernorKeeper(str(tmp_path / "notes"), str(board))
    note.parent.mkdir()
    path = board / CPU / "cpu0/cpufreq/scaling_governor"
    other = tmp_path / "other"
    for text in ("", "{", json.dumps({"boot_id": "an earlier start", "set": "ondemand", "old": [[str(path), "x"]]}),
                 json.dumps({"boot_id": "first", "set": "performance", "old": [[str(path), "x"]]}),
                 json.dumps({"boot_id": "first", "set": "", "old": [[str(other), "x"]]})):  # fmt: skip
        note.write_text(text)
        assert keeper.mend() == ""
        assert governors(board) == OLD
        assert not note.exists()
        assert not other.exists()
    assert keeper.mend() == ""


def test_what_can_not_be_put_back_stays_noted(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "notes" / "governors.json"
    note.parent.mkdir()
    path = str(board / CPU / "cpu0/cpufreq/scaling_governor")
    note.write_text(json.dumps({"boot_id": "first", "set": "ondemand", "old": [[path, "powersave"]]}))

    def refuse(*_: str) -> None:
        raise PermissionError(13, "Permission denied")

    keeper = GovernorKeeper(str(note.parent), str(board))
    with monkeypatch.context() as patch:
        patch.setattr(governor, "write_text", refuse)
        assert "could not be put back; set them by hand: " in keeper.mend()
    assert "it is 'powersave' again" in keeper.mend()
    assert governors(board)[0] == "powersave"

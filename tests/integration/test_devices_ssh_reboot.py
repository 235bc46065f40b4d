"""A board that restarts while it is measured, behind a real SSH server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.errors import ConnectionFailedError
from devices.transports import open_transport
from tests.conftest import clean_environment
from tests.ssh_board import clean_server, profile, wait_for, write_model
from tests.ssh_server import SshServer

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")

QUICK = ("--min-count", "10", "--min-time", "0", "--precision", "0")
LONG = ("--min-count", "10", "--min-time", "300", "--max-time", "600", "--precision", "0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server; after the test nothing of ours is left on either side."""
    with clean_server(tmp_path) as running:
        yield running


def bench(server: SshServer, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command line at work, in a group of processes of its own."""
    (directory / "board.yaml").write_text(profile(server).model_dump_json(exclude_none=True))
    model = write_model(directory / "model.fake")
    command = [sys.executable, "-m", "pipeline.cli", "bench", str(model), "--device", str(directory / "board.yaml"),
               "--results", str(directory / "results.jsonl"), "--json", *arguments]  # fmt: skip
    return subprocess.Popen(
        command, cwd=directory, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def is_measuring(server: SshServer) -> bool:
    """Whether the model has arrived and two agents live, one that measures and one that looks on."""
    sent = list((server.root / "files").glob("*/model.fake"))
    return bool(sent) and sum("/agents/" in command for command in server.commands) >= 2


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what_is_left", ["home", "nothing"])
def test_a_board_that_restarts_in_the_middle_of_a_bench(what_is_left: str, server: SshServer, tmp_path: Path) -> None:
    with bench(server, tmp_path, *LONG) as running:
        assert not wait_for(lambda: is_measuring(server), 120)
        server.go_down()
        out, err = running.communicate(timeout=120)
    assert running.returncode == 3, err
    assert "tester@127.0.0.1" in err
    assert "command: " in err
    assert "exit status: 255" in err
    assert "the end of both streams:" in err
    assert "Traceback" not in err
    assert [case["latency_ms"] for case in json.loads(out)["cases"]] == [None] if out else True
    assert not wait_for(lambda: not group_lives(running.pid)), "processes are left on this machine"
    assert not (tmp_path / "results.jsonl").exists()
    assert not server.living()

    if what_is_left == "nothing":  # such as on a system that lies in memory
        shutil.rmtree(server.root)
    server.come_back()
    with bench(server, tmp_path, *QUICK) as again:
        out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert json.loads(out)["cases"][0]["latency_ms"]["count"] >= 10
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_a_board_that_is_down_is_found_again(server: SshServer) -> None:
    """The connection that is shared within a program is made anew once the board answers."""
    device = open_transport(profile(server))
    with device.start_agent() as agent:
        first = agent.request("hello")["pid"]
        server.go_down()
        with pytest.raises(ConnectionFailedError) as caught:
            agent.request("facts")
    assert caught.value.exit_code == 3
    assert "tester@127.0.0.1" in caught.value.message
    with pytest.raises(ConnectionFailedError, match="Connection refused"):
        device.put(__file__)
    server.come_back()
    with device.start_agent() as agent:
        assert agent.request("hello")["pid"] != first

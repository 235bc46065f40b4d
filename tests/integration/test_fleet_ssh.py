"""A deployment to eight boards behind SSH servers, all at once: one is switched on late, one refuses."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.board.release_home import status
from devices.fleet_boards import Deployment, Trust, ask_status
from devices.transports import ssh_link
from pipeline.fleet_file import load_fleet
from tests import openssh_server, ssh_server
from tests.bundles import make_bundle, opened
from tests.conftest import clean_environment
from tests.ssh_board import own_directories, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine"),
]

PROFILE = """\
name: board
description: A board of the test.
python: {python}
runtimes: {{fake: ""}}
preference: [fake]
transport: {{kind: ssh}}
latency_label: simulated
"""
NUM_BOARDS = 8
KINDS = {"asyncssh": ssh_server.serve, "openssh": openssh_server.serve}


@pytest.fixture(params=KINDS)
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Any]]:
    if request.param == "openssh" and openssh_server.SSHD is None:
        pytest.skip("no OpenSSH server on this machine")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(KINDS[request.param](tmp_path / f"s{number}")) for number in range(NUM_BOARDS)]


def write_fleet(directory: Path, servers: list[Any], boards: int = NUM_BOARDS) -> Path:
    (directory / "board.yaml").write_text(PROFILE.format(python=sys.executable))
    groups: dict[str, Any] = {
        "open": {"profile": "./board.yaml", "root": "~/releases", "boards": []},
        "strict": {"profile": "./board.yaml", "root": "~/releases", "boards": []},
    }
    for number, server in enumerate(servers[:boards]):
        transport = server.transport()
        keys = ("host", "port", "user", "identity_file", "known_hosts")
        board = {"name": f"board-{number}", **{key: transport[key] for key in keys}}
        groups["strict" if number == NUM_BOARDS - 1 else "open"]["boards"].append(board)
    path = directory / "fleet.yaml"
    groups = {name: group for name, group in groups.items() if group["boards"]}
    path.write_text(json.dumps({"schema_version": 1, "name": "eight", "groups": groups}))  # JSON is YAML
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]


def edgeship(directory: Path, *arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        command(*arguments, "--json"),
        cwd=directory,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_board_that_is_done_leaves_no_connection(tmp_path: Path) -> None:
    with ssh_server.serve(tmp_path / "s") as server:
        fleet = load_fleet(write_fleet(tmp_path, [server] * NUM_BOARDS, boards=1), tmp_path)
        bundle = make_bundle(tmp_path / "net.edgeship")
        steps: list[str] = []
        act = Deployment(bundle, "net", opened(bundle).digest)
        first = act(fleet.boards[0], ask=False, on_step=steps.append)
        assert (first.state, first.step) == ("refused", "signature")
        told = Trust(allow_unsigned=True)(fleet.boards[0])[1]
        assert told is not None
        assert act(fleet.boards[0], ask=True, on_step=steps.append).state == "updated"
        assert act(fleet.boards[0], ask=False, on_step=steps.append).state == "already in use"
        assert steps[:3] == ["send", "read", "signature"]
        assert ask_status(fleet.boards[0]).releases == (
            {"name": "net", "current": act.digest, "previous": None, "target": "fake", "precision": "float32"},
        )
        assert ssh_link._links == {}
        assert own_directories() == []
        assert not wait_for(lambda: not server.living())
        assert not wait_for(lambda: not [each for each in threading.enumerate() if each.name.startswith("keep alive")])
        server.switch_off()
        verdict = act(fleet.boards[0], ask=False, on_step=steps.append)
        assert (verdict.state, verdict.again) == ("off", True)
        assert ask_status(fleet.boards[0]).releases is None


def test_eight_at_once(servers: list[Any], tmp_path: Path) -> None:
    fleet, bundle = write_fleet(tmp_path, servers), make_bundle(tmp_path / "net.edgeship")
    digest = opened(bundle).digest
    told = edgeship(tmp_path, "fleet", "trust", fleet, "--group", "open", "--allow-unsigned")
    assert [row["settings"]["allow_unsigned"] for row in told["boards"]] == [True] * 7
    late = servers[3]
    late.switch_off()
    arguments = ("--canary", "0", "--batch", "100%", "--max-failures", "1", "--parallel", "8", "--retry-off", "1",
                 "--attempts", "40", "--json")  # fmt: skip
    running = subprocess.Popen(
        command("deploy", bundle, "--fleet", fleet, *arguments),
        cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    said = []
    for line in running.stderr:
        said.append(line)
        if line.startswith("board-3: off"):
            late.switch_on()
            break
    output, rest = running.communicate(timeout=120)
    assert running.returncode == 0, [*said, rest]
    report = json.loads(output)
    assert report["text"] == "done, 1 failed (1 may)."
    rows = {row["board"]: row for row in report["boards"]}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        **{f"board-{number}": "updated" for number in range(7)},
        "board-7": "refused",
    }
    assert rows["board-7"]["step"] == "signature"
    assert "this board takes signed bundles only" in rows["board-7"]["reason"]
    assert rows["board-3"]["tries"] > 1
    lines = (tmp_path / report["directory"] / "journal.jsonl").read_text().splitlines()
    journal = [json.loads(line) for line in lines]
    assert [line.get("state") for line in journal[1:9]] == ["begun"] * 8, "not all at once"
    for number, server in enumerate(servers):
        found = status(str(server.home / "releases"))
        assert [row["current_digest"] for row in found] == ([digest] if number < 7 else [])
        assert not list((server.home / ".edgeship" / "files").glob("*/net.edgeship")), "the bundle is left on the board"

    again = edgeship(tmp_path, "fleet", "status", fleet)
    current = {row["board"]: [each["current"] for each in row["releases"]] for row in again["boards"]}
    assert current == {f"board-{number}": [digest] if number < 7 else [] for number in range(8)}

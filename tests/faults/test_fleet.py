"""A fleet of a thousand boards, a tenth of them broken in every way: it ends as it says, and nothing is half done."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devices.board.release_install import STEPS
from devices.board.release_service import forget_service, set_service
from tests.bundles import make_bundle, make_key, opened, signer_line, trust
from tests.faults.board import Board
from tests.faults.fake_fleet import KINDS, ROOT, make_boards, name_of, plan_faults, write_fleet

Fault = Callable[[], AbstractContextManager[None]]

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen on this machine")

NUM_BOARDS, NUM_FAILING = 1000, 100
NUM_KILLED = 80
"""Boards of the fleet whose host is killed."""
NUM_CORES = os.cpu_count() or 1
MAX_SECONDS = 120
"""Two minutes, on a machine that does nothing else; where others use it, as much longer as they do."""
MAX_GROWTH_KIB = 16 * 1024

REFUSED = {
    "tampered": "unpack",
    "wrong key": "signature",
    "wrong architecture": "fit",
    "runtime missing": "self-test",
    "golden mismatch": "self-test",
    "too slow": "budget",
}
"""What the board itself finds, and at which step."""
SERVICE_STEPS = ("restart", "watch")
WELL = {"check": ["true"], "restart": ["true"], "come_up_s": 30, "watch_s": 0.2}
NOT_WELL = {"check": ["false"], "come_up_s": 0.3, "watch_s": 0.2}


@dataclass
class FakeFleet:
    """A directory with a fleet, its boards and two bundles."""

    directory: Path
    key: Path
    old: Path
    new: Path
    faults: dict[str, dict[str, Any]]

    def board(self, name: str) -> Board:
        return Board(self.directory / "boards" / name, self.old, self.new)

    def command(self, go_on: str, limit: str) -> list[str]:
        return [sys.executable, "-m", "tests.faults.fake_fleet", str(self.directory), go_on, limit]

    def deploy(self, go_on: str = "auto", limit: str = "15%") -> dict[str, Any]:
        done = subprocess.run(self.command(go_on, limit), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told


def make_fleet(directory: Path, num_boards: int, num_failing: int) -> FakeFleet:
    key, other = make_key(directory / "key"), make_key(directory / "other")
    changes: dict[str, Any] = {"requires": {"architecture": os.uname().machine}, "budget": {"latency_p50_ms": 60.0}}
    old = make_bundle(directory / "old.edgeship", 1, key=key, **changes)
    new = make_bundle(directory / "new.edgeship", 2, key=key, **changes)
    data = bytearray(new.read_bytes())
    data[data.index(b"model.fake" + bytes(90)) + 512 + 100] ^= 1
    (directory / "tampered.edgeship").write_bytes(data)
    template = trust(directory / "template", signers=signer_line(key))
    Board(template, old, new).install(old)
    make_boards(directory, template, num_boards)
    write_fleet(directory, num_boards)
    faults = plan_faults(num_boards, num_failing) if num_failing else {}
    (directory / "faults.json").write_text(json.dumps(faults))
    for name, fault in faults.items():
        if fault["kind"] == "wrong key":
            trust(directory / "boards" / name, signers=signer_line(other))
        if fault["kind"] == "service" or fault.get("step") in SERVICE_STEPS:
            service = NOT_WELL if fault["kind"] == "service" else WELL
            set_service(str(directory / "boards" / name), None, service)
    return FakeFleet(directory, key, old, new, faults)


def check_row(fleet: FakeFleet, row: dict[str, Any]) -> str:
    """The report says what is in use, which is whole."""
    found = fleet.board(row["board"]).check()
    outcome = row["outcome"]
    if outcome in ("updated", "already in use"):
        assert found == "new", row
    elif outcome in ("refused", "rolled back", "off", "waiting"):
        assert found == "old", row
    else:
        assert outcome == "failed", row
    return found


def test_a_thousand_boards_of_which_a_tenth_fails(tmp_path: Path, fault: Fault, note: Callable[[str], None]) -> None:
    fleet = make_fleet(tmp_path, NUM_BOARDS, NUM_FAILING)
    assert len(fleet.faults) == NUM_FAILING
    assert {each["kind"] for each in fleet.faults.values()} == {"killed", *KINDS}
    assert {each["step"] for each in fleet.faults.values() if each["kind"] == "killed"} == set(STEPS)
    load = os.getloadavg()[0]
    told = fleet.deploy()
    report = told["report"]
    memory = f"{told['before_kib'] / 1024:.0f} MiB before, {told['peak_kib'] / 1024:.0f} MiB at its peak"
    busy = f"processor time {told['cpu_seconds']:.1f} s; {NUM_CORES} cores, load before {load:.1f}"
    note(f"{NUM_BOARDS} boards in {told['seconds']:.1f} s ({busy}): {report['text']} Deploying process: {memory}.")
    assert report["state"] == "done"
    assert told["cpu_seconds"] < MAX_SECONDS
    assert told["seconds"] < MAX_SECONDS * max(1.0, load / NUM_CORES)
    assert told["peak_kib"] - told["before_kib"] < MAX_GROWTH_KIB
    rows = {row["board"]: row for row in report["boards"]}
    assert len(rows) == NUM_BOARDS
    assert Counter(row["outcome"] for row in rows.values()) == {
        state: number for state, number in report["counts"].items() if number
    }
    for name, row in rows.items():
        if name not in fleet.faults:
            assert row["outcome"] == "updated", row
            assert check_row(fleet, row) == "new"
            assert nothing_lies_about(fleet.board(name))
    for name, broken in fleet.faults.items():
        with fault():
            check_broken(fleet, rows[name], broken)


def check_broken(fleet: FakeFleet, row: dict[str, Any], broken: dict[str, Any]) -> None:
    check_row(fleet, row)
    kind = broken["kind"]
    if kind in REFUSED:
        assert (row["outcome"], row["step"]) == ("refused", REFUSED[kind]), (row, broken)
        assert row["reason"]
    elif kind == "service":
        assert (row["outcome"], row["step"]) == ("rolled back", "watch"), row
        assert "the service did not come up with the release" in row["reason"]
        forget_service(str(fleet.directory / "boards" / row["board"]), None)
    elif kind in ("killed", "connection cut", "power cut") and (broken["times"] == 1 and not broken.get("gone")):
        assert row["outcome"] == "updated", (row, broken)
        assert row["tries"] == 2
    elif kind in ("disk full", "read-only"):
        assert row["outcome"] in ("refused", "updated"), (row, broken)  # updated: it failed after the switch
        assert row["step"] or row["outcome"] == "updated"
    else:
        assert row["outcome"] in ("failed", "updated"), (row, broken)
        assert not broken.get("gone") or row["reason"].endswith("it was not reached since"), (row, broken)
    if kind == "wrong key":
        trust(fleet.directory / "boards" / row["board"], signers=signer_line(fleet.key))
    fleet.board(row["board"]).check_next()


def nothing_lies_about(board: Board) -> bool:
    return {path.name for path in board.home.iterdir()} == {".lock", "current", "previous", "releases", "state.json"}


def test_too_many_failures_stop_it(tmp_path: Path, fault: Fault) -> None:
    fleet = make_fleet(tmp_path, 200, 100)
    with fault():
        report = fleet.deploy(limit="5%")["report"]
        assert report["state"] == "stopped"
        assert report["counts"]["waiting"] >= 170
        for row in report["boards"]:
            check_row(fleet, row)
            if row["outcome"] == "waiting":
                assert row["tries"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_the_deploying_host_is_killed_again_and_again(seed: int, tmp_path: Path, fault: Fault) -> None:
    fleet = make_fleet(tmp_path, NUM_KILLED, 0)
    random_ = random.Random(seed)
    for kill in range(4):
        with fault():
            running = subprocess.Popen(
                fleet.command("auto", "0"), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
            )
            wanted = 40 * kill + random_.randrange(1, 40)
            deadline = time.monotonic() + 60
            while lines_of(fleet) < wanted and running.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            for number in range(NUM_KILLED):
                fleet.board(name_of(number)).check()
    before = {name for name, state in last_states(fleet).items() if state == "updated"}
    report = fleet.deploy(limit="0")["report"]
    assert report["state"] == "done"
    assert report["counts"]["updated"] == NUM_KILLED, report["counts"]
    assert before
    assert all(row["tries"] == 0 for row in report["boards"] if row["board"] in before), "a board was touched again"
    for number in range(NUM_KILLED):
        board = fleet.board(name_of(number))
        assert board.in_use() == opened(fleet.new).digest
        assert nothing_lies_about(board)


def journal_lines(fleet: FakeFleet) -> Iterator[dict[str, Any]]:
    for path in fleet.directory.glob("runs/fleets/*/*/journal.jsonl"):
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a torn last line


def lines_of(fleet: FakeFleet) -> int:
    return sum(1 for _ in journal_lines(fleet))


def last_states(fleet: FakeFleet) -> dict[str, str]:
    return {line["board"]: line["state"] for line in journal_lines(fleet) if "board" in line}

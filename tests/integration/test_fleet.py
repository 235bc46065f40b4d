"""The command line on a fleet of boards that are directories of this machine."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from devices.board.release_home import read_state, status
from tests.bundles import make_bundle, opened
from tests.conftest import Outcome, Workplace

NUM_BOARDS = 6
FLEET = "schema_version: 1\nname: shop\ngroups:\n"
GROUP = "  {name}:\n    profile: local\n    boards:\n"
BOARD = "      - {{name: {name}, root: boards/{name}}}\n"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """Six boards in two groups, none of which has a release; two bundles, and one that every board refuses."""
    text = FLEET
    for group in ("a", "b"):
        text += GROUP.format(name=group)
        text += "".join(BOARD.format(name=f"{group}{number}") for number in range(NUM_BOARDS // 2))
    (tmp_path / "fleet.yaml").write_text(text)
    make_bundle(tmp_path / "net.edgeship")
    make_bundle(tmp_path / "slow.edgeship", 2, budget={"latency_p50_ms": 1e-9})
    return Workplace(tmp_path)


def deploy(place: Workplace, *more: str, bundle: str = "net.edgeship") -> Outcome:
    return place.edgeship("deploy", bundle, "--fleet", "fleet.yaml", *more)


def in_use(place: Workplace) -> dict[str, str | None]:
    """The release of each board, which is whole."""
    found: dict[str, str | None] = {}
    for name in (f"{group}{number}" for group in "ab" for number in range(NUM_BOARDS // 2)):
        rows = status(str(place.directory / "boards" / name))
        assert all(row["current"] is not None for row in rows if row["current_digest"])
        found[name] = rows[0]["current_digest"] if rows else None
    return found


@pytest.mark.slow
def test_a_fleet_from_its_first_release_to_a_bad_one(place: Workplace) -> None:
    digest = opened(place.directory / "net.edgeship").digest
    first = deploy(place, "--group", "a", "--canary", "2", "--json")
    assert first.code == 0, first.stderr
    report = first.json()
    assert report["text"] == "done."
    assert [row["board"] for row in report["boards"]] == ["a0", "a1", "a2"]
    assert in_use(place) == {**dict.fromkeys(["a0", "a1", "a2"], digest), **dict.fromkeys(["b0", "b1", "b2"])}
    assert first.stderr.splitlines()[1] == "canary of 2 boards"

    rest = deploy(place)
    assert rest.code == 0
    assert "shop: done.\n" in rest.stdout
    assert "runs/fleets/shop/" in rest.stdout
    assert set(in_use(place).values()) == {digest}

    bad = deploy(place, bundle="slow.edgeship")
    assert bad.code == 3
    assert "stopped: 1 of 1 board failed, 5% may; 5 boards not begun." in bad.stdout
    assert "and the budget allows 1e-09" in bad.stdout.replace("\n", " ")
    assert set(in_use(place).values()) == {digest}
    again = deploy(place, bundle="slow.edgeship")
    assert again.code == 2
    assert "--resume goes on" in again.stderr
    resumed = deploy(place, "--resume", "--max-failures", "100%", "--json", bundle="slow.edgeship")
    assert resumed.json()["counts"]["refused"] == NUM_BOARDS
    assert resumed.code == 3, "no board has it"

    told = place.edgeship("fleet", "status", "fleet.yaml")
    assert told.code == 0
    assert f"6 boards run net {digest}" in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_host_is_killed_and_the_same_command_goes_on(seed: int, place: Workplace) -> None:
    random_ = random.Random(seed)
    command = place.command("deploy", "net.edgeship", "--fleet", "fleet.yaml", "--parallel", "2", "--json")
    for _ in range(3):
        running = place.start(command)
        wanted = random_.randrange(1, 8)
        assert running.stderr is not None
        for _ in zip(running.stderr, range(wanted), strict=False):
            pass
        running.kill()
        running.communicate(timeout=60)
        in_use(place)
    done = deploy(place, "--json")
    assert done.code == 0, done.stderr
    assert set(in_use(place).values()) == {opened(place.directory / "net.edgeship").digest}
    for name in in_use(place):
        home = place.directory / "boards" / name / "net"
        assert {path.name for path in home.iterdir()} <= {".lock", "current", "releases", "state.json"}
        results = [row["result"] for row in read_state(str(home))["history"]]
        assert results.count("done") == 1, "it was installed again"


@pytest.mark.slow
def test_an_interrupt_ends_what_is_under_way_and_begins_nothing(place: Workplace) -> None:
    running = place.start(place.command("deploy", "net.edgeship", "--fleet", "fleet.yaml", "--parallel", "1"))
    assert running.stderr is not None
    first = [running.stderr.readline() for _ in range(3)]
    assert first[2].startswith("a0: updated"), first
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "paused, " in output
    assert "waiting; the same command goes on." in output
    updated = [name for name, digest in in_use(place).items() if digest]
    assert 1 <= len(updated) < NUM_BOARDS
    done = deploy(place, "--json")
    assert [row["tries"] for row in done.json()["boards"] if row["board"] in updated] == [0] * len(updated)
    assert None not in in_use(place).values()


@pytest.mark.slow
def test_two_deployments_at_once(place: Workplace) -> None:
    running = place.start(place.command("deploy", "net.edgeship", "--fleet", "fleet.yaml", "--pause", "3600"))
    assert running.stderr is not None
    assert running.stderr.readline().startswith("net ")
    second = deploy(place)
    assert second.code == 2
    assert "shop is being deployed to by " in second.stderr
    assert f"(process {running.pid})" in second.stderr
    running.kill()
    running.communicate(timeout=60)


def test_trust_and_a_board_that_can_not_be_told(place: Workplace) -> None:
    (place.directory / "boards").mkdir()
    (place.directory / "boards" / "a1").write_text("no directory")
    told = place.edgeship("fleet", "trust", "fleet.yaml", "--group", "a", "--allow-unsigned", "--keep", "3", "--json")
    assert told.code == 3
    rows = {row["board"]: row for row in told.json()["boards"]}
    assert rows["a0"]["settings"] == {"allow_unsigned": True, "keep": 3}
    assert rows["a1"]["reason"]
    assert "settings" not in rows["a1"]

"""Services that are not well with a new release, and whoever watches them killed at every point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from devices.board.release_errors import FailedWatch, Refusal
from devices.board.release_home import linked, read_state, status
from devices.board.release_install import STEPS, Installer
from devices.board.release_recover import recover_releases
from devices.profile import load_profile
from devices.release import install
from tests.bundles import make_bundle, opened, trust
from tests.faults import dying_watcher
from tests.faults.board import Board, passes
from tests.faults.dying_watcher import DyingWatcher
from tests.faults.processes import HOST, INSTALLER, killed
from tests.faults.services import FAULTS, FakeServer, fake_server

Fault = Callable[[], AbstractContextManager[None]]

AFTERWARDS = (*STEPS[STEPS.index("announce") :], "back")


@pytest.fixture
def server(board: Board) -> Iterator[FakeServer]:
    """A server of the board's releases, which is not well with the new one once a fault is set."""
    with fake_server(board.root) as running:
        running.bad = opened(board.new).digest
        running.use()
        yield running


def last(board: Board) -> dict[str, str]:
    found: dict[str, str] = read_state(str(board.home))["history"][-1]
    return found


@pytest.mark.parametrize("kind", FAULTS)
def test_a_server_that_is_not_well(kind: str, board: Board, server: FakeServer, fault: Fault) -> None:
    server.fault = kind
    server.use(come_up_s=0.3)
    with fault():
        with pytest.raises(FailedWatch, match="is in use again") as refused:
            board.install(board.new)
        assert refused.value.step == "watch"
        assert "but the service is not up" not in str(refused.value)
        assert board.check() == "old"
        assert (last(board)["result"], last(board)["step"]) == ("rolled back", "watch")
        assert last(board)["reason"] == str(refused.value)
        server.fault = ""
        board.check_next()


@pytest.mark.parametrize("kind", ["missing", "failing", "hanging", "killed"])
def test_a_restart_command_that_does_not_restart(
    kind: str, board: Board, server: FakeServer, tmp_path: Path, fault: Fault
) -> None:
    script = tmp_path / "restart"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    server.use(restart=[str(script)], come_up_s=0.3 if kind == "hanging" else 30)
    if kind == "missing":
        script.unlink()
    else:
        words = {"failing": "echo no such unit >&2; exit 5", "hanging": "sleep 600", "killed": "kill -9 $$"}
        script.write_text(f"#!/bin/sh\n{words[kind]}\n")
    with fault():
        with pytest.raises(FailedWatch, match="but the service is not up with it: the restart command") as refused:
            board.install(board.new)
        assert refused.value.step == "restart"
        assert ("no such unit" in str(refused.value)) == (kind == "failing")
        assert board.check() == "old"
        assert last(board)["result"] == "rolled back"
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
        server.use()
        board.check_next()


@pytest.mark.parametrize("kind", ["gone", "switch failed"])
def test_going_back_by_hand_stays(kind: str, board: Board, server: FakeServer, fault: Fault) -> None:
    """It is for bad days: the service may well be down."""
    board.install(board.new)
    server.bad, server.fault = opened(board.old).digest, kind
    server.use(come_up_s=0.3)
    with fault():
        with pytest.raises(FailedWatch, match="stays in use"):
            Installer(str(board.root), who="tester", self_test=passes).rollback("net")
        assert board.check() == "old"
        assert linked(str(board.home / "previous")) == opened(board.new).digest
        assert (last(board)["action"], last(board)["result"]) == ("rollback", "unhealthy")
        server.fault = ""
        board.check_next()


def test_a_first_release_that_is_not_well_leaves_none(tmp_path: Path, fault: Fault) -> None:
    board = Board(
        trust(tmp_path / "root", allow_unsigned=True),
        make_bundle(tmp_path / "old", 1),
        make_bundle(tmp_path / "new", 2),
    )
    with fault(), fake_server(board.root) as server:
        server.use(come_up_s=0.3)
        server.bad, server.fault = opened(board.old).digest, "gone"
        with pytest.raises(FailedWatch, match="none is in use"):
            board.install(board.old)
        assert not (board.home / "current").is_symlink()
        (row,) = status(str(board.root))
        assert (row["current"], row["previous_digest"], row["running"]) == (None, None, None)
        server.fault = ""
        board.install(board.old)
        board.check_next()


@pytest.mark.parametrize(
    ("who", "step", "kind"),
    [
        *((INSTALLER, step, "") for step in AFTERWARDS if step != "back"),
        *((INSTALLER, step, "errors") for step in AFTERWARDS if step not in {"previous", "record", "done"}),
        *((HOST, step, "") for step in ("switch", "restart", "watch", "previous")),
        *((HOST, step, "errors") for step in ("switch", "restart", "watch", "back", "prune")),
    ],
    ids=lambda value: {INSTALLER: "installer", HOST: "host"}.get(value, value),
)
def test_the_board_finishes_without_whoever_asked(
    who: str, step: str, kind: str, board: Board, server: FakeServer, fault: Fault
) -> None:
    server.fault = kind
    server.use(restart=["true"])
    with fault():
        killed(who, str(board.root), str(board.new), step)
        board.settle()
        known = board.check()
        if step not in {"announce", "switch"}:
            assert known == ("old" if kind else "new")
        if step in {"restart", "watch", "back"}:  # the watcher had the last word
            assert last(board)["result"] == ("rolled back" if kind else "done")
        assert kind == "" or known == "old"
        server.fault = ""
        board.check_next()


@pytest.mark.parametrize("kind", ["", "errors"], ids=["well", "not well"])
def test_the_host_is_interrupted(kind: str, board: Board, server: FakeServer, fault: Fault) -> None:
    """It ends the agent then, with all that the agent started and that stayed with it."""
    server.fault = kind
    server.use(watch_s=1)

    def on_step(step: str) -> None:
        if step == "watch":
            raise KeyboardInterrupt

    with fault():
        with pytest.raises(KeyboardInterrupt):
            install(load_profile("local"), board.root, board.new, on_step=on_step)
        board.settle()
        assert board.check() == ("old" if kind else "new")
        assert last(board)["result"] == ("rolled back" if kind else "done")
        server.fault = ""
        server.use()
        board.check_next()


@pytest.mark.parametrize("step", ["lock", "begin", "announce", "switch", "restart", "watch", "previous", "record"])
def test_going_back_goes_on_without_the_installer(step: str, board: Board, server: FakeServer, fault: Fault) -> None:
    board.install(board.new)
    server.use(restart=["true"])
    with fault():
        killed(INSTALLER, str(board.root), "rollback", step)
        board.settle()
        assert board.check() == ("old" if step in AFTERWARDS[2:] else "new")
        board.check_next()


POINTS = ("ready", "restart", "watch", "previous", "record", "back")


@pytest.mark.parametrize("step", POINTS)
def test_the_watcher_is_killed(
    step: str, board: Board, server: FakeServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who installs sees it and finishes."""
    server.fault = "errors" if step == "back" else ""
    server.use(restart=["true"])
    monkeypatch.setenv(dying_watcher.STEP, step)
    with fault():
        if step in {"previous", "record"}:
            board.install(board.new, start_watcher=DyingWatcher)
            assert board.check() == "new"
        else:
            with pytest.raises(Refusal) as refused:
                board.install(board.new, start_watcher=DyingWatcher)
            assert board.check() == "old"
            assert refused.value.step == ("announce" if step == "ready" else "watch")
        assert read_state(str(board.home))["running"] is None
        server.fault = ""
        board.check_next()


@pytest.mark.parametrize("restart", [True, False], ids=["by hand", "at boot"])
@pytest.mark.parametrize("step", POINTS)
def test_the_watcher_and_the_installer_are_killed(
    step: str, *, restart: bool, board: Board, server: FakeServer, fault: Fault
) -> None:
    """A release whose watch was not passed is not proven, so the one before is used again."""
    server.fault = "errors" if step == "back" else ""
    server.use(restart=["true"])
    variables = {dying_watcher.STEP: step, dying_watcher.PARENT: "1"}
    with fault():
        killed(INSTALLER, str(board.root), str(board.new), "never", **variables)
        board.settle()
        rows = recover_releases(str(board.root), restart=restart)
        assert [row["name"] for row in rows] == ["net"]
        assert board.check() == ("new" if step in {"previous", "record"} else "old")
        assert read_state(str(board.home))["running"] is None
        assert recover_releases(str(board.root), restart=restart) == []
        server.fault = ""
        board.check_next()


@pytest.mark.parametrize("step", ["restart", "watch", "previous", "record"])
def test_going_back_is_killed_with_its_watcher(step: str, board: Board, server: FakeServer, fault: Fault) -> None:
    board.install(board.new)
    server.use(restart=["true"])
    with fault():
        variables = {dying_watcher.STEP: step, dying_watcher.PARENT: "1"}
        killed(INSTALLER, str(board.root), "rollback", "never", **variables)
        board.settle()
        (row,) = recover_releases(str(board.root), restart=True)
        assert row["entry"]["result"] == "done"
        assert board.check() == "old"
        assert linked(str(board.home / "previous")) == opened(board.new).digest
        board.check_next()

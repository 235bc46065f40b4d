"""Power that is cut, and storage that fails, between any two operations of a watched installation."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from devices.board.release_disk import Disk
from devices.board.release_errors import FailedWatch, Refusal
from devices.board.release_home import hold_home, read_state
from devices.board.release_install import Installer
from devices.board.release_recover import recover_releases
from devices.board.release_service import set_service
from tests.bundles import make_bundle, opened, trust
from tests.faults.board import Board, passes
from tests.faults.services import HereWatcher
from tests.faults.test_disk import FailingDisk, RecordingDisk, copied, replay

Fault = Callable[[], AbstractContextManager[None]]

NOT_WELL = 'test "$EDGESHIP_RELEASE" != {}'


def use(root: Path, bad: str = "") -> None:
    """A service that is well but with one release."""
    check = ["sh", "-c", NOT_WELL.format(bad)] if bad else ["true"]
    set_service(str(root), None, {"check": check, "come_up_s": 0.001 if bad else 30, "watch_s": 0.001})


def run(case: str, board: Board, root: Path, disk: RecordingDisk | FailingDisk) -> None:
    if case == "rollback":
        Installer(str(root), who="tester", self_test=passes, disk=disk, start_watcher=HereWatcher).rollback("net")
    else:
        board.install(board.new, root=root, disk=disk, start_watcher=HereWatcher)


@pytest.mark.parametrize("how", ["whole", "unsynced content lost", "last block torn"])
@pytest.mark.parametrize("case", ["well", "not well", "rollback"])
def test_power_is_cut_between_any_two_operations(
    case: str, how: str, board: Board, tmp_path: Path, fault: Fault
) -> None:
    if case == "rollback":
        board.install(board.new)
    use(board.root, opened(board.new).digest if case == "not well" else "")
    recorded, recorder = copied(board.root, tmp_path / "recorded"), RecordingDisk()
    with suppress(FailedWatch):
        run(case, board, recorded, recorder)
    seen = set()
    for cut in range(len(recorder.operations) + 1):
        with fault():
            root = copied(board.root, tmp_path / "cut")
            replay(
                recorder.operations[:cut], recorded, root, lose=how == "unsynced content lost", torn=how[:4] == "last"
            )
            before, running = board.check(root=root), read_state(str(root / "net"))["running"] or {}
            unproven = running.get("watched") and not running.get("proven")
            recover_releases(str(root), restart=False)
            after = board.check(root=root)
            assert after == ("old" if unproven and case != "rollback" else before)
            assert read_state(str(root / "net"))["running"] is None
            seen |= {(before, after)}
            use(root)
            board.check_next(root, start_watcher=HereWatcher)
    assert ("new", "old") in seen or case == "rollback"
    assert (("new", "new") in seen) == (case != "not well")


def test_power_is_cut_again_while_the_board_goes_back(board: Board, tmp_path: Path, fault: Fault) -> None:
    use(board.root)
    unproven, recorder = copied(board.root, tmp_path / "unproven"), RecordingDisk()
    board.install(board.new, root=unproven, start_watcher=HereWatcher)
    old, new = opened(board.old).digest, opened(board.new).digest
    with hold_home(str(unproven), "net", Disk()) as home:
        home.begin({"action": "install", "digest": new, "from": old, "switching": True, "watched": True})
    recorded = copied(unproven, tmp_path / "recorded")
    with hold_home(str(recorded), "net", recorder) as home:
        entry = home.recover()
    assert entry is not None
    assert entry["result"] == "rolled back"
    for cut in range(len(recorder.operations) + 1):
        with fault():
            root = copied(unproven, tmp_path / "cut")
            replay(recorder.operations[:cut], recorded, root, lose=True, torn=False)
            board.check(root=root)
            recover_releases(str(root), restart=True)
            assert board.check(root=root) == "old"
            assert [row["result"] for row in read_state(str(root / "net"))["history"]][-1] == "rolled back"
            board.install(board.new, root=root, start_watcher=HereWatcher)
            assert board.check(root=root) == "new"


def test_power_is_cut_during_a_first_watched_installation(tmp_path: Path, fault: Fault) -> None:
    board = Board(
        trust(tmp_path / "root", allow_unsigned=True),
        make_bundle(tmp_path / "old", 1),
        make_bundle(tmp_path / "new", 2),
    )
    board.home.mkdir()
    use(board.root, opened(board.old).digest)
    recorded, recorder = copied(board.root, tmp_path / "recorded"), RecordingDisk()
    with pytest.raises(FailedWatch):
        board.install(board.old, root=recorded, disk=recorder, start_watcher=HereWatcher)
    for cut in range(len(recorder.operations) + 1):
        with fault():
            root = copied(board.root, tmp_path / "cut")
            replay(recorder.operations[:cut], recorded, root, lose=True, torn=False)
            recover_releases(str(root), restart=False)
            assert not (root / "net" / "current").is_symlink()
            use(root)
            board.install(board.old, root=root, start_watcher=HereWatcher)
            assert board.check(root=root) == "old"


@pytest.mark.parametrize(("error", "case"), [(errno.ENOSPC, "well"), (errno.ENOSPC, "not well"), (errno.EROFS, "well")])
def test_storage_fails_from_any_operation_on(error: int, case: str, board: Board, tmp_path: Path, fault: Fault) -> None:
    use(board.root, opened(board.new).digest if case == "not well" else "")
    recorder = RecordingDisk()
    with suppress(FailedWatch):
        run(case, board, copied(board.root, tmp_path / "recorded"), recorder)
    for after in range(len(recorder.operations) + 1):
        with fault():
            root = copied(board.root, tmp_path / "broken")
            try:
                run(case, board, root, FailingDisk(after, error))
            except FailedWatch as refused:
                stuck = "the storage fails" in str(refused)
                assert board.check(root=root) == ("new" if stuck else "old")
                running = read_state(str(root / "net"))["running"] or {}
                recover_releases(str(root), restart=False)
                assert board.check(root=root) == ("new" if stuck and running.get("proven") else "old")
            except Refusal:
                assert board.check(root=root) == "old"
            else:
                assert case == "well"
                assert board.check(root=root) == "new"
            use(root)
            board.check_next(root, start_watcher=HereWatcher)

"""No room, a storage that can't be written, and power that is cut between any two operations."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from devices.board.release_disk import Disk
from devices.board.release_errors import NoRoom, Refusal
from devices.board.release_install import Installer
from tests.bundles import make_bundle, trust
from tests.faults.board import Board, passes

Fault = Callable[[], AbstractContextManager[None]]
Operation = tuple[str, tuple[Any, ...]]


class RecordingDisk(Disk):
    """Notes every operation."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def record(self, operation: str, *arguments: object) -> None:
        self.operations.append((operation, arguments))


class FailingDisk(Disk):
    """From the nth operation on, those that need room fail, as on a full or a read-only storage."""

    def __init__(self, after: int, error: int) -> None:
        self._left, self._error = after, error

    def record(self, operation: str, *arguments: object) -> None:
        needs = {"mkdir", "create", "append", "symlink", "rename"} if self._error == errno.ENOSPC else {operation}
        self._left -= 1
        if self._left < 0 and operation in needs:
            raise OSError(self._error, os.strerror(self._error), str(arguments[0]))


def refused(board: Board, root: Path, disk: Disk) -> Refusal | None:
    try:
        board.install(board.new, disk=disk, root=root)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_storage_fails_from_any_operation_on(error: int, board: Board, tmp_path: Path, fault: Fault) -> None:
    recorder = RecordingDisk()
    board.install(board.new, disk=recorder, root=copied(board.root, tmp_path / "recorded"))
    for after in range(len(recorder.operations) + 1):
        with fault():
            root = copied(board.root, tmp_path / "broken")
            refusal = refused(board, root, FailingDisk(after, error))
            if refusal is None:
                assert board.check(root=root) == "new"
            else:
                assert isinstance(refusal, NoRoom) == (error in {errno.ENOSPC, errno.EDQUOT})
                assert refusal.step
                assert board.check(root=root) == "old"
            board.check_next(root)


@contextmanager
def small_storage(directory: Path, size: str) -> Iterator[Path]:
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=False)
    if mounted.returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("step", ["space", "begin", "unpack", "sync", "self-test", "publish", "announce", "switch"])
def test_a_small_storage_fills_up(step: str, tmp_path: Path, fault: Fault) -> None:
    with fault(), small_storage(tmp_path / "storage", "6m") as storage:
        root = trust(storage / "root", allow_unsigned=True)
        board = Board(root, make_bundle(tmp_path / "old", 1), make_bundle(tmp_path / "new", 2))
        board.install(board.old)

        def fill(now: str) -> None:
            if now != step:
                return
            with (storage / "filler").open("wb", buffering=0) as stream:
                while True:
                    try:
                        stream.write(bytes(4096))
                    except OSError:
                        return

        try:
            board.install(board.new, on_step=fill)
        except NoRoom:
            assert board.check() == "old"
        (storage / "filler").unlink()
        board.check()
        board.check_next()


def test_a_storage_that_becomes_read_only(tmp_path: Path, fault: Fault) -> None:
    with fault(), small_storage(tmp_path / "storage", "16m") as storage:
        root = trust(storage / "root", allow_unsigned=True)
        board = Board(root, make_bundle(tmp_path / "old", 1), make_bundle(tmp_path / "new", 2))
        board.install(board.old)
        subprocess.run(["mount", "-o", "remount,ro", storage], check=True)
        with pytest.raises(Refusal, match="read-only"):
            board.install(board.new)
        assert board.check() == "old"
        subprocess.run(["mount", "-o", "remount,rw", storage], check=True)
        board.check_next()


def copied(root: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root, to, symlinks=True)
    return to


def replay(operations: list[Operation], source: Path, target: Path, *, lose: bool, torn: bool) -> None:
    """Does what was recorded in `source` in `target`.

    Args:
        operations: Up to where the power was cut.
        source: Where they were recorded.
        target: A copy of the tree as it was before.
        lose: Whether files that were not synced lose their content, as with delayed allocation. Names are kept in the
            order in which they were made, as journaling file systems do.
        torn: Whether only half of the last block was written.
    """

    unsynced: dict[Path, None] = {}
    for number, (operation, arguments) in enumerate(operations):
        if operation == "symlink":
            moved(arguments[1], source, target).symlink_to(str(arguments[0]))
            continue
        path = moved(arguments[0], source, target)
        if operation == "create":
            unsynced[path] = None
        elif operation == "sync":
            unsynced.pop(path)
        elif operation == "rename":
            assert not any(each.is_relative_to(path) for each in unsynced), "renamed before it was synced"
            path.rename(moved(arguments[1], source, target))
        if operation in SIMPLE:
            SIMPLE[operation](path)
        elif operation == "append":
            block = arguments[1]
            half = torn and number == len(operations) - 1
            with path.open("ab") as stream:
                stream.write(block[: len(block) // 2] if half else block)
    if lose:
        for path in unsynced:
            path.write_bytes(b"")


SIMPLE: dict[str, Callable[[Path], object]] = {
    "create": lambda path: path.touch(exist_ok=False),
    "mkdir": Path.mkdir,
    "unlink": Path.unlink,
    "rmdir": Path.rmdir,
}


def moved(path: object, source: Path, target: Path) -> Path:
    return target / Path(str(path)).relative_to(source)


def first(board: Board, root: Path, disk: Disk) -> None:
    board.install(board.new, root=root, disk=disk)


def back(board: Board, root: Path, disk: Disk) -> None:
    Installer(str(root), who="tester", self_test=passes, disk=disk).rollback("net")


def pruning(board: Board, root: Path, disk: Disk) -> None:
    board.install(board.new, root=root, disk=disk)


CASES = {"install": first, "rollback": back, "install and prune": pruning}


@pytest.mark.parametrize("how", ["whole", "unsynced content lost", "last block torn"])
@pytest.mark.parametrize("name", CASES)
def test_power_is_cut_between_any_two_operations(
    name: str, how: str, board: Board, tmp_path: Path, fault: Fault
) -> None:
    before = board.root
    if name == "rollback":
        board.install(board.new)
    if name == "install and prune":
        trust(before, allow_unsigned=True, keep=2)
        for seed in (5, 6):
            board.install(make_bundle(tmp_path / str(seed), seed))
        board.install(board.old)
    recorded, recorder = copied(before, tmp_path / "recorded"), RecordingDisk()
    CASES[name](board, recorded, recorder)
    assert len(recorder.operations) > 20
    seen = set()
    for cut in range(len(recorder.operations) + 1):
        with fault():
            root = copied(before, tmp_path / "cut")
            replay(
                recorder.operations[:cut], recorded, root, lose=how == "unsynced content lost", torn=how[:4] == "last"
            )
            seen.add(board.check(root=root))
            if name == "install and prune":
                board.install(board.new, root=root)
                assert board.check(root=root) == "new"
            else:
                board.check_next(root)
    assert seen == {"old", "new"}

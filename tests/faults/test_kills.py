"""`kill -9` of the installer, of its self-test and of the host, at every step."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from devices.board import environment
from devices.board.release_home import read_state
from devices.board.release_install import STEPS as ALL_STEPS
from devices.board.release_install import WATCH_STEPS
from tests.bundles import make_bundle, opened, trust
from tests.faults.board import Board
from tests.faults.processes import HOST, INSTALLER, killed

Fault = Callable[[], AbstractContextManager[None]]

STEPS = tuple(step for step in ALL_STEPS if step not in WATCH_STEPS)
ROLLBACK_STEPS = ("lock", "recover", "signature", "begin", "self-test", "announce", "switch", "previous", "record")
AFTER_SWITCH = STEPS[STEPS.index("switch") + 1 :]

SELF_TEST = """
import os, signal, sys, threading, time
from devices.board.release_install import Installer

def on_step(step):
    if step == "self-test":
        threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

Installer(sys.argv[1], who="victim", on_step=on_step).install(sys.argv[2])
"""


@pytest.mark.parametrize("step", STEPS)
def test_the_installer_is_killed(step: str, board: Board, fault: Fault) -> None:
    with fault():
        killed(INSTALLER, str(board.root), str(board.new), step)
        assert board.check() == ("new" if step in AFTER_SWITCH else "old")
        board.check_next()
        results = [row["result"] for row in read_state(str(board.home))["history"]]
        assert "interrupted" in results or step in {*STEPS[:7], *AFTER_SWITCH}


@pytest.mark.parametrize("step", STEPS)
def test_the_installer_of_a_bundle_with_all_parts_is_killed(step: str, full_board: Board, fault: Fault) -> None:
    with fault():
        killed(INSTALLER, str(full_board.root), str(full_board.new), step)
        assert full_board.check() == ("new" if step in AFTER_SWITCH else "old")
        full_board.check_next()
        place = full_board.root / environment.DIRECTORY
        assert sorted(path.name for path in place.iterdir() if path.name != ".lock") == sorted(
            Path(environment.packages_of("", opened(bundle).manifest)).parent.name
            for bundle in (full_board.old, full_board.new)
        )


UNPACKING = """
import os, signal, sys
from devices.board import environment
from devices.board.release_install import Installer
from tests.faults.board import passes

point, genuine = sys.argv[3], getattr(environment, sys.argv[3]) if hasattr(environment, sys.argv[3]) else os.rename
def die(*arguments):
    if point == "after the rename" or point == "unpack_wheel":
        genuine(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

if point == "unpack_wheel":
    environment.unpack_wheel = die
else:
    environment.os = type("System", (), {**vars(os), "rename": staticmethod(die)})
Installer(sys.argv[1], who="victim", self_test=passes).install(sys.argv[2])
"""


@pytest.mark.parametrize("point", ["unpack_wheel", "before the rename", "after the rename"])
def test_killed_while_the_packages_are_unpacked(point: str, full_board: Board, fault: Fault) -> None:
    with fault():
        killed(UNPACKING, str(full_board.root), str(full_board.new), point)
        assert full_board.check() == "old"
        full_board.check_next()
        assert len([path for path in (full_board.root / environment.DIRECTORY).iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("step", STEPS)
def test_the_first_installation_is_killed(step: str, tmp_path: Path, fault: Fault) -> None:
    with fault():
        root = trust(tmp_path / "root", allow_unsigned=True)
        board = Board(root, make_bundle(tmp_path / "old", 1), make_bundle(tmp_path / "new", 2))
        killed(INSTALLER, str(root), str(board.old), step)
        if (board.home / "current").is_symlink():
            assert board.check() == "old"
        board.install(board.old)
        assert board.check() == "old"
        board.check_next()


@pytest.mark.parametrize("step", ROLLBACK_STEPS)
def test_going_back_is_killed(step: str, board: Board, fault: Fault) -> None:
    with fault():
        board.install(board.new)
        killed(INSTALLER, str(board.root), "rollback", step)
        assert board.check() == ("old" if step in {"previous", "record"} else "new")
        board.check_next()


@pytest.mark.parametrize("step", STEPS)
def test_the_host_is_killed(step: str, board: Board, fault: Fault) -> None:
    with fault():
        killed(HOST, str(board.root), str(board.new), step)
        board.check()
        board.check_next()


def test_the_installer_is_killed_while_a_self_test_hangs(
    board: Board, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model = io.BytesIO()
    np.savez(model, weights=np.zeros((48, 3), np.float32), bias=np.zeros(3, np.float32), shape=np.array((4, 4, 3)),
             behaviour=np.array("hang"))  # fmt: skip
    hanging = make_bundle(tmp_path / "hanging", 3, files={"model.fake": model.getvalue()})
    with fault():
        killed(SELF_TEST, str(board.root), str(hanging))
        deadline = time.monotonic() + 20
        while living(str(tmp_path)):
            assert time.monotonic() < deadline, "the self-test's process is left"
            time.sleep(0.1)
        assert board.check() == "old"
        board.check_next()


def living(word: str) -> list[str]:
    """Processes with this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if word in text:
                found.append(text)
    return found


def test_killed_again_and_again(board: Board, fault: Fault) -> None:
    for step in STEPS:
        with fault():
            killed(INSTALLER, str(board.root), str(board.new), step)
            board.check()
            if board.in_use() == opened(board.new).digest:
                break
    board.check_next()

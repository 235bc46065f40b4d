"""Counts what was broken and what survived it: `N faults, N survived` is the last line."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bundles import PARTS, make_bundle, make_key, signer_line, small_parts, trust
from tests.faults.board import Board


@dataclass
class Counter:
    faults: int = 0
    survived: int = 0
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """One fault and all that is checked after it."""
        self.faults += 1
        yield
        self.survived += 1


_COUNTER = Counter()


@pytest.fixture
def fault() -> Callable[[], contextlib.AbstractContextManager[None]]:
    return _COUNTER.fault


@pytest.fixture
def note() -> Callable[[str], None]:
    """Takes what was measured on the way; it is printed at the end."""
    return _COUNTER.notes.append


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A board with an old release in use, and a bundle of a new one."""
    root = trust(tmp_path / "root", allow_unsigned=True)
    board = Board(root, make_bundle(tmp_path / "old", 1), make_bundle(tmp_path / "new", 2))
    board.install(board.old)
    return board


@pytest.fixture
def full_board(tmp_path: Path) -> Board:
    """The same with bundles that have all parts: a program, a wheel, a compiled form."""
    root = trust(tmp_path / "root", allow_unsigned=True)
    old, new = (
        make_bundle(tmp_path / name, seed, files=small_parts(seed), **PARTS) for name, seed in (("old", 1), ("new", 2))
    )
    board = Board(root, old, new)
    board.install(board.old)
    return board


@pytest.fixture
def signed_board(tmp_path: Path) -> Board:
    """The same, and it takes signed bundles only."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen on this machine")
    key = make_key(tmp_path / "key")
    root = trust(tmp_path / "root", signers=signer_line(key))
    new = make_bundle(tmp_path / "new", 2, key=key, files=small_parts(2), **PARTS)
    board = Board(root, make_bundle(tmp_path / "old", 1, key=key), new)
    board.install(board.old)
    return board


def pytest_unconfigure(config: pytest.Config) -> None:
    for line in _COUNTER.notes:
        config.get_terminal_writer().line(line)
    if _COUNTER.faults:
        config.get_terminal_writer().line(f"{_COUNTER.faults} faults, {_COUNTER.survived} survived")

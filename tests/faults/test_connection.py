"""The connection to the board is cut at every step, and while the bundle is on its way; real SSH."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from devices import release
from devices.board.release_home import read_state
from devices.board.release_install import STEPS, WATCH_STEPS
from devices.board.release_service import set_service
from devices.errors import DeviceError
from devices.profile import DeviceProfile
from devices.transport_config import SshTransport
from devices.transports import ssh_files
from devices.transports.ssh_link import close_links
from tests.bundles import make_bundle, opened, trust
from tests.faults.board import Board
from tests.ssh_server import SshServer, serve

Fault = Callable[[], AbstractContextManager[None]]

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with serve(tmp_path_factory.mktemp("ssh") / "board") as running:
        yield running
        close_links()


@pytest.fixture
def far(server: SshServer, tmp_path: Path, board: Board) -> tuple[Board, DeviceProfile]:
    """The board's directory where the server's commands run."""
    profile = DeviceProfile(
        name="board",
        description="A board of the test.",
        python=sys.executable,
        runtimes={"fake": ""},
        preference=("fake",),
        transport=SshTransport(**server.transport()),
        latency_label="simulated",
    )
    return board, profile


@pytest.mark.parametrize("step", [step for step in STEPS if step not in WATCH_STEPS])
def test_the_connection_is_cut(step: str, far: tuple[Board, DeviceProfile], server: SshServer, fault: Fault) -> None:
    board, profile = far
    with fault():
        with contextlib.suppress(DeviceError):
            release.install(profile, board.root, board.new, on_step=lambda now: server.cut() if now == step else None)
        board.check()
        assert release.install(profile, board.root, board.new)["name"] == "net"
        assert board.check() == "new"
        assert release.rollback(profile, board.root, "net") == opened(board.old).digest


@pytest.mark.parametrize(
    ("step", "bad"),
    [
        *((step, False) for step in ("switch", "restart", "watch", "previous")),
        *((step, True) for step in ("watch", "back")),
    ],
)
def test_the_connection_is_cut_around_a_watch(
    step: str, *, bad: bool, far: tuple[Board, DeviceProfile], server: SshServer, fault: Fault
) -> None:
    """The board finishes by itself: after the cut the host does nothing until nobody holds the releases there."""
    board, profile = far
    old, new = opened(board.old).digest, opened(board.new).digest
    check = ["sh", "-c", f'test "$EDGESHIP_RELEASE" != {new}'] if bad else ["true"]
    settings = {"come_up_s": 0.5} if bad else {"restart": ["true"], "come_up_s": 30}
    set_service(str(board.root), None, {"check": check, "watch_s": 0.5, **settings})
    with fault():
        steps = []

        def on_step(now: str) -> None:
            steps.append(now)
            if now == step:
                server.cut()

        with contextlib.suppress(DeviceError):
            release.install(profile, board.root, board.new, on_step=on_step)
        assert step in steps
        board.settle()
        if step == "switch":  # which may have come to pass or not
            assert board.in_use() in {old, new}
        else:
            assert board.in_use() == (old if bad else new)
            last = read_state(str(board.home))["history"][-1]
            assert last["result"] == ("rolled back" if bad else "done")
        set_service(str(board.root), None, {"check": ["true"], "come_up_s": 30})
        assert release.install(profile, board.root, board.new)["name"] == "net"
        assert board.check() == "new"


def test_the_connection_is_cut_while_the_bundle_is_on_its_way(
    far: tuple[Board, DeviceProfile], server: SshServer, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, profile = far
    big = make_bundle(tmp_path / "big", 3, files={"weights.bin": os.urandom(6 * ssh_files._BLOCK_BYTES)})
    genuine, sent = ssh_files.base64.b64encode, []

    def encode(block: bytes) -> bytes:
        sent.append(len(block))
        if len(sent) == 3:
            server.cut()
        return genuine(block)

    monkeypatch.setattr(ssh_files.base64, "b64encode", encode)
    with fault():
        release.install(profile, board.root, big)  # it goes on where it was cut
        assert board.in_use() == opened(big).digest
        assert sum(sent) < 1.5 * big.stat().st_size
        assert not list((server.root / "files").glob("*/big")), "the bundle is not removed from the board"


def test_a_board_that_trusts_nobody_takes_nothing_whatever_the_host_says(
    far: tuple[Board, DeviceProfile], fault: Fault
) -> None:
    board, profile = far
    with fault():
        trust(board.root)
        with pytest.raises(DeviceError, match="not signed"):
            release.install(profile, board.root, board.new)
        assert board.check() == "old"
        release.set_trust(profile, board.root, allow_unsigned=True)
        board.check_next()

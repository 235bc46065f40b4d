"""A board behind a real SSH server, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.profile import DeviceProfile
from devices.transport_config import SshTransport
from devices.transports import ssh_files
from devices.transports.ssh_link import SshLink, close_links, shared_link
from tests.ssh_server import SshServer, serve

BIG = 5 * ssh_files._BLOCK_BYTES + 1000


@contextlib.contextmanager
def clean_server(directory: Path) -> Iterator[SshServer]:
    """A server; at the end nothing of ours may be left on either side."""
    with serve(directory / "board") as running:
        yield running
        close_links()
        assert not wait_for(lambda: not running.living()), "processes are left on the board"
        assert not running.root.exists() or list((running.root / "run").iterdir()) == []
    assert own_directories() == []


def own_directories() -> list[Path]:
    return list(Path("/tmp").glob(f"edgeship-ssh-{os.getpid()}-*"))  # noqa: S108


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Whether the condition still fails after so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.02)
    return False


def profile(server: SshServer, *, python: str = sys.executable, **transport: Any) -> DeviceProfile:
    return DeviceProfile(
        name="board",
        description="A board of the test.",
        python=python,
        runtimes={"fake": "", "onnxruntime": "onnxruntime>=1"},
        preference=("fake", "onnxruntime"),
        transport=SshTransport(**server.transport(**transport)),
        latency_label="simulated",
    )


def link_of(board: DeviceProfile) -> SshLink:
    assert isinstance(board.transport, SshTransport)
    return shared_link(board.transport, str(board.python))


def client_pid(board: DeviceProfile) -> int:
    session = link_of(board)._session
    assert session is not None
    return session.process.pid


def write_model(path: Path, behaviour: str = "ok") -> Path:
    weights = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    with path.open("wb") as stream:
        bias = np.zeros(3, np.float32)
        np.savez(stream, weights=weights, bias=bias, behaviour=behaviour, shape=np.array([2, 2, 3]), kind="float32")
    return path


def write_big(path: Path, seed: int = 0) -> bytes:
    data = np.random.default_rng(seed).bytes(BIG)
    path.write_bytes(data)
    return data


def cut_at(monkeypatch: pytest.MonkeyPatch, method: str, *numbers: int) -> list[int]:
    """Kills the client just before requests of these numbers; returns the offsets of all that were sent."""
    offsets: list[int] = []
    original = SshLink.request

    def request(self: SshLink, name: str, params: Any = None, **options: Any) -> Any:
        if name == method:
            offsets.append(params["offset"])
            if len(offsets) in numbers:
                os.kill(self._connected().process.pid, signal.SIGKILL)
        return original(self, name, params, **options)

    monkeypatch.setattr(SshLink, "request", request)
    return offsets

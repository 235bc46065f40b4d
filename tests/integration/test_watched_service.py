"""A real server is watched while releases come and go, and clients ask it all the time."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.errors import AgentError
from devices.board.model import open_model
from devices.board.release_errors import FailedWatch
from devices.board.release_home import read_state
from devices.board.release_service import set_service
from devices.board.serving.access import Access
from devices.board.serving.routes import Application
from devices.board.serving.service import Service, Settings
from tests.board_server import BoardServer, serving
from tests.conftest import ROOT
from tests.releases import NAME, go_back, put_fake
from tests.ssh_board import wait_for

INFER = f"/v2/models/{NAME}/infer"
IMAGE = np.random.default_rng(7).integers(0, 256, (1, 8, 8, 3), np.uint8)
BODY = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": IMAGE.reshape(-1).tolist()}]}
).encode()


def in_use(root: Path) -> str:
    return (root / NAME / "current").readlink().name


@dataclass
class Clients:
    """Who asks, without a pause."""

    seen: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def asking(self, server: BoardServer, logits: dict[str, Any]) -> Iterator[None]:
        ended = threading.Event()

        def ask(*, keep: bool) -> None:
            connection = server.connect()
            while not ended.is_set():
                try:
                    connection.request("POST", INFER, BODY)
                    found = json.loads(connection.getresponse().read())
                    np.testing.assert_allclose(found["outputs"][0]["data"], logits[found["model_version"]], rtol=1e-5)
                    self.seen.append(found["model_version"])
                except Exception as error:  # noqa: BLE001 (all of them are failures)
                    self.failures.append(repr(error))
                if not keep:
                    connection.close()
            connection.close()

        threads = [threading.Thread(target=ask, kwargs={"keep": keep}) for keep in (True, False)]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            ended.set()
            for each in threads:
                each.join()


def test_no_request_fails_while_releases_come_and_go(tmp_path: Path) -> None:
    root = tmp_path / "root"
    logits: dict[str, Any] = {}
    digests = []
    for seed in (0, 1):
        digests.append(put_fake(root, tmp_path, seed=seed))
        logits[digests[seed]] = open_model(NAME, root=str(root)).infer({"image": IMAGE})["logits"][0]
    put_fake(root, tmp_path, seed=0)
    clients = Clients()
    with serving(root, "--workers", "2") as server:
        set_service(str(root), NAME, {"url": server.url, "come_up_s": 60, "watch_s": 1})
        with clients.asking(server, logits):
            assert put_fake(root, tmp_path, seed=1) == digests[1]
            assert clients.seen[-1] == digests[1], "the watch ends before the new release is served"
            with pytest.raises(FailedWatch, match="could not, its log says why") as refused:
                put_fake(root, tmp_path, seed=99, behaviour="reject")
            assert f"{digests[1]}, is in use again" in str(refused.value)
            assert in_use(root) == digests[1]
            go_back(root)
            assert in_use(root) == digests[0]
            assert not wait_for(lambda: clients.seen[-1] == digests[0])
            count = len(clients.seen)
            assert not wait_for(lambda: len(clients.seen) > count + 20)
        assert server.stop() == 0
    assert clients.failures == []
    assert set(clients.seen) == set(digests)
    rows = read_state(str(root / NAME))["history"][-3:]
    assert [(row["action"], row["result"]) for row in rows] == [
        ("install", "done"),
        ("install", "rolled back"),
        ("rollback", "done"),
    ]


def test_a_release_that_answers_with_errors_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test passes, the server comes up, and then inferences fail."""
    root, run = tmp_path / "root", Application._run
    good = put_fake(root, tmp_path, seed=0)

    def failing(self: Application, model: Any, arrays: Any) -> Any:
        if model.release.digest != good:
            raise AgentError("the accelerator is gone")
        return run(self, model, arrays)

    monkeypatch.setattr(Application, "_run", failing)
    service = Service(Settings(root=str(root), port=0), access=Access(None, None), tell=lambda _: None)
    thread = threading.Thread(target=service.run)
    thread.start()
    ended = threading.Event()

    def ask() -> None:
        server = BoardServer(service.url, None)  # type: ignore[arg-type]
        while not ended.is_set():
            server.ask(INFER, BODY)

    client = threading.Thread(target=ask)
    client.start()
    try:
        set_service(str(root), None, {"url": service.url, "come_up_s": 60, "watch_s": 60})
        with pytest.raises(FailedWatch, match="requests for the model with an error of its own"):
            put_fake(root, tmp_path, seed=1)
        assert in_use(root) == good
        server = BoardServer(service.url, None)  # type: ignore[arg-type]
        page = server.ask("/metrics").body.decode()
        assert 'edgeship_model_errors_total{model="net",release="' in page
        assert "process_start_time_seconds" in page
    finally:
        ended.set()
        client.join()
        service.stop()
        thread.join(30)


RESTART = """\
import contextlib, os, pathlib, signal, subprocess, sys, time

pid, null = pathlib.Path(sys.argv[1]), subprocess.DEVNULL
with contextlib.suppress(OSError):
    state = pathlib.Path("/proc", pid.read_text(), "stat")
    os.kill(int(pid.read_text()), signal.SIGTERM)
    while " Z " not in state.read_text():
        time.sleep(0.02)
server = subprocess.Popen(sys.argv[2:], stdin=null, stdout=null, stderr=null, start_new_session=True)
pid.write_text(str(server.pid))
"""


@pytest.mark.slow
def test_a_service_that_only_a_restart_brings_to_a_release(tmp_path: Path) -> None:
    """The first release starts it; a second one that crashes it is taken back, and it is up again."""
    root, pid, port = tmp_path / "root", tmp_path / "pid", free_port()
    (tmp_path / "restart.py").write_text(RESTART)
    serve = [sys.executable, "-m", "devices.board", "serve", "--root", str(root), "--port", str(port)]
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, str(tmp_path / "restart.py"), str(pid), *serve]
    (root / ".board").mkdir(parents=True)
    set_service(str(root), None, {"url": f"http://127.0.0.1:{port}", "restart": command, "come_up_s": 60, "watch_s": 1})
    try:
        good = put_fake(root, tmp_path, seed=0)
        first = pid.read_text()
        set_service(str(root), None, {"come_up_s": 10})
        with pytest.raises(FailedWatch, match="did not come up") as refused:
            put_fake(root, tmp_path, seed=1, behaviour="crash")
        assert "but the service is not up" not in str(refused.value)
        assert in_use(root) == good
        assert pid.read_text() != first
        server = BoardServer(f"http://127.0.0.1:{port}", None)  # type: ignore[arg-type]
        assert server.ask(f"/v2/models/{NAME}").json()["versions"] == [good]
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["kill", f"-{signal.SIGTERM.value}", pid.read_text()], check=False)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port

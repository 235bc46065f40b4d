from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.errors import AgentError
from devices.board.installed import NoRelease
from devices.board.model import InstalledModel
from devices.board.serving.access import Access
from devices.board.serving.notify import Supervisor
from devices.board.serving.routes import Limits
from devices.board.serving.server import Patience
from devices.board.serving.service import Service, Settings
from tests.releases import NAME, put_fake

INFER = f"/v2/models/{NAME}/infer"
BODY = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [7] * 192}]}
).encode()
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: b\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


@dataclass
class Gate:
    """Holds inferences back while it is closed."""

    opened: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made, run = Gate(), InstalledModel.run
    made.opened.set()

    def gated(self: InstalledModel, arrays: Any) -> Any:
        made.waiting += 1
        made.opened.wait(20)
        made.waiting -= 1
        return run(self, arrays)

    monkeypatch.setattr(InstalledModel, "run", gated)
    return made


@contextlib.contextmanager
def running(
    tmp_path: Path,
    *,
    patience: Patience = Patience(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    supervisor: Supervisor | None = None,
    **settings: Any,
) -> Iterator[Service]:
    put_fake(tmp_path / "root", tmp_path)
    told: list[str] = []
    wanted = Settings(root=str(tmp_path / "root"), port=0, **settings)
    service = Service(wanted, access=Access(None, None), limits=limits, patience=patience, tell=told.append)
    thread = threading.Thread(target=service.run, args=(supervisor,))
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join(30)
    assert not thread.is_alive()
    assert not [line for line in told if "Traceback" in line], told


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=20)


def ask(service: Service, method: str = "POST", path: str = INFER, body: bytes | None = BODY) -> tuple[int, Any]:
    port = int(service.url.rpartition(":")[2])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def everything(stream: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := stream.recv(1 << 16):
            received += piece
    return received


def test_more_requests_than_may_wait(tmp_path: Path, gate: Gate) -> None:
    with running(tmp_path, workers=1, queue_length=1) as service:
        gate.opened.clear()
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(service)[0])) for _ in range(2)]
        for each in threads:
            each.start()
        wait_for(lambda: service.models[0]._places._value == 0)
        status, error = ask(service)
        assert status == 503
        assert "too many requests" in error["error"]
        assert ask(service, "GET", "/v2/health/ready", None)[0] == 200
        gate.opened.set()
        for each in threads:
            each.join()
        assert answers == [200, 200]


def test_a_request_that_waits_too_long(tmp_path: Path, gate: Gate) -> None:
    with running(tmp_path, limits=Limits(wait_s=0.1)) as service:
        gate.opened.clear()
        first = threading.Thread(target=ask, args=(service,))
        first.start()
        wait_for(lambda: gate.waiting == 1)
        status, error = ask(service)
        assert (status, error["error"]) == (503, "the model is busy; try again later")
        gate.opened.set()
        first.join()


def test_more_clients_than_may_connect(tmp_path: Path) -> None:
    with running(tmp_path, patience=Patience(max_connections=2)) as service, connect(service) as one, connect(service):
        one.sendall(HEAD + BODY)
        assert b" 200 OK" in one.recv(1 << 16)
        with connect(service) as third:
            assert everything(third).startswith(b"HTTP/1.1 503")
        one.close()
        wait_for(lambda: ask_status(service) == 200)


def ask_status(service: Service) -> int:
    try:
        return ask(service)[0]
    except (ConnectionError, http.client.HTTPException):
        return 0


def test_bodies_that_are_too_large_together(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(buffered_bytes=3000, image_bytes=2000)) as service, connect(service) as slow:
        path = f"/v2/models/{NAME}/classify"
        slow.sendall(f"POST {path} HTTP/1.1\r\nHost: b\r\nContent-Length: 2000\r\n\r\nP6".encode())
        wait_for(lambda: ask(service, path=path, body=b"x" * 2000)[0] == 503)
        assert ask(service, path=path, body=b"x" * 900)[0] == 400
        slow.close()
        wait_for(lambda: ask(service, path=path, body=b"x" * 2000)[0] == 400)


@pytest.mark.parametrize("data", [HEAD[:30], HEAD, HEAD + BODY[:50]], ids=["in the head", "no body", "in the body"])
def test_a_slow_client(tmp_path: Path, data: bytes) -> None:
    with running(tmp_path, patience=Patience(request_s=0.2)) as service, connect(service) as stream:
        stream.sendall(data)
        answer = everything(stream)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"Connection: close" in answer


def test_a_silent_client(tmp_path: Path) -> None:
    with running(tmp_path, patience=Patience(idle_s=0.1)) as service, connect(service) as stream:
        assert everything(stream) == b""
        assert ask(service)[0] == 200


def test_a_request_at_work_is_finished_when_it_stops(tmp_path: Path, gate: Gate) -> None:
    answers: list[Any] = []
    with running(tmp_path) as service, connect(service) as idle:
        gate.opened.clear()
        asking = threading.Thread(target=lambda: answers.append(ask(service)))
        asking.start()
        wait_for(lambda: gate.waiting == 1)
        service.stop()
        assert everything(idle) == b""
        gate.opened.set()
        asking.join()
    assert answers[0][0] == 200


def test_a_fault_of_ours_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_fake(tmp_path / "root", tmp_path)
    told: list[str] = []
    settings = Settings(root=str(tmp_path / "root"), port=0)
    service = Service(settings, access=Access(None, None), tell=told.append)

    def fail(self: InstalledModel, arrays: Any) -> Any:
        raise ArithmeticError("inside")

    monkeypatch.setattr(InstalledModel, "run", fail)
    thread = threading.Thread(target=service.run)
    thread.start()
    status, error = ask(service)
    assert status == 500
    assert "inside" not in error["error"]
    assert ask(service, "GET", "/v2/health/live", None)[0] == 200
    service.stop()
    thread.join(20)
    assert any("ArithmeticError: inside" in line for line in told)


def test_the_watchdog_hears_of_a_hanging_model(tmp_path: Path, gate: Gate) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(20)
        supervisor = Supervisor({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "300000"})
        with running(tmp_path, supervisor=supervisor, hang_s=0.1) as service:
            assert listener.recv(1000).startswith(b"READY=1\nSTATUS=serves net")
            for _ in range(3):
                assert listener.recv(1000) == b"WATCHDOG=1"
            gate.opened.clear()
            asking = threading.Thread(target=ask, args=(service,))
            asking.start()
            wait_for(lambda: service.models[0].longest_busy_s() > 0.5)
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:  # what was said before it hung
                    listener.recv(1000)
            listener.settimeout(0.7)
            with pytest.raises(TimeoutError):
                listener.recv(1000)
            gate.opened.set()
            asking.join()
            listener.settimeout(20)
            assert listener.recv(1000) == b"WATCHDOG=1"
        rest = [listener.recv(1000)]
        while rest[-1] != b"STOPPING=1":
            rest.append(listener.recv(1000))


def test_several_models(tmp_path: Path) -> None:
    put_fake(tmp_path / "root", tmp_path, seed=3, name="other-one")
    with running(tmp_path) as service:
        assert [model.name for model in service.models] == [NAME, "other-one"]
        status, found = ask(service, "GET", "/v2/models/other%2Done", None)
        assert (status, found["name"]) == (200, "other-one")
    with running(tmp_path, names=["other-one"]) as service:
        assert ask(service)[0] == 404


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(NoRelease, match="no model is installed"):
        Service(Settings(root=str(tmp_path)), access=Access(None, None), tell=lambda _: None)


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        settings = Settings(root=str(tmp_path / "root"), port=int(service.url.rpartition(":")[2]))
        with pytest.raises(AgentError, match="can't be listened on"):
            Service(settings, access=Access(None, None), tell=lambda _: None)


def test_answers_to_head_have_no_body(tmp_path: Path) -> None:
    with running(tmp_path) as service, connect(service) as stream:
        request = b"HEAD /v2/health/live HTTP/1.1\r\nHost: b\r\n\r\n"
        stream.sendall(request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answer = everything(stream)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert b"{" not in answer


def test_images_of_any_size_become_labels(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        pixels = np.zeros((40, 7, 3), np.uint8)
        status, found = ask(service, path=f"/v2/models/{NAME}/classify", body=b"P6 7 40 255\n" + pixels.tobytes())
        assert (status, len(found["labels"])) == (200, 4)

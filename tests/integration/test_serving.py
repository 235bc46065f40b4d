"""The server of models as a process, asked by real clients."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from devices.board.model import open_model
from tests.board_server import BoardServer, serving
from tests.conftest import ROOT
from tests.releases import NAME, put_fake
from tests.served import MODEL, SIZE, expected, image_of, json_request


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("serving")
    put_fake(scratch / "root", scratch)
    return scratch / "root"


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[BoardServer]:
    with serving(root, "--workers", "2") as running:
        yield running


@pytest.fixture
def client(server: BoardServer) -> Iterator[triton.InferenceServerClient]:
    made = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield made
    made.close()


def test_health_and_metadata(client: triton.InferenceServerClient, root: Path) -> None:
    digest = (root / NAME / "current").readlink().name
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, digest)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready(NAME, "1")
    assert client.get_server_metadata() == {
        "name": "edgeship-board",
        "version": "1",
        "extensions": ["binary_tensor_data", "image_classification"],
    }
    assert client.get_model_metadata(NAME) == {
        "name": NAME,
        "versions": [digest],
        "platform": "fake_float32",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 4]}],
    }


@pytest.mark.parametrize("binary_input", [False, True], ids=["JSON in", "binary in"])
@pytest.mark.parametrize("binary_output", [False, True, None], ids=["JSON out", "binary out", "all out"])
def test_infer(
    client: triton.InferenceServerClient, root: Path, *, binary_input: bool, binary_output: bool | None
) -> None:
    image = image_of(1)
    tensor = triton.InferInput("image", list(image.shape), "UINT8")
    tensor.set_data_from_numpy(image, binary_data=binary_input)
    outputs = None if binary_output is None else [triton.InferRequestedOutput("logits", binary_data=binary_output)]
    for version in ("", (root / NAME / "current").readlink().name):
        answer = client.infer(NAME, [tensor], outputs=outputs, model_version=version, request_id="seven")
        assert answer.get_response()["id"] == "seven"
        np.testing.assert_array_equal(answer.as_numpy("logits"), expected(root, image))


def test_errors_are_told_as_the_protocol_says(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("image", [1, 2, 2, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(InferenceServerException, match=r"expected UINT8 \[1, 8, 8, 3\]"):
        client.infer(NAME, [tensor])
    with pytest.raises(InferenceServerException, match="there is no model 'other'; there are: net"):
        client.infer("other", [tensor])
    image = triton.InferInput("image", [1, SIZE, SIZE, 3], "UINT8")
    image.set_data_from_numpy(image_of(1))
    with pytest.raises(InferenceServerException, match="compressed"):
        client.infer(NAME, [image], request_compression_algorithm="gzip")
    assert client.is_server_live()


def test_an_image_becomes_labels(server: BoardServer, root: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (30, 20, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    (tmp_path / "image.png").write_bytes(stream.getvalue())
    answer = server.ask(f"{MODEL}/classify?top=3", stream.getvalue())
    labels = open_model(NAME, root=str(root)).classify(tmp_path / "image.png", top=3)
    assert answer.status == 200
    assert answer.json()["labels"] == [
        {"index": label.index, "label": label.name, "probability": label.probability} for label in labels
    ]
    ppm = b"P6\n20 30\n255\n" + pixels.tobytes()
    assert server.ask(f"{MODEL}/classify?top=3", ppm).json() == answer.json()


@dataclass(frozen=True)
class Case:
    id: str
    path: str
    status: int
    message: str
    body: bytes | None = None
    method: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@pytest.mark.parametrize(
    "case",
    [
        Case("no path", "/nothing", 404, "nothing at this path"),
        Case("no path of a model", f"{MODEL}/nothing", 404, "ready, infer or classify"),
        Case("no version", f"{MODEL}/versions/0/ready", 404, "as version"),
        Case("another method", f"{MODEL}/infer", 405, "expected POST"),
        Case("a body where none belongs", "/v2", 405, "expected GET", b"{}"),
        Case("no body", f"{MODEL}/infer", 400, "no body", b""),
        Case("no JSON", f"{MODEL}/infer", 400, "no JSON", b"{"),
        Case("too large", f"{MODEL}/infer", 413, "at most", b"x" * 200_000),
        Case("too large an image", f"{MODEL}/classify", 413, "at most", b"x" * (16 * 2**20 + 1)),
        Case("no image", f"{MODEL}/classify", 400, "no JPEG", b"hello"),
        Case("no number of classes", f"{MODEL}/classify?top=many", 400, "top", b"hello"),
        Case(
            "a part that is none",
            f"{MODEL}/infer",
            400,
            "part",
            b"{}",
            None,
            (("Inference-Header-Content-Length", "9"),),
        ),
        Case("an expectation", f"{MODEL}/classify", 417, "100-continue", b"x", None, (("Expect", "magic"),)),
    ],
    ids=lambda case: case.id,
)
def test_requests_that_are_refused(server: BoardServer, case: Case) -> None:
    answer = server.ask(case.path, case.body, method=case.method, headers=dict(case.headers))
    assert answer.status == case.status
    assert case.message in answer.json()["error"]


def test_the_image_endpoint_takes_chunks_and_waits_to_continue(server: BoardServer) -> None:
    ppm = b"P6 1 1 255\nabc"
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", f"{MODEL}/classify", iter([ppm[:5], ppm[5:]]), encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, len(json.loads(answer.read())["labels"])) == (200, 4)
    head = f"POST {MODEL}/classify HTTP/1.1\r\nHost: b\r\nContent-Length: {len(ppm)}\r\nExpect: 100-continue\r\n\r\n"
    answered = server.raw(head.encode() + ppm)
    assert b"HTTP/1.1 200 OK" in answered


def test_binary_tensors_in_chunks(server: BoardServer, root: Path) -> None:
    image = image_of(5)
    tensor = {"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 192}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Transfer-Encoding": "chunked"}
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", f"{MODEL}/infer", iter([text, image.tobytes()]), headers, encode_chunked=True)
        answer = json.loads(connection.getresponse().read())
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected(root, image)[0])


def test_metrics(server: BoardServer, root: Path) -> None:
    before = server.ask("/metrics").body.decode()
    server.ask(f"{MODEL}/infer", json_request(image_of(2)))
    server.ask("/" + "x" * 50)
    page = server.ask("/metrics").body.decode()

    def count(text: str, line: str) -> float:
        match = re.search(rf"^{re.escape(line)} (.+)$", text, re.MULTILINE)
        return float(match.group(1)) if match else 0.0

    for line in (
        'edgeship_requests_total{endpoint="infer",code="200"}',
        'edgeship_requests_total{endpoint="other",code="404"}',
        f'edgeship_inference_seconds_count{{model="{NAME}"}}',
        f'edgeship_confidence_count{{model="{NAME}"}}',
    ):
        assert count(page, line) == count(before, line) + 1
    digest = (root / NAME / "current").readlink().name
    assert f'edgeship_model_info{{model="{NAME}",release="{digest}",sha256="' in page
    assert "x" * 50 not in page


def test_no_request_fails_during_switches(tmp_path: Path) -> None:
    root, num_releases = tmp_path / "root", 6
    digests = [put_fake(root, tmp_path, seed=seed) for seed in range(num_releases)]
    image = image_of(7)
    logits = {}
    for seed in range(num_releases):
        digests[seed] = put_fake(root, tmp_path, seed=seed)
        logits[digests[seed]] = expected(root, image)[0]
    failures: list[str] = []
    seen: list[str] = []
    ended = threading.Event()

    def hammer(server: BoardServer, *, keep: bool) -> None:
        connection, body = server.connect(), json_request(image)
        while not ended.is_set():
            try:
                connection.request("POST", f"{MODEL}/infer", body)
                answer = connection.getresponse()
                found = json.loads(answer.read())
                np.testing.assert_allclose(found["outputs"][0]["data"], logits[found["model_version"]], rtol=1e-5)
                seen.append(found["model_version"])
            except Exception as error:  # noqa: BLE001 (all of them are failures)
                failures.append(repr(error))
            if not keep:
                connection.close()
        connection.close()

    with serving(root, "--workers", "2") as server:
        clients = [
            threading.Thread(target=hammer, args=(server,), kwargs={"keep": keep}) for keep in (True, True, False)
        ]
        for each in clients:
            each.start()
        try:
            for seed in range(num_releases):
                put_fake(root, tmp_path, seed=seed)
                if seed % 2:
                    server.process.send_signal(signal.SIGHUP)
                wait_for(lambda wanted=digests[seed]: seen[-1:] == [wanted])
            put_fake(root, tmp_path, seed=99, behaviour="reject")  # is refused, and the one before served on
            wait_for(lambda: any("is served on" in line for line in server.log))
            count = len(seen)
            wait_for(lambda: len(seen) > count + 20)
        finally:
            ended.set()
            for each in clients:
                each.join()
        page = server.ask("/metrics").body.decode()
        assert server.stop() == 0
    assert failures == []
    assert set(seen) == set(digests)
    assert f'edgeship_model_switches_total{{model="{NAME}",outcome="done"}} {num_releases}' in page
    assert f'edgeship_model_switches_total{{model="{NAME}",outcome="failed"}} 1' in page


def wait_for(condition: object, *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_stops_gracefully(root: Path) -> None:
    failures: list[str] = []
    answered: list[int] = []
    stopped = threading.Event()
    with serving(root) as server:

        def hammer() -> None:
            with contextlib.closing(server.connect()) as connection:
                while ask_once(connection):
                    pass

        def ask_once(connection: HTTPConnection) -> bool:
            try:
                connection.request("POST", f"{MODEL}/infer", json_request(image_of(0)))
                answer = connection.getresponse()
                answer.read()
            except OSError:  # closed between two requests
                if not stopped.is_set():
                    failures.append("closed too early")
                return False
            answered.append(answer.status)
            return answer.getheader("Connection") != "close"

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        idle = server.connect()
        idle.request("GET", "/v2/health/ready")
        idle.getresponse().read()
        for each in threads:
            each.start()
        wait_for(lambda: len(answered) > 20)
        stopped.set()
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 15
        for each in threads:
            each.join()
        idle.close()
        assert "stopped" in server.log[-1]
    assert failures == []
    assert set(answered) == {200}


def test_what_the_shipped_folder_serves(root: Path, tmp_path: Path) -> None:
    """The agent as it lies on a board: a folder of its own that knows nothing of the host."""
    shutil.copytree(ROOT / "devices" / "board", tmp_path / "board", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "image.ppm").write_bytes(b"P6 1 1 255\nabc")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "board", "infer", "image.ppm", "--root", str(root), "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["images"][0]["labels"]) == 4
    unit = [sys.executable, "-m", "board", "unit", "--root", str(root)]
    text = subprocess.run(unit, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"Environment=PYTHONPATH={tmp_path}\n" in text
    assert " -m board serve --root " in text

"""Each runtime through the server: many clients get what the model gives by itself, each its own answer."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from devices.board.model import open_model
from tests.board_server import BoardServer, serving
from tests.releases import NAME, image_manifest, put
from tests.runtime_models import SHAPE, write_onnx, write_tflite

pytestmark = pytest.mark.slow


def ask(server: BoardServer, images: list[np.ndarray], *, binary: bool) -> list[np.ndarray]:
    """What one client gets, request after request on one connection."""
    answers = []
    with contextlib.closing(server.connect()) as connection:
        for image in images:
            tensor = {"name": "image", "shape": SHAPE, "datatype": "UINT8"}
            headers: dict[str, str] = {}
            if binary:
                text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": image.nbytes}}]}).encode()
                headers["Inference-Header-Content-Length"] = str(len(text))
                text += image.tobytes()
            else:
                text = json.dumps({"inputs": [{**tensor, "data": image.tolist()}]}).encode()
            connection.request("POST", f"/v2/models/{NAME}/infer", text, headers)
            answers.append(np.array(json.loads(connection.getresponse().read())["outputs"][0]["data"]))
    return answers


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime", "openvino"])
def test_many_clients_at_once(tmp_path: Path, runtime: str) -> None:
    model = write_tflite(tmp_path / "m.tflite") if runtime == "litert" else write_onnx(tmp_path / "m.onnx")
    root = tmp_path / "root"
    put(root, image_manifest(model, target=runtime), model)
    rng = np.random.default_rng(1)
    images = [[rng.integers(0, 256, SHAPE, np.uint8) for _ in range(40)] for _ in range(4)]
    direct = open_model(root=str(root), num_threads=1)
    with serving(root, "--workers", "2", "--threads", "1") as server:
        found: dict[int, list[np.ndarray]] = {}

        def work(index: int) -> None:
            found[index] = ask(server, images[index], binary=index % 2 == 0)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert server.stop() == 0
    for index, own in enumerate(images):
        wanted = [direct.infer({"image": image})["logits"][0] for image in own]
        np.testing.assert_allclose(found[index], wanted, rtol=1e-4, atol=1e-4)

"""Each runtime through the server: many clients get what the model gives by itself, each its own answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from devices.board.model import open_model
from tests.board_server import BoardServer, serving
from tests.conftest import ROOT
from tests.releases import NAME, image_manifest, put

pytestmark = pytest.mark.slow

SIZE, CLASSES = 8, 4
SHAPE = (1, SIZE, SIZE, 3)

TFLITE = """
import sys
import numpy as np
import tensorflow as tf

weights = tf.constant(np.random.default_rng(0).normal(0, 0.2, (192, 4)).astype(np.float32))

class Network(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3), tf.uint8, name="image")])
    def __call__(self, image):
        return {"logits": tf.matmul(tf.reshape(tf.cast(image, tf.float32) / 255.0, (1, 192)), weights)}

network = Network()
concrete = network.__call__.get_concrete_function()
converted = tf.lite.TFLiteConverter.from_concrete_functions([concrete], network).convert()
open(sys.argv[1], "wb").write(converted)
"""


def write_tflite(path: Path) -> Path:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-c", TFLITE, str(path)], check=True, cwd=ROOT, env=environment, capture_output=True
    )
    return path


def write_onnx(path: Path) -> Path:
    weights = np.random.default_rng(0).normal(0, 0.2, (192, CLASSES)).astype(np.float32) / 255
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, SHAPE)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CLASSES))
    graph = helper.make_graph(nodes, NAME, [image], [logits], [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


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

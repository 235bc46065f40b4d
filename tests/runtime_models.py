"""Small models for each runtime whose image is uint8 `(1, 8, 8, 3)`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import ROOT
from tests.releases import NAME

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

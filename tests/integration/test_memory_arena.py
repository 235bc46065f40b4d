"""Peak activation memory against LiteRT's own allocation.

The arena is where the interpreter puts every tensor that is no constant: from the lowest address of one to the highest
end. It is measured with LiteRT's reference kernels, which need no scratch memory; its optimized kernels without XNNPACK
also copy the patches of each k x k convolution into the arena (im2col), which is counted apart: as growth alone.

Our figure is a lower bound of what any allocation needs in the order of the graph, so the arena may never be smaller.
It may be larger where tensors of different sizes don't fit into each other's gaps, and by the alignment to 64 bytes:
up to 10 % here. Found, in float32 and int8: no difference to the byte in MobileNetV1, V2, V3, V4 (also hybrid),
EfficientNet-B0, Lite0 and V2-B0 at 64 to 224 pixels; 6 % in V3-small minimalistic and 11 % in EfficientNetV2-S at 64.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import models
from models.memory import Precision, file_size_bytes, peak_activation_bytes
from pipeline.executor import child_environment


@dataclass(frozen=True)
class Network:
    """A network of the table at a size in pixels (0: its own), or a graph of `GRAPHS`."""

    id: str
    name: str
    size: int
    activation: str | None = None


NETWORKS = [
    Network("v2", "mobilenet_v2", 96),
    Network("v2-hard-swish", "mobilenet_v2", 64, activation="hard_swish"),
    Network("v3-minimalistic", "mobilenet_v3_small_minimalistic", 64),
    Network("v4", "mobilenet_v4_conv_small", 64),
    Network("b0", "efficientnet_b0", 64),
    Network("resnet8", "resnet8", 32),
    Network("ds-cnn", "ds_cnn", 0),
    Network("autoencoder", "dense_autoencoder", 0),
    Network("attention", "attention", 16),
    Network("ends", "ends", 16),
]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")

GRAPHS = '''
def attention(size):
    """Queries, keys and values of one map: the products are the peak."""
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="rescaling")(image)
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(x)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    parts = [keras.layers.Conv2D(16, 1, name=name)(x) for name in ("query", "key", "value")]
    parts = [keras.layers.Reshape((size * size, 16), name=f"{part.name}_rows")(part) for part in parts]
    scores = keras.layers.Softmax(name="softmax")(keras.layers.Dot(axes=(2, 2), name="scores")(parts[:2]))
    mixed = keras.layers.Dot(axes=(2, 1), name="mix")([scores, parts[2]])
    mixed = keras.layers.Reshape((size, size, 16), name="map")(mixed)
    return keras.Model(image, keras.layers.Add(name="add")([x, mixed]))


def ends(size):
    """Two inputs, two outputs, a sum, an activation with a tensor of its own."""
    left, right = (keras.Input((size, size, 8), name=name) for name in ("left", "right"))
    x = keras.layers.Conv2D(32, 1, activation="relu", name="left_conv")(left)
    y = keras.layers.Conv2D(32, 1, name="right_conv")(right)
    y = keras.layers.Activation("sigmoid", name="right_sigmoid")(y)
    total = keras.layers.Add(name="add")([x, y])
    early = keras.layers.Conv2D(4, 1, name="early")(total)
    late = keras.layers.MaxPooling2D(name="pool")(total)
    return keras.Model([left, right], [early, keras.layers.Conv2D(8, 1, name="late")(late)])


def build(name, size, activation):
    if name in ("attention", "ends"):
        return {"attention": attention, "ends": ends}[name](size)
    if not size:
        return models.build(name)
    return models.build(name, input_shape=(size, size, 3), num_classes=10, activation=activation)
'''

CONVERT = f"""
import json, sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import models

{GRAPHS}
out, rng = Path(sys.argv[1]), np.random.default_rng(0)


def samples(network):
    for _ in range(2):
        yield [rng.integers(0, 256, (1, *tensor.shape[1:])).astype(tensor.dtype) for tensor in network.inputs]


for row in json.loads(sys.argv[2]):
    network = build(row["name"], row["size"], row["activation"])
    for weight in network.weights:  # equal weights would be stored once
        if weight.name in ("beta", "bias"):
            weight.assign(rng.normal(0.0, 0.2, weight.shape))
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(
        name="serve",
        fn=lambda *tensors: network(list(tensors) if len(tensors) > 1 else tensors[0], training=False),
        input_signature=[keras.InputSpec(shape=(1, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name)
                         for tensor in network.inputs],
    )
    archive.write_out(str(out / row["id"]), verbose=False)
    for precision in ("float32", "int8"):
        converter = tf.lite.TFLiteConverter.from_saved_model(str(out / row["id"]))
        if precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: samples(network)
        (out / f"{{row['id']}}.{{precision}}.tflite").write_bytes(converter.convert())
"""

# In a process of its own: it prints the arena's size in bytes.
MEASURE = """
import sys
from ai_edge_litert.interpreter import Interpreter, OpResolverType

interpreter = Interpreter(model_path=sys.argv[1], experimental_op_resolver_type=OpResolverType[sys.argv[2]],
                          num_threads=1)
interpreter.allocate_tensors()
written = {index for operation in interpreter._get_ops_details() for index in operation["outputs"]}
written |= {row["index"] for row in interpreter.get_input_details()}
places = []
for index in written:
    array = interpreter.tensor(int(index))()
    if array.nbytes:
        start = array.__array_interface__["data"][0]
        places.append((start, start + array.nbytes))
print(max(end for _, end in places) - min(start for start, _ in places))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arena")
    rows = json.dumps([asdict(network) for network in NETWORKS])
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(folder), rows],
        env={**child_environment("tensorflow"), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def arena_bytes(path: Path, kernels: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), kernels], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def skeleton(network: Network) -> Any:
    import keras

    scope: dict[str, Any] = {"keras": keras, "models": models}
    exec(GRAPHS, scope)  # noqa: S102
    return models.without_weights(lambda: scope["build"](network.name, network.size, network.activation))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.id)
def test_peak_activation_bytes_equal_the_arena(network: Network, precision: Precision, files: Path) -> None:
    path = files / f"{network.id}.{precision}.tflite"
    ours = peak_activation_bytes(skeleton(network), precision=precision)

    arena = arena_bytes(path, "BUILTIN_REF")
    assert ours <= arena <= 1.10 * ours, f"{arena / ours - 1:+.2%}"
    assert arena_bytes(path, "BUILTIN_WITHOUT_DEFAULT_DELEGATES") >= arena


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS[:-2], ids=lambda network: network.id)
def test_file_size_bytes_are_those_of_the_file(network: Network, precision: Precision, files: Path) -> None:
    """Within 10 %, or 16 KiB in a small file: the graph itself is not in the estimate."""
    written = (files / f"{network.id}.{precision}.tflite").stat().st_size
    assert file_size_bytes(skeleton(network), precision=precision) == pytest.approx(written, rel=0.10, abs=16 * 1024)

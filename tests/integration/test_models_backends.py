"""The same weights give the same logits on every Keras backend, and no network needs TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import models

NUM_IMAGES = 2

# JAX compiles an initializer for each shape of kernel, which takes ten times as long as all the rest.
WITHOUT_INITIALIZERS = """
import keras
import numpy as np

keras.initializers.VarianceScaling.__call__ = lambda self, shape, dtype=None: np.zeros(shape, np.float32)
"""

SCRIPT = """
import json
import sys
from pathlib import Path

import keras
import numpy as np

import models

folder, backend = Path(sys.argv[1]), sys.argv[2]
assert keras.backend.backend() == backend, keras.backend.backend()
for name, shape in json.loads(sys.argv[3]).items():
    classes = {} if "num_classes" in models.MODELS[name].fixed else {"num_classes": 10}
    network = models.build(name, input_shape=tuple(shape), **classes)
    taken = network.inputs[0]
    rng = np.random.default_rng(1)
    if taken.dtype == "uint8":
        images = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
        images[1] //= 4  # dark beside bright, so that every network tells the two apart
    else:
        images = rng.normal(0.0, 1.0, (2, *shape)).astype(np.float32)
    weights = folder / f"{name}.npz"
    if weights.exists():
        stored = np.load(weights)
        network.set_weights([stored[key] for key in stored])
        weights.unlink()
    else:
        summands = {layer.name.removesuffix("add") for layer in network.layers if layer.name.endswith("_add")}
        for layer in network.layers:
            is_summand = layer.name.split("project")[0].split("fused")[0] in summands
            for weight in layer.weights:
                if weight.name == "gamma" and is_summand:  # small, as in trained networks: nothing saturates
                    weight.assign(rng.uniform(0.1, 0.3, weight.shape))
                elif weight.name in ("gamma", "moving_variance"):
                    weight.assign(rng.uniform(0.5, 1.5, weight.shape))
                elif weight.name in ("beta", "moving_mean"):
                    weight.assign(rng.normal(0.0, 0.2, weight.shape))
                elif layer.name.endswith("_layer_scale"):
                    weight.assign(rng.uniform(0.1, 0.3, weight.shape))
                elif weight.name == "kernel":  # large enough for the image to reach the logits
                    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                    rows = weight.shape[:2] if is_depthwise else weight.shape[:-1]
                    # A softmax of large scores chooses one of them, and rounding chooses which.
                    share = 0.1 if layer.name.endswith("_query") else 1.0
                    weight.assign(rng.normal(0.0, share * np.sqrt(2 / np.prod(rows)), weight.shape))
        np.savez(weights, **{f"{index:05d}": value for index, value in enumerate(network.get_weights())})
    run = network if backend == "tensorflow" else network.predict_on_batch
    np.save(folder / f"{name}.{backend}.npy", keras.ops.convert_to_numpy(run(images)))
    keras.backend.clear_session()
"""

BUILD_ALL = """
import sys

sys.modules["tensorflow"] = None  # an import of it fails
import keras

import models

models.build("mobilenet_v1", width=0.25)
{without_initializers}
for name, spec in models.MODELS.items():
    network = models.build(name)
    assert network.inputs[0].shape[1:] == spec.input_shape, name
    keras.backend.clear_session()
sys.exit("torch was loaded" if "torch" in sys.modules else 0)
""".replace("{without_initializers}", WITHOUT_INITIALIZERS)


def small_shape(name: str) -> tuple[int, ...]:
    """A shape that keeps the comparison short."""
    spec = models.MODELS[name]
    return (45, 64, 3) if spec.input_kind == "image" and spec.has_early_stride else spec.input_shape


def python(script: str, *arguments: str, backend: str, timeout: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, names: Sequence[str]) -> Path:
    """A folder with the logits of every network on every backend; TensorFlow makes the weights."""
    folder = tmp_path_factory.mktemp("backends")
    shapes = json.dumps({name: small_shape(name) for name in names})
    for backend in ("tensorflow", "jax"):
        python(WITHOUT_INITIALIZERS + SCRIPT, str(folder), backend, shapes, backend=backend, timeout=1200)
    return folder


@pytest.fixture(scope="module")
def names(request: pytest.FixtureRequest) -> list[str]:
    """The networks whose tests were asked for: two processes compute them all."""
    chosen = {item.callspec.params["name"] for item in request.session.items if item.name.startswith("test_jax_equals")}
    return [name for name in models.MODELS if name in chosen]


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("name", models.MODELS)
def test_jax_equals_tensorflow(name: str, results: Path) -> None:
    expected = np.load(results / f"{name}.tensorflow.npy")
    received = np.load(results / f"{name}.jax.npy")
    assert len(expected) == NUM_IMAGES
    spread = float(np.ptp(expected))
    between_images = float(np.ptp(expected, axis=0).max())
    assert between_images > 0.01 * spread > 0.0001
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-4 * spread)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["jax", "openvino"])
def test_building_needs_no_tensorflow(backend: str) -> None:
    python(BUILD_ALL, backend=backend, timeout=800)

"""The same weights give the same logits on every Keras backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import models

NETWORKS = {"mobilenet_v2": 0.5, "efficientnet_lite0": 1.0}
"""Width of each network that is compared."""

SCRIPT = """
import json
import sys
from pathlib import Path

import keras
import numpy as np

import models

folder, backend = Path(sys.argv[1]), sys.argv[2]
assert keras.backend.backend() == backend, keras.backend.backend()
pixels = np.random.default_rng(1).integers(0, 256, (3, 45, 64, 3), dtype=np.uint8)
for name, width in json.loads(sys.argv[3]).items():
    keras.utils.set_random_seed(0)
    network = models.build(name, input_shape=(45, 64, 3), num_classes=10, width=width)
    weights = folder / f"{name}.weights.h5"
    if weights.exists():
        network.load_weights(weights)
    else:
        rng = np.random.default_rng(0)
        for weight in network.weights:
            if weight.name in ("gamma", "moving_variance"):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif weight.name in ("beta", "moving_mean"):
                weight.assign(rng.normal(0.0, 0.2, weight.shape))
            elif weight.name == "kernel":  # large enough for the image to reach the logits
                rows = weight.shape[:2] if "depthwise" in weight.path else weight.shape[:-1]
                weight.assign(rng.normal(0.0, np.sqrt(2 / np.prod(rows)), weight.shape))
        network.save_weights(weights)
    np.save(folder / f"{name}.{backend}.npy", network.predict_on_batch(pixels))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the logits of every network on every backend; TensorFlow makes the weights."""
    folder = tmp_path_factory.mktemp("backends")
    for backend in ("tensorflow", "jax"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), backend, json.dumps(NETWORKS)],
            env=os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_every_network_is_compared() -> None:
    assert list(NETWORKS) == list(models.MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_jax_equals_tensorflow(name: str, results: Path) -> None:
    expected = np.load(results / f"{name}.tensorflow.npy")
    received = np.load(results / f"{name}.jax.npy")
    assert expected.shape == (3, 10)
    spread = float(np.ptp(expected))
    between_images = float(np.ptp(expected, axis=0).max())
    assert between_images > 0.01 * spread > 0.0001
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-4 * spread)

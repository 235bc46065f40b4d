from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.executor import child_environment

SCRIPT = """
import hashlib
import keras
import numpy as np
from pipeline.network import ModelConfig
from pipeline.stages.train import TrainStage
from pipeline.training.config import TrainConfig

keras.utils.set_random_seed(0)
train = TrainConfig(epochs=2, warmup_epochs=1, learning_rate=0.004)
stage = TrainStage(model=ModelConfig(name="mobilenet_v2", width=0.35, batch_norm_momentum=0.95), train=train)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (320, 32, 32, 3), dtype=np.uint8)
targets = np.eye(10, dtype=np.float32)[rng.integers(0, 10, 320)]
model, _ = stage._fresh_network(images, list("abcdefghij"))
for start in range(0, 320, 64):
    model.train_on_batch(images[start : start + 64], targets[start : start + 64])
digest = hashlib.sha256()
for weight in model.weights:
    digest.update(keras.ops.convert_to_numpy(weight).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_the_same_weights_at_full_size() -> None:
    """Batches large enough to be spread over threads, and two processes that compete for the cores."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=child_environment("tensorflow"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=800)[0].strip() for process in processes)
    assert len(first) == 64
    assert first == second

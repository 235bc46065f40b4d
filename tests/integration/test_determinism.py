from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.executor import child_environment

SCRIPT = """
import hashlib
import keras
import numpy as np
from devices.board.preprocess import Preprocess
from pipeline.network import ModelConfig
from pipeline.training.config import TrainConfig
from pipeline.training.loop import Training


class Images:
    rng = np.random.default_rng(0)
    classes, size, preprocess, encoded = tuple("abcdefghij"), (32, 32), Preprocess((32, 32)), False
    pixels, labels = rng.integers(0, 256, (320, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 320)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.pixels[row]


images = Images()
training = Training(
    model=ModelConfig(name="mobilenet_v2", width=0.35, batch_norm_momentum=0.95),
    train=TrainConfig(epochs=2, warmup_epochs=1, learning_rate=0.004, averaging={"every_steps": 2}, workers=0),
    backend="tensorflow",
    images=images,
    validation=(images.pixels[:64], images.labels[:64]),
    tell=lambda event: None,
)
training.first_steps(4)
digest = hashlib.sha256()
for variable in training.assembly.variables():
    digest.update(keras.ops.convert_to_numpy(variable.value).tobytes())
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

"""A training that takes a second: a tiny network on images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from devices.board.preprocess import Preprocess
from pipeline.network import ModelConfig
from pipeline.training import assembly, loop
from pipeline.training.checkpoint import CheckpointDirectory, TrainingState
from pipeline.training.config import TrainConfig
from pipeline.training.distribution import Distribution
from pipeline.training.loop import Training

CLASSES = ("a", "b", "c")


def tiny_network(config: ModelConfig, input_shape: Sequence[int], num_classes: int) -> keras.Model:
    """Has what the real ones have: convolutions, batch norm, dropout, stochastic depth, logits."""
    images = keras.Input(tuple(input_shape), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    x = keras.layers.Conv2D(4, 3, strides=4, padding="same", use_bias=False, name="stem_conv")(x)
    x = shortcut = keras.layers.BatchNormalization(momentum=0.8, name="stem_bn")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="block_00_conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.8, name="block_00_bn")(x)
    x = keras.layers.Dropout(0.1, noise_shape=(None, 1, 1, 1), name="block_00_drop_path")(x)
    x = keras.layers.Add(name="block_00_add")([x, shortcut])
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    x = keras.layers.Dropout(0.2, name="head_dropout")(x)
    return keras.Model(images, keras.layers.Dense(num_classes, name="logits")(x), name="tiny")


class Images:
    """The training split in memory."""

    classes = CLASSES
    size = (32, 32)
    preprocess = Preprocess((32, 32))
    encoded = False

    def __init__(self, count: int = 40) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, 3, count)
        pixels = rng.integers(0, 100, (count, 32, 32, 3)) + self.labels[:, None, None, None] * 70
        self.pixels = pixels.astype(np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Any:
        return self.pixels[row]

    def names(self, rows: Any) -> list[str]:
        return [f"{row}.png" for row in rows]


def make(monkeypatch: pytest.MonkeyPatch, images: Images | None = None, **train: Any) -> tuple[Training, list[Any]]:
    """A training and what it tells."""
    monkeypatch.setattr(assembly, "build_network", tiny_network)
    values = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0.0, "learning_rate": 0.01, "workers": 0, **train}
    images = images or Images()
    events: list[Any] = []
    training = loop.Training(
        model=ModelConfig(name="mobilenet_v2"),
        train=TrainConfig.model_validate(values),
        backend="tensorflow",
        images=images,
        validation=(images.pixels, images.labels),
        tell=events.append,
        distribution=Distribution(),
    )
    return training, events


def run(training: Training, folder: Path, **options: Any) -> TrainingState:
    return training.run(CheckpointDirectory(folder / "resume"), **options)


def arrays(network: keras.Model) -> dict[str, Any]:
    return {each.path: np.array(keras.ops.convert_to_numpy(each.value)) for each in network.weights}

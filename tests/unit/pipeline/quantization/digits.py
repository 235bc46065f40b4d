"""A network that knows scikit-learn's digits after a few seconds, and the digits."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

from devices.board.preprocess import Preprocess
from pipeline.sources.digits import scale_to_bytes

SIDE = 16


class Digits:
    """A part of the digits in memory, as the loader reads them."""

    classes = tuple("0123456789")
    size = (SIDE, SIDE)
    preprocess = Preprocess((SIDE, SIDE))
    encoded = False

    def __init__(self, first: int, last: int) -> None:
        digits = load_digits()
        pixels = scale_to_bytes(digits.images)[first:last, :, :, None].repeat(3, axis=3)
        self.pixels = pixels.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
        self.labels = digits.target[first:last].astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Any:
        return self.pixels[row]


def untrained_network(activation: str = "hard_swish") -> Any:
    """Two inverted residual blocks' worth of layers, folded as they would be."""
    layers = keras.layers
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescaling")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x)
    x = shortcut = layers.Activation(activation, name=f"stem_{activation}")(x)
    x = layers.Conv2D(24, 1, name="expand")(x)
    x = layers.ReLU(6.0, name="expand_relu6")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.ReLU(6.0, name="depthwise_relu6")(x)
    x = layers.Conv2D(8, 1, name="project")(x)
    x = layers.Add(name="add")([shortcut, x])
    x = layers.Conv2D(32, 3, strides=2, padding="same", name="head")(x)
    x = layers.ReLU(name="head_relu")(x)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="digits")


def trained_network(epochs: int = 12) -> Any:
    """Knows about 95 % of the digits."""
    keras.utils.set_random_seed(0)
    network, digits = untrained_network(), Digits(0, 1200)
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, epochs * 19)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    network.fit(digits.pixels, digits.labels, batch_size=64, epochs=epochs, verbose=0)
    return network

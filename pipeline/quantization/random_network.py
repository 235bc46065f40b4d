"""Random networks that compute like trained ones: for latencies, which don't depend on what was learned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras


def random_images(count: int, size: tuple[int, int], *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Returns coarse patterns with noise, uint8 (count, height, width, 3).

    Args:
        count: How many.
        size: Height and width.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.uniform(0, 255, (count, 8, 8, 3)).repeat(math.ceil(height / 8), 1).repeat(math.ceil(width / 8), 2)
    noisy = coarse[:, :height, :width] + rng.normal(0, 30, (count, height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def enliven(network: keras.Model, images: npt.NDArray[np.uint8], *, seed: int = 0) -> None:
    """Gives a fresh network statistics of batch normalizations that fit its weights, and biases that are not zero.

    With those it starts with, values vanish on their way through the network: floats that are almost zero take
    processors longer, and integer kernels refuse scales that are almost zero. Converters drop additions of zero, and
    NNCF then does not recognize gates of squeeze-and-excite, which it leaves in float in trained networks.

    Args:
        network: Is changed.
        images: uint8 (images, height, width, 3).
        seed: Of the biases.
    """
    import keras

    rng = np.random.default_rng(seed)
    for layer in network.layers:
        for weight in layer.trainable_weights:
            if weight.name in {"bias", "beta"}:
                weight.assign(rng.normal(0.1, 0.1, weight.shape))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(images, training=True)

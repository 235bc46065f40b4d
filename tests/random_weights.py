"""Random weights that let the inputs reach the outputs, and rounding errors stay what they are in a trained network.

Kernels are as He et al. draw them, batch normalizations have the statistics of the inputs, and shifts are one deviation
up, so that most values pass the rectifiers. Rectifiers that close on half of the values turn a deep random network into
a hash of its input: rounding to 8 bits grows by a fifth in each layer.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def randomize(network: Any, inputs: Any, rng: np.random.Generator) -> Any:
    """Draws the weights of a network, and returns it."""
    for layer in network.layers:
        for weight in layer.trainable_weights:
            if layer.name.endswith("_layer_scale"):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif weight.name == "gamma":
                weight.assign(rng.uniform(0.5, 1.0, weight.shape))
            elif weight.name == "beta":
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif weight.name == "bias":
                weight.assign(rng.normal(0, 0.1, weight.shape))
            else:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                fan_in = np.prod(weight.shape[:2] if depthwise else weight.shape[:-1])
                weight.assign(rng.normal(0, np.sqrt(2 / fan_in), weight.shape))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(inputs, training=True)
    return network

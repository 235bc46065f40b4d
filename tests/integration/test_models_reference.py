"""The networks compute what the reference implementations compute from the same weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import models

TOLERANCE_OF_RANGE = 1e-4


def fan_in(layer: Any) -> int:
    """Number of inputs that one output of the layer sums over."""
    shape = layer.kernel.shape
    return math.prod(shape[:2] if type(layer).__name__ == "DepthwiseConv2D" else shape[:-1])


def randomize(network: Any, rng: np.random.Generator) -> None:
    """Gives every weight a random value, batch-norm statistics included, that keeps the logits alive."""
    for layer in network.layers:
        for weight in layer.weights:
            match weight.name:
                case "gamma" | "moving_variance":
                    weight.assign(rng.uniform(0.5, 1.5, weight.shape))
                case "beta" | "moving_mean" | "bias":
                    weight.assign(rng.normal(0.0, 0.2, weight.shape))
                case "kernel":
                    weight.assign(rng.normal(0.0, math.sqrt(2.0 / fan_in(layer)), weight.shape))
                case other:
                    raise AssertionError(f"unexpected weight {other!r} in {layer.name!r}")


def weighted_layers(network: Any) -> list[Any]:
    return [layer for layer in network.layers if layer.weights and type(layer).__name__ != "Normalization"]


def copy_weights(source: Any, target: Any) -> None:
    """Layer by layer in the order of the graph; kinds and shapes have to agree."""
    for ours, theirs in zip(weighted_layers(source), weighted_layers(target), strict=True):
        assert type(ours).__name__ == type(theirs).__name__
        theirs.set_weights(ours.get_weights())


def assert_equal_logits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    spread = float(np.ptp(theirs))
    between_images = float(np.ptp(theirs, axis=0).max())
    assert between_images > 0.01 * spread > 0.001, "logits that hardly differ say nothing when they are equal"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE_OF_RANGE * spread)


@dataclass(frozen=True)
class ReferenceCase:
    resolution: tuple[int, int]
    width: float = 1.0

    @property
    def id(self) -> str:
        return f"{self.width}-{self.resolution[0]}x{self.resolution[1]}"


MOBILENET_V2 = [
    ReferenceCase((224, 224)),
    ReferenceCase((96, 96), 0.35),
    ReferenceCase((97, 97), 0.75),
    ReferenceCase((130, 101), 1.4),
]


@pytest.mark.parametrize("case", MOBILENET_V2, ids=lambda case: case.id)
def test_mobilenet_v2_equals_keras_applications(case: ReferenceCase) -> None:
    import keras

    rng = np.random.default_rng(0)
    shape = (*case.resolution, 3)
    ours = models.build("mobilenet_v2", input_shape=shape, num_classes=20, width=case.width)
    theirs = keras.applications.MobileNetV2(
        input_shape=shape, alpha=case.width, weights=None, classes=20, classifier_activation=None
    )
    randomize(ours, rng)
    copy_weights(ours, theirs)
    assert models.count_parameters(ours, batch_norm="all") == theirs.count_params()

    pixels = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    assert_equal_logits(ours.predict_on_batch(pixels), theirs.predict_on_batch(pixels.astype(np.float32) / 127.5 - 1.0))


LITE0 = [ReferenceCase((224, 224)), ReferenceCase((97, 97)), ReferenceCase((96, 130))]


@pytest.mark.parametrize("case", LITE0, ids=lambda case: case.id)
def test_efficientnet_lite0_equals_efficientnet_b0_with_lites_changes(case: ReferenceCase) -> None:
    """Keras' EfficientNet-B0 without squeeze-and-excite and with ReLU6 is Lite0: neither scales anything."""
    import keras
    from keras.src.applications import efficientnet

    rng = np.random.default_rng(0)
    shape = (*case.resolution, 3)
    blocks = copy.deepcopy(efficientnet.DEFAULT_BLOCKS_ARGS)
    for block in blocks:
        block["se_ratio"] = 0
    theirs = efficientnet.EfficientNet(
        1.0,
        1.0,
        224,
        activation=keras.ops.relu6,
        blocks_args=blocks,
        weights=None,
        input_shape=shape,
        classes=20,
        classifier_activation=None,
    )
    ours = models.build("efficientnet_lite0", input_shape=shape, num_classes=20)
    randomize(ours, rng)
    copy_weights(ours, theirs)

    pixels = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    # Their first layers divide by 255 and normalize with mean 0 and variance 1.
    scaled = (pixels.astype(np.float32) - 127.0) / 128.0 * 255.0
    assert_equal_logits(ours.predict_on_batch(pixels), theirs.predict_on_batch(scaled))

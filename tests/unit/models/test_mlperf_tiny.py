"""The networks of MLPerf Tiny: their layers, their ends, and what can't be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import models

NAMES = ("resnet8", "ds_cnn", "mobilenet_v1_025_96", "dense_autoencoder")


@dataclass(frozen=True)
class EndCase:
    name: str
    input: tuple[str, str, tuple[int | None, ...]]
    output: tuple[str, tuple[int | None, ...]]


ENDS = [
    EndCase("resnet8", ("image", "uint8", (None, 32, 32, 3)), ("logits", (None, 10))),
    EndCase("ds_cnn", ("features", "float32", (None, 49, 10, 1)), ("logits", (None, 12))),
    EndCase("mobilenet_v1_025_96", ("image", "uint8", (None, 96, 96, 3)), ("logits", (None, 2))),
    EndCase("dense_autoencoder", ("features", "float32", (None, 640)), ("reconstruction", (None, 640))),
]


@pytest.mark.parametrize("case", ENDS, ids=lambda case: case.name)
def test_ends(case: EndCase) -> None:
    network = models.build(case.name)
    [tensor] = network.inputs
    assert (tensor.name, tensor.dtype, tensor.shape) == case.input
    assert (network.output_names, network.output.shape) == ([case.output[0]], case.output[1])
    assert network.output.dtype == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_a_bias_as_in_the_reference(name: str) -> None:
    import keras

    kinds = keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense
    assert all(layer.use_bias for layer in models.build(name).layers if isinstance(layer, kinds))


@dataclass(frozen=True)
class PixelCase:
    name: str
    white: float


@pytest.mark.parametrize("case", [PixelCase("resnet8", 255.0), PixelCase("mobilenet_v1_025_96", 1.0)], ids=str)
def test_pixels_are_taken_as_in_the_reference(case: PixelCase) -> None:
    import keras

    network = models.build(case.name)
    scaling = keras.Model(network.input, network.get_layer("rescaling").output)
    pixels = np.full((1, *network.input.shape[1:]), 255, np.uint8)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(scaling(pixels)), case.white, rtol=1e-6)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(scaling(0 * pixels)), 0.0)


def test_ds_cnn_leaves_the_last_row_of_an_odd_map_out() -> None:
    network = models.build("ds_cnn")
    assert network.get_layer("head_pool").input.shape == (None, 25, 5, 64)
    assert network.get_layer("head_pool").pool_size == (24, 5)
    assert network.get_layer("head_pool").output.shape == (None, 1, 1, 64)
    assert (network.get_layer("stem_dropout").rate, network.get_layer("head_dropout").rate) == (0.2, 0.4)


@dataclass(frozen=True)
class OptionCase:
    name: str
    options: dict[str, Any]
    layer: str

    @property
    def id(self) -> str:
        return f"{self.name}-{'-'.join(self.options)}"


OPTIONS = [
    *(OptionCase(name, {"activation": "relu6"}, "stem_conv_relu6") for name in NAMES[:3]),
    OptionCase("dense_autoencoder", {"activation": "relu6"}, "dense_00_relu6"),
    *(OptionCase(name, {"squeeze_excite": True}, "block_00_squeeze_gate") for name in NAMES[:3]),
    *(OptionCase(name, {"input_shape": (40, 33, 3)}, "logits") for name in ("resnet8", "mobilenet_v1_025_96")),
    OptionCase("ds_cnn", {"input_shape": (98, 13, 1), "num_classes": 5}, "logits"),
    OptionCase("dense_autoencoder", {"input_shape": (320,)}, "reconstruction"),
]


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.id)
def test_options(case: OptionCase) -> None:
    network = models.build(case.name, **case.options)
    assert case.layer in {layer.name for layer in network.layers}
    batch = np.zeros((2, *network.input.shape[1:]), network.input.dtype)
    assert network.predict_on_batch(batch).shape == (2, *network.output.shape[1:])


def test_resnet8_has_no_variant_for_small_images_and_the_mobilenet_has() -> None:
    last = {
        name: models.build(name, input_shape=(48, 48, 3)).get_layer("head_pool").input.shape[1]
        for name in ("resnet8", "mobilenet_v1_025_96")
    }
    assert last == {"resnet8": 12, "mobilenet_v1_025_96": 6}


@dataclass(frozen=True)
class ErrorCase:
    name: str
    options: dict[str, Any]
    message: str

    @property
    def id(self) -> str:
        return f"{self.name}-{'-'.join(self.options)}"


ERRORS = [
    ErrorCase("resnet8", {"width": 0.5}, "width is 0.5, but 'resnet8' leaves no choice: the benchmark has one width"),
    ErrorCase("resnet8", {"early_stride": False}, "early_stride is False, but 'resnet8' has no variant for small"),
    ErrorCase("resnet8", {"drop_path": 0.1}, "'resnet8' has no stochastic depth"),
    ErrorCase("mobilenet_v1_025_96", {"width": 0.5}, "leaves no choice: the benchmark has 0.25; mobilenet_v1 takes"),
    ErrorCase("ds_cnn", {"input_shape": (49, 10)}, r"is \(49, 10\), expected \(frames, coefficients, 1\)"),
    ErrorCase("dense_autoencoder", {"input_shape": (0,)}, r"is \(0,\), expected \(length,\), such as \(640,\)"),
    ErrorCase("dense_autoencoder", {"num_classes": 10}, "num_classes is 10, .* it reconstructs its input"),
    ErrorCase("dense_autoencoder", {"dropout": 0.2}, "dropout is 0.2, .* it has no classifier"),
    ErrorCase("dense_autoencoder", {"squeeze_excite": True}, "squeeze_excite is True, .* it has no convolutions"),
]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.id)
def test_refused(case: ErrorCase) -> None:
    with pytest.raises(ValueError, match=case.message):
        models.build(case.name, **case.options)

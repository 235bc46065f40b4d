"""Equalization keeps the function and mends channels of different size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.errors import UnsupportedModelError
from pipeline.quantization.arithmetic import weight_steps
from pipeline.quantization.config import EqualizationConfig, IntegerArithmetic
from pipeline.quantization.equalization import Pair, _scale, equalize, find_pairs
from pipeline.quantization.fake_quantization import fake_quantized, observed_ranges
from pipeline.quantization.folded import fold
from pipeline.quantization.graph import copy_network

sys.path.insert(0, str(Path(__file__).parent))

from small_networks import build, features, images, logits_snr_db


def unequal(network: Any, *, seed: int = 0) -> Any:
    """The same function with channels of very different size."""
    result, rng = copy_network(network), np.random.default_rng(seed)
    for pair in find_pairs(network):
        channels = network.get_layer(pair.first).output.shape[-1]
        _scale(result, pair, 2.0 ** rng.uniform(-3, 3, channels))
    return result


def rounded_snr_db(network: Any, inputs: Any, **arithmetic: Any) -> float:
    quantized = fake_quantized(network, observed_ranges(network, inputs), IntegerArithmetic(**arithmetic))
    return logits_snr_db(network, quantized, inputs)


def chain(activation: str | None, *, second_reader: bool = False) -> Any:
    """A dense layer, an activation, another; the tensor between them has two readers if asked for."""
    inputs = keras.Input((8,), name="inputs")
    x = keras.layers.Dense(16, name="first")(inputs)
    if activation == "relu6":
        x = keras.layers.ReLU(6.0, name="between")(x)
    elif activation is not None:
        x = keras.layers.Activation(activation, name="between")(x)
    y = keras.layers.Dense(16, name="second")(x)
    if second_reader:
        y = keras.layers.Add(name="add")([x, y])
    return keras.Model(inputs, y)


def test_pairs_of_the_families() -> None:
    pairs = find_pairs(fold(build("mobilenet_v4_conv_small")))
    assert Pair("stem_conv", "block_00_conv", "stem_conv_relu", is_clipped=False) in pairs
    # No activation after the first depthwise convolution, and a triple with the second in its middle.
    names = {(pair.first, pair.second) for pair in pairs}
    assert {
        ("block_04_start_depthwise", "block_04_expand"),
        ("block_04_expand", "block_04_depthwise"),
        ("block_04_depthwise", "block_04_project"),
    } <= names
    # Through the pooling, to the logits, and never out of a residual block.
    assert {("body_conv", "head_conv"), ("head_conv", "logits")} <= names
    assert not [pair for pair in pairs if pair.first.endswith("_project") and pair.first != "block_04_project"]
    small = fold(build("mobilenet_v2"))
    clipped = find_pairs(small, clipped=True)
    assert not [pair for pair in find_pairs(small) if pair.tensor.endswith("relu6")]
    assert Pair("block_02_expand", "block_02_depthwise", "block_02_expand_relu6", is_clipped=True) in clipped


@pytest.mark.parametrize("activation", ["hard_swish", "swish", "gelu", "sigmoid", "relu6"])
def test_no_factor_passes_other_activations(activation: str) -> None:
    assert find_pairs(chain(activation)) == ()


def test_a_tensor_with_two_readers_is_left_alone() -> None:
    assert [pair.tensor for pair in find_pairs(chain("relu"))] == ["between"]
    assert find_pairs(chain("relu", second_reader=True)) == ()
    assert find_pairs(chain(None, second_reader=True)) == ()


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["weights", "activations"])
def test_the_function_stays_and_rounding_hurts_less(measure: Any) -> None:
    inputs = images(16)
    network = fold(build("mobilenet_v4_conv_small"))
    spoiled = unequal(network)
    expected = network.predict_on_batch(inputs)
    np.testing.assert_allclose(spoiled.predict_on_batch(inputs), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    mended = equalize(spoiled, inputs, EqualizationConfig(measure=measure))
    np.testing.assert_allclose(mended.predict_on_batch(inputs), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    before, hurt, after = (rounded_snr_db(each, inputs) for each in (network, spoiled, mended))
    assert hurt < before - 6
    assert after > hurt + 5
    if measure == "activations":  # which looks at what is rounded coarsely: the tensors
        assert after > before


def test_both_sides_become_equally_large() -> None:
    network = unequal(chain("relu"))
    config = EqualizationConfig(measure="weights", largest_factor=1e6)
    result = equalize(network, config=config)
    first, second = (result.get_layer(name).get_weights()[0] for name in ("first", "second"))
    np.testing.assert_allclose(np.abs(first).max(axis=0), np.abs(second).max(axis=1), rtol=1e-5)
    inputs = features(16, 8)
    network = unequal(chain("relu"))
    result = equalize(network, inputs, EqualizationConfig(largest_factor=1e6))
    tensor = keras.Model(result.inputs, result.get_layer("between").output).predict_on_batch(inputs)
    peaks, second = tensor.max(axis=0), result.get_layer("second").get_weights()[0]
    alive = peaks > 0
    np.testing.assert_allclose(peaks[alive], np.abs(second).max(axis=1)[alive], rtol=1e-5)


def test_a_depthwise_convolution_lets_all_scale_through() -> None:
    """Its steps are by channel, so what it reads can be made equal, and its own weights need not be."""
    inputs = images(16)
    spoiled = unequal(fold(build("mobilenet_v4_conv_small")))
    name = "block_04_expand_relu"

    def spread(network: Any) -> float:
        tensor = keras.Model(network.inputs, network.get_layer(name).output).predict_on_batch(inputs)
        peaks = tensor.reshape(-1, tensor.shape[-1]).max(axis=0)
        return float(peaks.max() / peaks[peaks > 0].min())

    assert spread(spoiled) > 20
    assert spread(equalize(spoiled, inputs, EqualizationConfig(largest_factor=1e6))) < 1.01


def test_behind_a_relu6_only_what_stays_below_six_takes_part() -> None:
    network, inputs = chain("relu6"), features(64, 8)
    kernel, bias = network.get_layer("first").get_weights()
    sizes = np.array([0.05] * 8 + [20.0] * 8, np.float32)
    network.get_layer("first").set_weights([kernel * sizes, bias + 0.1 * sizes])
    expected = network.predict_on_batch(inputs)
    assert equalize(network, inputs).get_layer("first").get_weights()[0] == pytest.approx(kernel * sizes)
    result = equalize(network, inputs, EqualizationConfig(relu6="unclipped"))
    changed = np.abs(result.get_layer("first").get_weights()[0] / (kernel * sizes)).max(axis=0)
    assert (changed[:8] > 1.5).all()
    assert changed[8:] == pytest.approx(1)
    tensor = keras.Model(result.inputs, result.get_layer("between").output).predict_on_batch(inputs)
    assert tensor[:, :8].max() <= 6 / 1.5 * 1.0001
    np.testing.assert_allclose(result.predict_on_batch(inputs), expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_a_dead_channel_and_the_limit() -> None:
    network = unequal(chain("relu"), seed=3)
    kernel, bias = network.get_layer("first").get_weights()
    kernel[:, 0] = bias[0] = 0
    network.get_layer("first").set_weights([kernel, bias])
    result = equalize(network, config=EqualizationConfig(measure="weights", largest_factor=1.5))
    found = result.get_layer("first").get_weights()[0]
    assert (found[:, 0] == 0).all()
    factors = weight_steps(kernel, (0,)) / weight_steps(found, (0,))
    assert factors.max() == pytest.approx(1.5)
    assert factors.min() == pytest.approx(1 / 1.5)


def test_images_are_asked_for() -> None:
    with pytest.raises(UnsupportedModelError, match="needs calibration images"):
        equalize(chain("relu"))

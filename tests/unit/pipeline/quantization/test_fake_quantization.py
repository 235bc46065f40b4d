"""Where a network is rounded, and with which gradients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.errors import UnsupportedModelError
from pipeline.quantization.arithmetic import channel_axes, round_values, round_weights
from pipeline.quantization.config import IntegerArithmetic
from pipeline.quantization.fake_quantization import (
    RangeRounding,
    activations,
    fake_quantized,
    observed_ranges,
    quantization_points,
    read_back,
)
from pipeline.quantization.folded import fold
from pipeline.quantization.graph import linear_layers

sys.path.insert(0, str(Path(__file__).parent))

from small_networks import build, images, logits_snr_db


def small_network() -> Any:
    """A convolution, a depthwise one, a residual addition, a gate and two kinds of activations."""
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="rescaling")(image)
    x = shortcut = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = keras.layers.ReLU(6.0, name="stem_relu6")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.layers.Activation("hard_swish", name="depthwise_hard_swish")(x)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name="gate_pool")(x)
    gate = keras.layers.Conv2D(4, 1, name="gate")(gate)
    gate = keras.layers.Activation("sigmoid", name="gate_sigmoid")(gate)
    x = keras.layers.Multiply(name="gated")([x, gate])
    x = keras.layers.Add(name="add")([x, shortcut])
    x = keras.layers.ReLU(name="add_relu")(x)
    x = keras.layers.Flatten(name="flatten")(keras.layers.AveragePooling2D(8, name="pool")(x))
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x))


def test_points_are_where_targets_round() -> None:
    network = small_network()
    assert linear_layers(network) == ("stem", "depthwise", "gate", "logits")
    # The stem has two readers, so its ReLU6 is no part of it; the addition's ReLU is.
    assert set(quantization_points(network)) == {
        *("stem", "stem_relu6", "depthwise", "depthwise_hard_swish", "gate_pool", "gate", "gate_sigmoid"),
        *("gated", "add_relu", "pool", "logits"),
    }
    block = [name for name in quantization_points(fold(build("mobilenet_v2"))) if name.startswith("block_02")]
    assert block == ["block_02_expand_relu6", "block_02_depthwise_relu6", "block_02_project", "block_02_add"]


def test_each_point_is_rounded_in_its_range() -> None:
    network, inputs = small_network(), images(8, size=8)
    ranges = observed_ranges(network, inputs)
    quantized = fake_quantized(network, ranges, IntegerArithmetic(activation_bits=4))
    for batch in activations(quantized, inputs, [f"{name}_range" for name in ranges]):
        for name, values in batch.items():
            limits = ranges[name.removesuffix("_range")]
            np.testing.assert_allclose(round_values(values, limits, 16), values, rtol=1e-4, atol=1e-5)
            assert 1 < len(np.unique(values.round(4))) <= 16


def test_a_layer_is_what_integers_give() -> None:
    """One layer by hand: rounded weights, float bias, ReLU6, rounded result."""
    network, inputs = small_network(), images(8, size=8)
    limits = (0.0, 2.0)
    quantized = fake_quantized(network, {"stem_relu6": limits})
    layer = network.get_layer("stem")
    kernel, bias = layer.get_weights()
    layer.set_weights([round_weights(kernel, channel_axes(kernel, depthwise=False)), bias])
    [expected] = activations(network, inputs, ["stem_relu6"])
    [found] = activations(quantized, inputs, ["stem_relu6_range"])
    difference = np.abs(found["stem_relu6_range"] - round_values(expected["stem_relu6"], limits))
    assert difference.max() <= 1.01 * 2 / 255
    assert (difference > 1e-5).mean() < 0.001, "beyond values that lie halfway between two levels"


@pytest.mark.parametrize(("bits", "at_least"), [(8, 25.0), (16, 70.0)])
def test_more_bits_are_closer_to_float(bits: int, at_least: float) -> None:
    network, inputs = small_network(), images(16, size=8)
    arithmetic = IntegerArithmetic(weight_bits=bits, activation_bits=bits)
    quantized = fake_quantized(network, observed_ranges(network, inputs), arithmetic)
    assert at_least < logits_snr_db(network, quantized, inputs) < at_least + 45


def test_gates_are_rounded_where_asked_for() -> None:
    network, inputs = small_network(), images(8, size=8)
    ranges = observed_ranges(network, inputs)
    found = {}
    for is_rounded in (True, False):
        arithmetic = IntegerArithmetic(activation_bits=3, round_gates=is_rounded)
        quantized = fake_quantized(network, {"depthwise_hard_swish": ranges["depthwise_hard_swish"]}, arithmetic)
        [batch] = activations(quantized, inputs, ["depthwise_hard_swish"])
        found[is_rounded] = batch["depthwise_hard_swish"]
    assert np.abs(found[True] - found[False]).max() > 0.01


def test_float_layers_keep_their_weights() -> None:
    network, inputs = small_network(), images(4, size=8)
    arithmetic = IntegerArithmetic(weight_bits=3, float_layers=linear_layers(network))
    assert logits_snr_db(network, fake_quantized(network, {}, arithmetic), inputs) > 100
    assert logits_snr_db(network, fake_quantized(network, {}, IntegerArithmetic(weight_bits=3)), inputs) < 30


def test_what_is_read_back_rounds_to_itself() -> None:
    network, inputs = small_network(), images(8, size=8)
    ranges = observed_ranges(network, inputs)
    quantized = fake_quantized(network, ranges, learned_ranges=True)
    result, found = read_back(quantized, network)
    assert list(found) == list(ranges)
    for name, (low, high) in found.items():
        wanted = (min(ranges[name][0], 0), max(ranges[name][1], 0))
        assert (low, high) == pytest.approx(wanted, abs=0.51 * (high - low) / 255)
    for name in linear_layers(network):
        (kernel, _), (ours, _) = (each.get_layer(name).get_weights() for each in (result, network))
        axes = channel_axes(kernel, depthwise=name == "depthwise")
        np.testing.assert_allclose(round_weights(kernel, axes), kernel, rtol=1e-6)
        assert np.abs(kernel - ours).max() > 0
    again = fake_quantized(result, found)
    assert logits_snr_db(quantized, again, inputs) > 50


def gradients(values: Any, limits: Any, levels: int) -> dict[str, float]:
    """The gradients of the sum of the rounded values, from one step of Keras' own training."""
    inputs = keras.Input(values.shape[1:])
    layer = RangeRounding(limits, levels, learned=True, name="rounding")
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, found: keras.ops.sum(found, axis=-1) * len(values))
    before = [float(np.asarray(weight)) for weight in model.get_weights()]
    model.train_on_batch(values, values)
    after = [float(np.asarray(weight)) for weight in model.get_weights()]
    return {weight.name: one - other for weight, one, other in zip(model.weights, before, after, strict=True)}


def test_gradients_are_those_of_the_learned_step_size_papers() -> None:
    limits, levels = (-1.0, 2.0), 16
    step, scale = 0.2, 1 / np.sqrt(3 * 15)
    inside = np.array([[0.27, -0.51, 1.13]], np.float32)
    rounding = (np.rint(inside / step) - inside / step).sum() * step
    found = gradients(inside, limits, levels)
    assert found["step_factor"] == pytest.approx(rounding * scale, abs=1e-5)
    assert found["low_shift"] == pytest.approx(0, abs=1e-5)
    # Above the range, the highest value is the offset and 15 steps.
    found = gradients(np.array([[5.0, 6.0, 0.2]], np.float32), limits, levels)
    assert found["step_factor"] == pytest.approx(2 * 15 * step * scale, rel=1e-4)
    assert found["low_shift"] == pytest.approx(2 * 3.0 * scale, rel=1e-4)
    # Below it, the lowest value is the offset alone.
    found = gradients(np.array([[-5.0, -6.0, 0.2]], np.float32), limits, levels)
    assert found["step_factor"] == pytest.approx(0, abs=1e-5)
    assert found["low_shift"] == pytest.approx(2 * 3.0 * scale, rel=1e-4)


def test_values_beyond_the_range_get_no_gradient_and_those_within_all_of_it() -> None:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, use_bias=False, name="dense")(inputs)
    model = keras.Model(inputs, RangeRounding((0.0, 1.0), 256, learned=False, name="rounding")(x))
    model.get_layer("dense").set_weights([np.diag([0.5, 0.9, 2.0, -1.0]).astype(np.float32)])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, found: keras.ops.sum(found, axis=-1))
    model.train_on_batch(np.ones((1, 4), np.float32), np.ones((1, 4), np.float32))
    moved = np.diag([0.5, 0.9, 2.0, -1.0]) - model.get_layer("dense").get_weights()[0]
    np.testing.assert_allclose(moved[0], [1, 1, 0, 0], atol=1e-6)


def test_a_range_without_negative_values_keeps_its_end_at_zero() -> None:
    layer = RangeRounding((0.0, 6.0), 256, learned=True, name="rounding")
    assert [weight.name for weight in layer.trainable_weights] == ["step_factor"]
    assert layer.limits() == pytest.approx((0.0, 6.0))


def test_what_does_not_fit_is_refused() -> None:
    network = small_network()
    with pytest.raises(UnsupportedModelError, match="has no layer nowhere"):
        fake_quantized(network, {"nowhere": (0.0, 1.0)})
    with pytest.raises(UnsupportedModelError, match="still has the batch normalization stem_conv_bn"):
        fake_quantized(build("mobilenet_v1"), {})

"""Bias correction and learned rounding: less error, and weights that every target rounds to themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.quantization.arithmetic import channel_axes, round_weights, whole_weights
from pipeline.quantization.bias_correction import channel_means, correct_biases
from pipeline.quantization.config import IntegerArithmetic, RoundingConfig
from pipeline.quantization.fake_quantization import activations, fake_quantized, observed_ranges
from pipeline.quantization.graph import linear_layers
from pipeline.quantization.layerwise import LayerRun
from pipeline.quantization.rounding import layer_moments, learn_rounding, rounded_kernel

sys.path.insert(0, str(Path(__file__).parent))

from small_networks import images, logits_snr_db


def network_of_all_kinds() -> Any:
    """Convolutions with strides and odd sizes, depthwise ones with a multiplier, a dense layer."""
    keras.utils.set_random_seed(1)
    image = keras.Input((15, 15, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="rescaling")(image)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2, padding="same", name="depthwise")(x)
    x = shortcut = keras.layers.ReLU(name="depthwise_relu")(x)
    x = keras.layers.Conv2D(16, (3, 2), padding="valid", use_bias=False, name="valid")(x)
    x = keras.layers.Conv2D(16, 1, name="pointwise")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    y = keras.layers.GlobalAveragePooling2D(name="shortcut_pool")(shortcut)
    return keras.Model(image, keras.layers.Dense(5, name="logits")(keras.layers.Add(name="add")([x, y])))


def test_a_run_by_layers_gives_what_the_network_gives() -> None:
    network, inputs = network_of_all_kinds(), images(10, size=16)[:, :15, :15]
    run = LayerRun(network, inputs, batch_size=4)
    for name in linear_layers(network):
        expected = np.concatenate([batch[name] for batch in activations(network, inputs, [name])])
        found = np.concatenate(list(run.outputs_of(name)))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="stem has run already"):
        run.advance_to("stem")


@pytest.mark.parametrize("name", ["stem", "depthwise", "valid", "pointwise", "logits"])
def test_moments_say_what_a_layer_of_other_weights_gives(name: str) -> None:
    network, inputs = network_of_all_kinds(), images(10, size=16)[:, :15, :15]
    ranges = observed_ranges(network, inputs)
    quantized = fake_quantized(network, ranges, IntegerArithmetic(weight_bits=4))
    layer = network.get_layer(name)
    moments = layer_moments(layer, LayerRun(network, inputs), LayerRun(quantized, inputs))
    _, nearest_error, _ = rounded_kernel(layer, moments, RoundingConfig(steps=1), bits=4)
    [expected], [found] = (list(activations(each, inputs, [name])) for each in (network, quantized))
    assert nearest_error == pytest.approx(np.square(expected[name] - found[name]).mean(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_learned_rounding_beats_the_nearest_and_rounds_to_itself(bits: int) -> None:
    network, inputs = network_of_all_kinds(), images(24, size=16)[:, :15, :15]
    fresh = images(64, seed=9, size=16)[:, :15, :15]
    # Fine levels of the activations and nothing cut off, so that the weights' rounding is what is seen.
    arithmetic = IntegerArithmetic(weight_bits=bits, activation_bits=16)
    ranges = observed_ranges(network, np.concatenate([inputs, fresh]))
    events: list[dict[str, Any]] = []
    result = learn_rounding(network, inputs, ranges, arithmetic=arithmetic, tell=events.append)
    assert [event["message"] for event in events] == [f"rounding: {name}" for name in linear_layers(network)]
    assert all(event["error"] <= event["nearest_error"] for event in events)
    # The first layer takes what is exact, so its error is that of its weights alone.
    assert events[0]["error"] < 0.7 * events[0]["nearest_error"]
    moved = 0
    for name in linear_layers(network):
        axes = channel_axes(network.get_layer(name).get_weights()[0], depthwise=name == "depthwise")
        ours, theirs = (each.get_layer(name).get_weights()[0] for each in (network, result))
        wholes, before = whole_weights(theirs, axes, bits), whole_weights(ours, axes, bits)
        np.testing.assert_allclose(round_weights(theirs, axes, bits), theirs, rtol=2e-6, atol=1e-7)
        largest = np.abs(before) == 2 ** (bits - 1) - 1
        np.testing.assert_array_equal(wholes[largest], before[largest])
        assert (
            np.abs(wholes - ours / (np.abs(ours).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1))).max() < 1.001
        )
        moved += (wholes != before).sum()
    assert moved > 20
    nearest, learned = (fake_quantized(each, ranges, arithmetic) for each in (network, result))
    gains = {name: logits_snr_db(network, each, fresh) for name, each in (("nearest", nearest), ("learned", learned))}
    assert gains["learned"] > gains["nearest"] + 2


def test_rounding_twice_gives_the_same() -> None:
    network, inputs = network_of_all_kinds(), images(8, size=16)[:, :15, :15]
    ranges = observed_ranges(network, inputs)
    one, other = (learn_rounding(network, inputs, ranges, RoundingConfig(steps=50)) for _ in range(2))
    for first, second in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_float_layers_are_left_alone() -> None:
    network, inputs = network_of_all_kinds(), images(8, size=16)[:, :15, :15]
    arithmetic = IntegerArithmetic(float_layers=("stem",))
    result = learn_rounding(network, inputs, {}, RoundingConfig(steps=5), arithmetic=arithmetic)
    same = {
        name: np.array_equal(*(each.get_layer(name).get_weights()[0] for each in (network, result)))
        for name in linear_layers(network)
    }
    assert same == {"stem": True, "depthwise": False, "valid": False, "pointwise": False, "logits": False}


def mean_error(network: Any, quantized: Any, inputs: Any, name: str) -> float:
    """Mean magnitude of the difference of a layer's channel means."""
    found = (channel_means(b[name] for b in activations(each, inputs, [name])) for each in (network, quantized))
    one, other = found
    return float(np.abs(one - other).mean())


def test_corrected_biases_give_the_float_means() -> None:
    network, inputs = network_of_all_kinds(), images(48, size=16)[:, :15, :15]
    arithmetic, ranges = IntegerArithmetic(weight_bits=4), observed_ranges(network, inputs)
    events: list[Any] = []
    corrected = correct_biases(network, inputs, ranges, arithmetic, tell=events.append)
    assert len(events) == len(linear_layers(network)) - 1, "one has no bias"
    before, after = (fake_quantized(each, ranges, arithmetic) for each in (network, corrected))
    for name in ("pointwise", "logits"):
        assert mean_error(network, after, inputs, name) < 0.02 * mean_error(network, before, inputs, name)
    fresh = images(48, seed=7, size=16)[:, :15, :15]
    snr = [logits_snr_db(network, each, fresh) for each in (before, after)]
    assert snr[1] > snr[0] + 3

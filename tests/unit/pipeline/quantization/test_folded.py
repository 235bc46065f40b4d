"""A folded network gives the same numbers, and so does what is unfolded from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import models
from pipeline.errors import UnsupportedModelError
from pipeline.network import ModelConfig, load_network, save_network
from pipeline.quantization.folded import fold, unfold
from pipeline.quantization.graph import linear_layers

sys.path.insert(0, str(Path(__file__).parent))

from small_networks import FAMILIES, build, features, images, randomize

QUICK = ("mobilenet_v1", "mobilenet_v3_small", "mobilenet_v4_hybrid_medium", "resnet8")


def norms(network: Any) -> list[str]:
    return [layer.name for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


def change_weights(network: Any) -> None:
    """As a remedy would: all that it may change."""
    rng = np.random.default_rng(5)
    for name in linear_layers(network):
        layer = network.get_layer(name)
        layer.set_weights([weight * rng.uniform(0.9, 1.1, weight.shape) for weight in layer.get_weights()])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_folding_and_unfolding_keep_the_function(name: str) -> None:
    network = build(name)
    before = network.get_weights()
    samples = images(4)
    expected = network.predict_on_batch(samples)
    tolerance = 1e-5 * np.ptp(expected)
    folded = fold(network)
    assert norms(network)
    assert not norms(folded)
    assert not [layer.name for layer in folded.layers if isinstance(layer, keras.layers.Dropout)]
    np.testing.assert_allclose(folded.predict_on_batch(samples), expected, rtol=0, atol=tolerance)
    change_weights(folded)
    changed = folded.predict_on_batch(samples)
    assert np.abs(changed - expected).max() > 100 * tolerance
    restored = unfold(folded, network)
    assert [layer.name for layer in restored.layers] == [layer.name for layer in network.layers]
    np.testing.assert_allclose(restored.predict_on_batch(samples), changed, rtol=0, atol=10 * tolerance)
    for kept, weight in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, weight)


@pytest.mark.parametrize("name", ["ds_cnn", "dense_autoencoder"])
def test_networks_on_features(name: str) -> None:
    network = models.build(name)
    samples = features(16, *network.inputs[0].shape[1:])
    randomize(network, samples, np.random.default_rng(0))
    expected = network.predict_on_batch(samples)
    folded = fold(network)
    assert not norms(folded)
    np.testing.assert_allclose(folded.predict_on_batch(samples), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    restored = unfold(folded, network).predict_on_batch(samples)
    np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_what_is_unfolded_is_saved_as_any_network(tmp_path: Path) -> None:
    config = ModelConfig(name="mobilenet_v1", width=0.25)
    network = build("mobilenet_v1")
    folded = fold(network)
    change_weights(folded)
    save_network(unfold(folded, network), tmp_path, config=config, classes=list("0123456789"))
    found, expected = (each.predict_on_batch(images(4)) for each in (load_network(tmp_path), folded))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_a_normalization_that_is_not_alone_stays_a_layer() -> None:
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    y = keras.layers.BatchNormalization(name="conv_bn")(x)
    x = keras.layers.Add(name="add")([x, y])
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(x))
    samples = features(8, 8, 8, 3)
    randomize(network, samples, np.random.default_rng(0))
    folded = fold(network)
    assert isinstance(folded.get_layer("conv_bn"), keras.layers.DepthwiseConv2D)
    expected = network.predict_on_batch(samples)
    np.testing.assert_allclose(folded.predict_on_batch(samples), expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_a_network_of_another_kind_is_refused() -> None:
    folded = fold(build("mobilenet_v1"))
    with pytest.raises(UnsupportedModelError, match="which resnet8 has no place for"):
        unfold(folded, build("resnet8"))


def test_a_layer_that_is_used_twice_is_refused() -> None:
    image = keras.Input((8,), name="image")
    dense = keras.layers.Dense(8, name="dense")
    network = keras.Model(image, dense(dense(image)))
    with pytest.raises(UnsupportedModelError, match="whose layers are used once each"):
        linear_layers(network)

"""What is folded before export, and what is not; `test_mobilenet_v4.py` folds a whole network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import models
from models.folding import fold_for_inference


def randomized(network: Any) -> Any:
    rng = np.random.default_rng(0)
    for weight in network.weights:
        low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-1.0, 1.0)
        weight.assign(rng.uniform(low, high, weight.shape))
    return network


def test_normalizations_of_dense_layers_are_folded() -> None:
    network = randomized(models.build("dense_autoencoder", input_shape=(20,)))
    folded = fold_for_inference(network)
    assert len(folded.layers) == len(network.layers) - 9
    assert not [layer.name for layer in folded.layers if layer.name.endswith("_bn")]
    features = np.random.default_rng(1).normal(size=(5, 20)).astype(np.float32)
    expected = network.predict_on_batch(features)
    np.testing.assert_allclose(folded.predict_on_batch(features), expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_the_network_itself_stays_as_it_is() -> None:
    network = randomized(models.build("dense_autoencoder", input_shape=(20,)))
    before = [weight.copy() for weight in network.get_weights()]
    fold_for_inference(network)
    for kept, weight in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, weight)


def test_a_dense_layer_that_others_use_too_is_left_alone() -> None:
    import keras

    features = keras.Input((4,), name="features")
    x = keras.layers.Dense(4, name="dense")(features)
    network = keras.Model(features, keras.layers.Add()([x, keras.layers.BatchNormalization()(x)]))
    assert fold_for_inference(network) is network


def test_a_dense_layer_with_an_activation_is_left_alone() -> None:
    import keras

    features = keras.Input((4,), name="features")
    x = keras.layers.Dense(4, activation="relu", name="dense")(features)
    network = keras.Model(features, keras.layers.BatchNormalization()(x))
    assert fold_for_inference(network) is network


def test_a_scale_after_something_nonlinear_is_refused() -> None:
    import keras

    image = keras.Input((4, 4, 3), name="image")
    x = keras.layers.ReLU(name="relu")(image)
    network = keras.Model(image, keras.layers.DepthwiseConv2D(1, use_bias=False, name="x_layer_scale")(x))
    with pytest.raises(ValueError, match="'x_layer_scale' follows 'relu', a ReLU"):
        fold_for_inference(network)

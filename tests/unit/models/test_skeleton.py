"""A network without weights counts like one with them, and leaves nothing behind."""

from __future__ import annotations

import pytest

import models


def test_it_counts_like_the_network_itself() -> None:
    import keras

    def build() -> keras.Model:
        return models.build("mobilenet_v2", input_shape=(32, 32, 3), num_classes=4, width=0.35)

    assert models.count_cost(models.without_weights(build)) == models.count_cost(build())


def test_its_weights_have_no_values_then_or_later() -> None:
    import keras

    network = models.without_weights(lambda: models.build("mobilenet_v2", input_shape=(32, 32, 3), num_classes=4))
    # Keras initializes what earlier scopes of this thread have put off when one ends.
    with keras.StatelessScope():
        pass
    assert len(network.weights) > 200
    assert all(weight._value is None for weight in network.weights)


def test_errors_pass_through() -> None:
    with pytest.raises(ValueError, match="num_classes is 1"):
        models.without_weights(lambda: models.build("mobilenet_v2", num_classes=1))

"""The schedule, the optimizer, what weight decay leaves out, and the loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pipeline.stages.train import make_optimizer
from pipeline.training.config import TrainConfig


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    schedule: Any = make_optimizer(config, steps_per_epoch=steps_per_epoch)._learning_rate
    return [float(schedule(step)) for step in range(config.epochs * steps_per_epoch + 1)]


def test_schedule_with_warm_up() -> None:
    found = rates(TrainConfig(epochs=5, warmup_epochs=1, learning_rate=0.01), 10)
    assert found[0] == 0
    assert found[5] == pytest.approx(0.005)
    assert found[10] == pytest.approx(0.01)
    assert found[30] == pytest.approx(0.005)
    assert found[-1] == pytest.approx(0, abs=1e-8)
    assert found[:11] == sorted(found[:11])
    assert found[10:] == sorted(found[10:], reverse=True)
    expected = 0.01 * (1 + np.cos(np.pi * np.arange(41) / 40)) / 2
    np.testing.assert_allclose(found[10:], expected, atol=1e-8)


def test_schedule_without_warm_up() -> None:
    found = rates(TrainConfig(epochs=2, warmup_epochs=0, learning_rate=0.01), 10)
    assert found[0] == pytest.approx(0.01)
    assert found[10] == pytest.approx(0.005)
    assert found[-1] == pytest.approx(0, abs=1e-8)


def test_fractions_of_an_epoch() -> None:
    found = rates(TrainConfig(epochs=2, warmup_epochs=0.5, learning_rate=0.01), 10)
    assert found[5] == pytest.approx(0.01) == max(found)


@dataclasses.dataclass(frozen=True)
class Choice:
    id: str
    config: TrainConfig
    attributes: dict[str, Any]


@pytest.mark.parametrize(
    "choice",
    [
        Choice("adamw", TrainConfig(weight_decay=0.1), {"weight_decay": 0.1}),
        Choice("no decay", TrainConfig(weight_decay=0), {"weight_decay": 0}),
        Choice("sgd", TrainConfig(optimizer="sgd"), {"momentum": 0.9, "nesterov": True}),
        Choice("sgd, 0.5", TrainConfig(optimizer="sgd", momentum=0.5), {"momentum": 0.5, "nesterov": True}),
        Choice("sgd, plain", TrainConfig(optimizer="sgd", momentum=0), {"momentum": 0, "nesterov": False}),
    ],
    ids=lambda choice: choice.id,
)
def test_optimizer(choice: Choice) -> None:
    optimizer = make_optimizer(choice.config, steps_per_epoch=10)
    assert type(optimizer).__name__.lower() == choice.config.optimizer
    for name, value in choice.attributes.items():
        assert getattr(optimizer, name) == value


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_weight_decay_leaves_out_norms_and_biases(optimizer_name: str) -> None:
    """With gradients of zero, what still changes is what decays."""
    import keras

    network = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.DepthwiseConv2D(2, use_bias=False, name="depthwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="logits"),
        ]
    )
    for variable in network.trainable_variables:
        variable.assign(np.ones(variable.shape))
    config = TrainConfig(epochs=1, warmup_epochs=0, learning_rate=0.1, weight_decay=0.5, optimizer=optimizer_name)
    optimizer = make_optimizer(config, steps_per_epoch=10)
    zeros = [keras.ops.zeros(variable.shape) for variable in network.trainable_variables]
    optimizer.apply(zeros, network.trainable_variables)
    changed = {
        variable.path
        for variable in network.trainable_variables
        if not np.allclose(keras.ops.convert_to_numpy(variable.value), 1)
    }
    assert {path.rpartition("/")[2] for path in changed} == {"kernel"}
    assert len(changed) == 3
    kernel = keras.ops.convert_to_numpy(network.get_layer("conv").kernel)
    np.testing.assert_allclose(kernel, 1 - 0.1 * 0.5, rtol=1e-5)


def test_real_networks_have_no_other_kinds_of_variables() -> None:
    """The names that are left out of weight decay are matched by text, so they must stay what they are."""
    import models

    network = models.build("mobilenet_v2", input_shape=(32, 32, 3), num_classes=3, width=0.35)
    names = {variable.name for variable in network.trainable_variables}
    assert names == {"kernel", "gamma", "beta", "bias"}

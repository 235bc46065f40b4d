"""Optimizers, schedules, what weight decay leaves out, and the sums of gradients."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.training.config import TrainConfig
from pipeline.training.optimizers import Schedule, l2_factor, l2_penalty, make_optimizer
from pipeline.training.schedules import learning_rate


def set_rates(config: TrainConfig, steps_per_epoch: int, steps: int, *, first_step: int = 0) -> list[float]:
    """The learning rates that an optimizer is given in its steps."""
    optimizer = make_optimizer(config)
    schedule = Schedule(config, steps_per_epoch=steps_per_epoch, first_step=first_step)
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    found = []
    for _ in range(steps):
        schedule(optimizer)
        found.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
        optimizer.apply([keras.ops.zeros((1,))], [weight])
    return found


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    """The learning rates of a training, which must be those that are reported."""
    found = set_rates(config, steps_per_epoch, config.epochs * steps_per_epoch + 1)
    sums = config.accumulate_steps
    reported = [
        float(learning_rate(step // sums, config, updates_per_epoch=steps_per_epoch / sums))
        for step in range(len(found))
    ]
    np.testing.assert_allclose(found, reported, rtol=1e-5, atol=1e-8)
    return found


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


def test_the_exponential_falls_in_steps_from_the_start_of_the_training() -> None:
    config = TrainConfig(
        epochs=8, warmup_epochs=3, learning_rate=0.1, schedule="exponential", decay_rate=0.5, decay_epochs=2.4
    )
    found = rates(config, 10)
    assert found[:30] == pytest.approx([0.1 * step / 30 for step in range(30)])
    assert found[30:48] == pytest.approx([0.05] * 18), "one decay has passed in the warm-up"
    assert found[48:72] == pytest.approx([0.025] * 24)
    assert found[72] == pytest.approx(0.0125)


def test_a_constant_learning_rate() -> None:
    found = rates(TrainConfig(epochs=2, warmup_epochs=1, learning_rate=0.1, schedule="constant"), 4)
    assert found == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_the_schedule_counts_updates() -> None:
    config = TrainConfig(epochs=4, warmup_epochs=1, learning_rate=0.1, accumulate_steps=4)
    summed = rates(config, 16)
    plain = rates(config.model_copy(update={"accumulate_steps": 1}), 4)
    assert summed[::4] == pytest.approx(plain)
    assert summed[3] == summed[0], "steps that only sum up have the rate of their update"


def test_an_optimizer_that_starts_later_goes_on_with_the_schedule() -> None:
    config = TrainConfig(epochs=4, warmup_epochs=1, learning_rate=0.1)
    whole = rates(config, 5)
    assert set_rates(config, 5, 10, first_step=7) == pytest.approx(whole[7:17])


@dataclasses.dataclass(frozen=True)
class Choice:
    id: str
    config: TrainConfig
    attributes: dict[str, Any]


@pytest.mark.parametrize(
    "choice",
    [
        Choice("adamw", TrainConfig(weight_decay=0.1), {"weight_decay": 0.1, "epsilon": 1e-7, "beta_1": 0.9}),
        Choice("adamw, mnv4", TrainConfig(beta_1=0.6, epsilon=1e-6), {"beta_1": 0.6, "epsilon": 1e-6}),
        Choice("sgd", TrainConfig(optimizer="sgd"), {"momentum": 0.9, "nesterov": True, "weight_decay": None}),
        Choice("sgd, 0.5", TrainConfig(optimizer="sgd", momentum=0.5), {"momentum": 0.5, "nesterov": True}),
        Choice("sgd, plain", TrainConfig(optimizer="sgd", momentum=0), {"momentum": 0, "nesterov": False}),
        Choice("rmsprop", TrainConfig(optimizer="rmsprop"), {"momentum": 0.9, "rho": 0.9, "epsilon": 1e-3}),
        Choice("clipped", TrainConfig(clip_norm=2.0), {"global_clipnorm": 2.0}),
        Choice("summed", TrainConfig(accumulate_steps=3), {"gradient_accumulation_steps": 3}),
    ],
    ids=lambda choice: choice.id,
)
def test_optimizer(choice: Choice) -> None:
    optimizer = make_optimizer(choice.config)
    assert type(optimizer).__name__.lower() == choice.config.optimizer
    for name, value in choice.attributes.items():
        assert getattr(optimizer, name) == value


def test_rmsprop_has_epsilon_inside_the_root_and_momentum_after_the_division() -> None:
    """TensorFlow's form (ApplyRMSProp): ms = rho ms + (1 - rho) g^2; mom = m mom + lr g / sqrt(ms + eps)."""
    config = TrainConfig(
        optimizer="rmsprop", learning_rate=0.1, epochs=1, warmup_epochs=0, schedule="constant", weight_decay=0
    )
    weight = keras.Variable([1.0, -2.0])
    optimizer = make_optimizer(config)
    expected, square, momentum = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for gradient in ([0.5, 1e-3], [-0.25, 2e-3], [1.0, 0.0]):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        square = 0.9 * square + 0.1 * np.square(gradient)
        momentum = 0.9 * momentum + 0.1 * np.array(gradient) / np.sqrt(square + 1e-3)
        expected = expected - momentum
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weight.value), expected, rtol=1e-5)


def test_gradients_of_several_steps_are_averaged_into_one_update() -> None:
    config = TrainConfig(
        optimizer="sgd", momentum=0, learning_rate=0.1, epochs=4, warmup_epochs=0, accumulate_steps=2, weight_decay=0
    )
    weight = keras.Variable([1.0])
    optimizer, schedule = make_optimizer(config), Schedule(config, steps_per_epoch=2)
    values = []
    for gradient in (1.0, 3.0, 5.0, 5.0):
        schedule(optimizer)
        optimizer.apply([keras.ops.convert_to_tensor([gradient])], [weight])
        values.append(float(keras.ops.convert_to_numpy(weight.value)[0]))
    second = 0.1 * (1 + math.cos(math.pi / 4)) / 2
    assert values == pytest.approx([1.0, 1.0 - 0.1 * 2, 0.8, 0.8 - second * 5])


def small_network() -> keras.Model:
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
    return network


def values_of(variable: keras.Variable) -> npt.NDArray[np.float32]:
    return np.asarray(keras.ops.convert_to_numpy(variable.value))


def test_decoupled_weight_decay_leaves_out_norms_and_biases() -> None:
    """With gradients of zero, what still changes is what decays."""
    network = small_network()
    config = TrainConfig(epochs=1, warmup_epochs=0, learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config)
    zeros = [keras.ops.zeros(variable.shape) for variable in network.trainable_variables]
    optimizer.apply(zeros, network.trainable_variables)
    changed = {each.path for each in network.trainable_variables if not np.allclose(values_of(each), 1)}
    assert {path.rpartition("/")[2] for path in changed} == {"kernel"}
    assert len(changed) == 3
    np.testing.assert_allclose(values_of(network.get_layer("conv").kernel), 1 - 0.1 * 0.5, rtol=1e-5)
    assert l2_factor(config) == 0


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_the_l2_penalty_has_the_same_exceptions(optimizer: Any) -> None:
    network = small_network()
    config = TrainConfig(optimizer=optimizer, weight_decay=0.5)
    kernels = sum(math.prod(each.shape) for each in network.trainable_variables if each.name == "kernel")
    penalty = l2_penalty(network.trainable_variables, l2_factor(config))
    assert float(penalty) == pytest.approx(0.5 / 2 * kernels)


def test_real_networks_have_no_other_kinds_of_variables() -> None:
    """The names that are left out of weight decay are matched by text, so they must stay what they are."""
    import models

    network = models.build("mobilenet_v2", input_shape=(32, 32, 3), num_classes=3, width=0.35)
    names = {variable.name for variable in network.trainable_variables}
    assert names == {"kernel", "gamma", "beta", "bias"}

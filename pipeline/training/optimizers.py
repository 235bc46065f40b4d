"""Optimizers of a training. Loads Keras: it is imported where a training runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from pipeline.training.config import TrainConfig
from pipeline.training.schedules import learning_rate

NOT_DECAYED = ("bias", "gamma", "beta")
"""Variables that weight decay leaves out, by parts of their names: biases and batch-norm parameters."""


class Schedule:
    """Puts the learning rate of the next update into an optimizer.

    It is called once in a step. A schedule that an optimizer is given is worked out for each weight that decays, 52
    times in a step of MobileNetV2.

    Args:
        config: Of the training.
        steps_per_epoch: Steps an epoch.
        first_step: Steps of the training before the optimizer's first.
    """

    def __init__(self, config: TrainConfig, *, steps_per_epoch: int, first_step: int = 0) -> None:
        self._config = config
        self._updates_per_epoch = steps_per_epoch / config.accumulate_steps
        self._first_update = first_step // config.accumulate_steps

    def __call__(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Sets the rate, by the updates that the optimizer has made."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        update = keras.ops.cast(inner.iterations, "float32") + float(self._first_update)
        rate = learning_rate(update, self._config, updates_per_epoch=self._updates_per_epoch, ops=keras.ops)
        inner.learning_rate = keras.ops.cast(rate, "float32")


def make_optimizer(config: TrainConfig, *, scale_loss: bool = False) -> keras.optimizers.Optimizer:
    """Returns the optimizer, whose learning rate a `Schedule` sets.

    - `adamw` decays weights beside the gradient, times the learning rate (Loshchilov and Hutter 2019).
    - `sgd` has Nesterov momentum, unless momentum is 0.
    - `rmsprop` divides by sqrt(mean square + epsilon) and gathers momentum after that division, as TensorFlow's
      operation does that EfficientNet was trained with (arXiv:1905.11946, section 5); PyTorch's adds epsilon to the
      root instead.

    Keras' own `weight_decay` of the last two is scaled by the learning rate and passes momentum by, which is no L2
    penalty, so `l2_penalty` belongs into their loss instead.

    Args:
        config: Of the training.
        scale_loss: Whether the loss is scaled, and steps with infinite gradients are left out, as float16 needs.
    """
    shared: dict[str, Any] = {"learning_rate": config.peak_learning_rate()}
    if config.clip_norm is not None:
        shared["global_clipnorm"] = config.clip_norm
    if config.accumulate_steps > 1:
        shared["gradient_accumulation_steps"] = config.accumulate_steps
    momentum = 0.9 if config.momentum is None else config.momentum
    optimizer: keras.optimizers.Optimizer
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(
            beta_1=config.beta_1,
            beta_2=config.beta_2,
            epsilon=1e-7 if config.epsilon is None else config.epsilon,
            weight_decay=config.weight_decay,
            **shared,
        )
        optimizer.exclude_from_weight_decay(var_names=list(NOT_DECAYED))
    elif config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=momentum, nesterov=momentum > 0, **shared)
    else:
        epsilon = 1e-3 if config.epsilon is None else config.epsilon
        optimizer = keras.optimizers.RMSprop(rho=config.rho, momentum=momentum, epsilon=epsilon, **shared)
    return keras.optimizers.LossScaleOptimizer(optimizer) if scale_loss else optimizer


def l2_factor(config: TrainConfig) -> float:
    """Returns the factor of `l2_penalty` in the loss: 0 for adamw, which decays weights by itself."""
    return 0.0 if config.optimizer == "adamw" else config.weight_decay


def l2_penalty(variables: Iterable[keras.Variable], factor: float) -> Any:
    """Returns factor / 2 times the sum of the squared weights, whose gradient is factor * weight.

    The half is `tf.nn.l2_loss`'s, which the papers' weight decays are given for.
    """
    decayed = [each for each in variables if not any(part in each.name for part in NOT_DECAYED)]
    return 0.5 * factor * sum(keras.ops.sum(keras.ops.square(keras.ops.cast(each, "float32"))) for each in decayed)

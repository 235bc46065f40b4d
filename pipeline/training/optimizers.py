"""Optimizers of a training. Loads Keras: it is imported where a training runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from pipeline.training.config import TrainConfig
from pipeline.training.schedules import learning_rate

NOT_DECAYED = ("bias", "gamma", "beta")
"""Variables that weight decay leaves out, by parts of their names: biases and batch-norm parameters."""


class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate as Keras asks for it: by the steps that the optimizer has seen.

    Keras counts steps, also those that only sum gradients up, so they are turned into updates here.

    Args:
        config: Of the training.
        steps_per_epoch: Steps an epoch.
        first_step: Steps of the training before this optimizer's first.
    """

    def __init__(self, config: TrainConfig, *, steps_per_epoch: int, first_step: int = 0) -> None:
        self._config = config
        self._steps_per_epoch, self._first_step = steps_per_epoch, first_step

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of the optimizer's step, a float32 tensor."""
        steps = keras.ops.cast(step, "float32") + float(self._first_step)
        update = keras.ops.floor(steps / self._config.accumulate_steps)
        rate = learning_rate(
            update,
            self._config,
            updates_per_epoch=self._steps_per_epoch / self._config.accumulate_steps,
            ops=keras.ops,
        )
        return keras.ops.cast(rate, "float32")


def make_optimizer(
    config: TrainConfig, *, steps_per_epoch: int, first_step: int = 0, scale_loss: bool = False
) -> keras.optimizers.Optimizer:
    """Returns the optimizer with its schedule.

    - `adamw` decays weights beside the gradient, times the learning rate (Loshchilov and Hutter 2019).
    - `sgd` has Nesterov momentum, unless momentum is 0.
    - `rmsprop` divides by sqrt(mean square + epsilon) and gathers momentum after that division, as TensorFlow's
      operation does that EfficientNet was trained with (arXiv:1905.11946, section 5); PyTorch's adds epsilon to the
      root instead.

    Keras' own `weight_decay` of the last two is scaled by the learning rate and passes momentum by, which is no L2
    penalty, so `l2_penalty` belongs into their loss instead.

    Args:
        config: Of the training.
        steps_per_epoch: Steps an epoch.
        first_step: Steps of the training before this optimizer's first.
        scale_loss: Whether the loss is scaled, and steps with infinite gradients are left out, as float16 needs.
    """
    schedule = Schedule(config, steps_per_epoch=steps_per_epoch, first_step=first_step)
    shared: dict[str, Any] = {"learning_rate": schedule}
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

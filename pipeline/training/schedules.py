"""The learning rate over a training: a linear warm-up, then a cosine, an exponential in steps, or nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.training.config import TrainConfig


def learning_rate(update: Any, config: TrainConfig, *, updates_per_epoch: float, ops: Any = np) -> Any:
    """Returns the learning rate of an update of the weights.

    The warm-up grows linearly from zero. After it, a cosine falls to zero at the end of the training (Loshchilov and
    Hutter 2017). The exponential counts its epochs from the start of the training, warm-up included, and falls in
    steps, as the reference training of EfficientNet does (`build_learning_rate`: `exponential_decay` with
    `staircase=True`, replaced by the warm-up as long as that lasts).

    Args:
        update: How many updates came before; a number, or a tensor of `ops`.
        config: Of the training.
        updates_per_epoch: Steps an epoch, divided by the steps whose gradients are summed up.
        ops: `numpy` or `keras.ops`.
    """
    peak = config.peak_learning_rate()
    total = max(1.0, updates_per_epoch * config.epochs)
    warmup = round(updates_per_epoch * config.warmup_epochs) if config.epochs else 0
    if config.schedule == "cosine":
        share = ops.minimum((update - warmup) / max(1.0, total - warmup), 1.0)
        rate = 0.5 * peak * (1.0 + ops.cos(math.pi * share))
    elif config.schedule == "exponential":
        # Where a step ends is a whole number of updates in the data's terms, so rounding must not end it early.
        period = max(1.0, config.decay_epochs * updates_per_epoch)
        rate = peak * ops.exp(math.log(config.decay_rate) * ops.floor((update + 1e-3) / period))
    else:
        rate = peak + 0.0 * update
    if not warmup:
        return rate
    return ops.where(update < warmup, peak * update / warmup, rate)

"""The exponential moving average of a network's weights. Loads Keras: it is imported where a training runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from pipeline.training.config import AveragingConfig


class Averages:
    """Averages of variables, moved inside the training step so that no device waits for it.

    Args:
        config: Decay and how often it moves.
        sources: What is averaged: all weights of the network, batch-norm statistics included.
        accumulate_steps: Steps an update of the weights.
    """

    def __init__(self, config: AveragingConfig, sources: Sequence[keras.Variable], *, accumulate_steps: int) -> None:
        self._config = config
        self._sources = list(sources)
        self._accumulate_steps = accumulate_steps
        self.values = [
            # Of a copy: JAX gives both buffers away, and that of a source may not be given away twice.
            keras.Variable(
                keras.ops.convert_to_numpy(source.value), trainable=False, dtype=source.dtype, name=f"average_{index}"
            )
            for index, source in enumerate(sources)
        ]
        self.steps = keras.Variable(0, trainable=False, dtype="int32", name="averaged_steps")

    @property
    def variables(self) -> list[keras.Variable]:
        """All state, for the network that tracks it and for checkpoints."""
        return [self.steps, *self.values]

    def move(self) -> None:
        """Counts a step, and moves the averages where it is due; called inside the traced step."""
        every = self._config.every_steps * self._accumulate_steps
        done = self.steps + 1
        self.steps.assign(done)
        is_due = keras.ops.equal(keras.ops.mod(done, every), 0)
        updates = keras.ops.cast(keras.ops.floor_divide(done, self._accumulate_steps), "float32") - 1.0
        decay = keras.ops.minimum(self._config.decay, (1.0 + updates) / (10.0 + updates)) ** self._config.every_steps
        if keras.backend.backend() == "tensorflow":
            # A branch spares memory traffic; the graph keeps its assignments.
            keras.ops.cond(is_due, lambda: self._move_by(1.0 - decay), lambda: None)
        else:
            # Without state there is no assignment in a branch, and on a GPU a branch would wait for the host.
            self._move_by(keras.ops.where(is_due, 1.0 - decay, 0.0))

    def _move_by(self, share: Any) -> None:
        for value, source in zip(self.values, self._sources, strict=True):
            value.assign_add(keras.ops.cast(share, value.dtype) * (source - value))

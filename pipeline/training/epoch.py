"""The steps of one epoch, or of its rest. Loads Keras."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import keras

from pipeline.training.supervision import Feed, Supervisor
from pipeline.training.training_model import TrainingModel


class _StepCallbacks(keras.callbacks.CallbackList):  # type: ignore[misc]
    """Hands a step's logs on as the backend's arrays; Keras would wait for their numbers in every step."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Called after a step was handed to the device."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


def train_epoch(model: TrainingModel, feed: Feed, supervisor: Supervisor, *, steps: int) -> None:
    """Trains so many steps of an epoch.

    Args:
        model: What is trained; its running metrics start anew.
        feed: The batches; closed at the end.
        supervisor: Watches each step, and has the epoch's `logs` in the end.
        steps: How many.

    Raises:
        DataError: An image can't be read.
        StageError: Of the loader or the supervisor.
    """
    try:
        run_steps(model, feed.tuples(), supervisor, steps=steps)
    except Exception as error:
        if feed.error is None or feed.error is error:
            raise
        raise feed.error from error
    finally:
        feed.close()


def run_steps(
    model: TrainingModel, batches: Iterator[tuple[Any, ...]], callback: keras.callbacks.Callback, *, steps: int
) -> None:
    """Runs so many steps, as one epoch of Keras.

    On TensorFlow each batch goes straight into Keras' step function; `fit` would take it there through tf.data, which
    costs 1 to 2 ms a batch (`docs/decisions/0012-training-loop.md`). Elsewhere it is `fit`.

    Args:
        model: What is trained; its running metrics start anew.
        batches: Inputs, targets and, where there are any, weights.
        callback: Told of the epoch and of each step, with logs in the backend's arrays.
        steps: How many.
    """
    if keras.backend.backend() != "tensorflow":
        # Keras' History is asked for at the end of fit; it sees each epoch, not each step.
        callbacks = _StepCallbacks([callback], add_history=True, add_progbar=False, model=model, epochs=1, steps=steps)
        model.fit(batches, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=callbacks)
        return
    model.make_train_function()
    callback.set_model(model)
    model.reset_metrics()
    callback.on_epoch_begin(0)
    for step, batch in enumerate(itertools.islice(batches, steps)):
        callback.on_train_batch_end(step, model.train_function(iter([batch])))
    callback.on_epoch_end(0, model.get_metrics_result())

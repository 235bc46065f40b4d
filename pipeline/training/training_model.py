"""The network as it is trained: augmentation, network, loss, averages in one step. Loads Keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from pipeline.training.averaging import Averages
from pipeline.training.config import TrainConfig
from pipeline.training.optimizers import l2_factor, l2_penalty

STEP_LOSS = "step_loss"


class StepLoss(keras.metrics.Metric):  # type: ignore[misc]
    """The loss of the last step alone; Keras' own `loss` is the mean over the epoch."""

    def __init__(self) -> None:
        super().__init__(name=STEP_LOSS)
        self._last = self.add_variable((), initializer="zeros", name="last")

    def update_state(self, loss: Any) -> None:
        """Takes the loss of a step."""
        self._last.assign(keras.ops.cast(loss, self._last.dtype))

    def result(self) -> Any:
        """Returns the loss of the last step."""
        # A value of its own: the variable's may be given away to the next step.
        return keras.ops.add(self._last, 0.0)


class TrainingModel(keras.Model):  # type: ignore[misc]
    """One network and all that a training step does with it.

    The inputs are what the loader gives: `image`, uint8 (batch, height, width, 3), and where pixels are changed on
    the accelerator, the draws. The loss is the cross-entropy with smoothed labels, or its mix with a teacher's, and
    the L2 penalty of optimizers that don't decay weights by themselves.

    Args:
        network: Gives logits (batch, classes).
        config: Of the training.
        transform: Turns inputs into images (batch, height, width, 3) uint8.
        schedule: Sets the optimizer's learning rate.
        averages: Moved in each step; None averages nothing.
        teacher: Gives logits of the same images; None learns from labels alone.
    """

    def __init__(
        self,
        network: keras.Model,
        config: TrainConfig,
        *,
        transform: Callable[[Mapping[str, Any]], Any],
        schedule: Callable[[keras.optimizers.Optimizer], None],
        averages: Averages | None = None,
        teacher: keras.Model | None = None,
    ) -> None:
        super().__init__(name="training", dtype="float32")
        self.network = network
        self.teacher = teacher
        self.average_variables = averages.variables if averages else []
        self._averages = averages
        self._transform, self.schedule = transform, schedule
        self._smoothing = config.label_smoothing
        self._distillation = config.teacher
        self._l2_factor = l2_factor(config)
        self._step_loss = StepLoss()
        self._accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
        self.autocast = False
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool = False) -> Any:
        """Returns float32 logits (batch, classes); in training with a teacher, also the teacher's."""
        images = self._transform(inputs)
        logits = keras.ops.cast(self.network(images, training=training), "float32")
        if training and self.teacher is not None:
            return logits, keras.ops.stop_gradient(self.teacher(images, training=False))
        return logits

    def compute_loss(
        self,
        x: Any = None,  # noqa: ARG002 (Keras' signature)
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of a batch, a scalar."""
        logits, teacher_logits = y_pred if isinstance(y_pred, tuple | list) else (y_pred, None)
        losses = keras.losses.categorical_crossentropy(
            y, logits, from_logits=True, label_smoothing=self._smoothing if training else 0.0
        )
        if teacher_logits is not None and self._distillation is not None:
            from pipeline.training.distillation import distillation_loss

            weight, temperature = self._distillation.weight, self._distillation.temperature
            losses = (1 - weight) * losses + weight * distillation_loss(logits, teacher_logits, temperature)
        if sample_weight is not None:
            losses *= keras.ops.cast(sample_weight, losses.dtype)
        loss = keras.ops.mean(losses)
        if self._l2_factor:
            loss += l2_penalty(self.network.trainable_variables, self._l2_factor)
        self._step_loss.update_state(loss)
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """Returns the mean loss and accuracy of the epoch so far, and the loss of this step."""
        self._accuracy.update_state(y, y_pred[0] if isinstance(y_pred, tuple | list) else y_pred)
        result: dict[str, Any] = self.get_metrics_result()
        return result

    def train_step(self, *arguments: Any) -> Any:
        """Sets the learning rate, runs a step as Keras does, then moves the averages."""
        if keras.backend.backend() == "jax":
            return self._stateless_train_step(*arguments)
        self.schedule(self.optimizer)
        logs = super().train_step(*arguments)
        if self._averages is not None:
            self._averages.move()
        return logs

    def _stateless_train_step(self, state: tuple[list[Any], ...], data: Any) -> Any:
        """Does the same with values that are given and returned, as JAX has it."""
        trainable, non_trainable, optimizer, metrics = state
        with keras.StatelessScope(list(zip(self.optimizer.variables, optimizer, strict=True))) as scope:
            self.schedule(self.optimizer)
        optimizer = [scope.get_current_value(variable) for variable in self.optimizer.variables]
        logs, state = super().train_step((trainable, non_trainable, optimizer, metrics), data)
        if self._averages is None:
            return logs, state
        trainable, non_trainable, optimizer, metrics = state
        mapping = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, non_trainable, strict=True),
        ]
        with keras.StatelessScope(mapping) as scope:
            self._averages.move()
        non_trainable = [scope.get_current_value(variable) for variable in self.non_trainable_variables]
        return logs, (trainable, non_trainable, optimizer, metrics)

    def trained_state(self) -> list[keras.Variable]:
        """Weights, averages and random numbers, without the teacher and without metrics."""
        left_out = {id(variable) for variable in self.metrics_variables}
        if self.teacher is not None:
            left_out |= {id(variable) for variable in self.teacher.variables}
        return [variable for variable in self.variables if id(variable) not in left_out]

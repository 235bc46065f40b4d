"""What a training changes: the network, its averages, its optimizer, and the model of each phase. Loads Keras."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from models.pretrained import LoadedWeights, load_pretrained
from pipeline.errors import InputError
from pipeline.network import ModelConfig, build_network
from pipeline.training.averaging import Averages
from pipeline.training.backends import Precision, jit_compile
from pipeline.training.config import Backend, TrainConfig
from pipeline.training.freezing import frozen_layers
from pipeline.training.optimizers import Schedule, make_optimizer
from pipeline.training.phases import Phase
from pipeline.training.training_model import TrainingModel

_DROP_PATH = "_drop_path"
"""Ends the names of the layers of stochastic depth, whose rate stays as it is when dropout grows."""


class Assembly:
    """The parts of a training, and the compiled model of the phase it is in.

    Args:
        model: Which network.
        train: How it is trained.
        backend: On which Keras runs.
        classes: Names of the classes.
        size: (height, width) of the network that is exported.
        precision: Of the arithmetic.
        steps_per_epoch: Steps an epoch.
        on_accelerator: Whether pixels are changed within the step.

    Attributes:
        network: That is trained, in the precision of the training.
        exported: The same in float32, for the weights that are judged.
        loaded: What the initial weights were taken from; None where they are random.

    Raises:
        InputError: The weights or the teacher can't be used, or no layer is called as `train.freeze` says.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        *,
        backend: Backend,
        classes: Sequence[str],
        size: tuple[int, int],
        precision: Precision,
        steps_per_epoch: int,
        on_accelerator: bool,
    ) -> None:
        self._config, self._backend, self._size, self._precision = train, backend, size, precision
        self._steps_per_epoch, self._on_accelerator = steps_per_epoch, on_accelerator
        keras.utils.set_random_seed(train.seed)
        with _dtype_policy(precision):
            self.network = build_network(model, (*size, 3), len(classes))
        if precision != "float32":
            self.network.layers[-1].dtype_policy = "float32"
        self.loaded = _load_weights(self.network, model, classes)
        with undistributed():
            self.exported = build_network(model, (*size, 3), len(classes))
        self._dropouts = {
            layer: layer.rate
            for layer in self.network.layers
            if isinstance(layer, keras.layers.Dropout) and not layer.name.endswith(_DROP_PATH)
        }
        self._frozen = frozen_layers(self.network, train.freeze.until) if train.freeze else []
        self._averages = (
            Averages(train.averaging, self.network.weights, accumulate_steps=train.accumulate_steps)
            if train.averaging
            else None
        )
        self._teacher = self._load_teacher(classes)
        self._schedule = Schedule(train, steps_per_epoch=steps_per_epoch)
        self._phase: Phase | None = None
        self._model: TrainingModel | None = None

    def model(self, phase: Phase, *, epoch: int) -> TrainingModel:
        """Returns the compiled model of a phase.

        Weights, averages and random numbers go on from phase to phase; the optimizer too, unless layers are freed.

        Args:
            phase: Which.
            epoch: The first one that its optimizer trains, where a new one is made.
        """
        if self._model is None or phase != self._phase:
            self._model = self._made(phase, epoch=epoch)
            self._phase = phase
        return self._model

    def variables(self) -> list[keras.Variable]:
        """Returns all that shapes the next step, in the order of checkpoints."""
        if self._model is None:
            return []
        return [*self._model.trained_state(), *self._model.optimizer.variables, *self._model.metrics_variables]

    def export(self) -> None:
        """Puts the weights that are judged into `exported`: the averaged ones, where there are such."""
        judged = self.network.weights if self._averages is None else self._averages.values
        values = [keras.ops.convert_to_numpy(each.value) for each in judged]
        with undistributed():
            for target, value in zip(self.exported.weights, values, strict=True):
                target.assign(value)

    def _made(self, phase: Phase, *, epoch: int) -> TrainingModel:
        keeps = self._model is not None and self._phase is not None and self._phase.is_frozen == phase.is_frozen
        for layer in self._frozen:
            layer.trainable = not phase.is_frozen
        for layer, rate in self._dropouts.items():
            layer.rate = rate * phase.strength
        if self._model is None or not keeps:
            optimizer = make_optimizer(self._config, scale_loss=self._precision == "float16")
            first_step = epoch * self._steps_per_epoch
            self._schedule = Schedule(self._config, steps_per_epoch=self._steps_per_epoch, first_step=first_step)
        else:
            optimizer = self._model.optimizer
        model = TrainingModel(
            self._sized(phase.size),
            self._config,
            transform=self._transform(),
            schedule=self._schedule,
            averages=self._averages,
            teacher=self._teacher,
        )
        model.compile(optimizer=optimizer, jit_compile=jit_compile(self._config.compile, self._backend))
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        return model

    def _sized(self, size: tuple[int, int]) -> keras.Model:
        return self.network if size == self._size else network_of_size(self.network, size)

    def _transform(self) -> Callable[[Mapping[str, Any]], Any]:
        if not self._on_accelerator:
            return lambda inputs: inputs["image"]
        from pipeline.training.augmentation.accelerator import transform

        return transform

    def _load_teacher(self, classes: Sequence[str]) -> keras.Model | None:
        if self._config.teacher is None:
            return None
        from pipeline.training.distillation import load_teacher

        # Where images grow, what the teacher gets differs from phase to phase.
        shape = (None, None, 3) if self._config.progressive else (*self._size, 3)
        return load_teacher(self._config.teacher, classes=classes, input_shape=shape)


def network_of_size(network: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Returns a network for images of another size: the same layers, with the strides of its own size.

    Args:
        network: Functional, of images.
        size: (height, width) in pixels.
    """
    maps: list[tuple[int, int]] = []

    def call(layer: keras.Layer, *arguments: Any, **options: Any) -> Any:
        if isinstance(layer, keras.layers.Reshape):
            # Attention turns a map of features into rows and back; both shapes hold the map's size.
            given, wanted = arguments[0].shape, layer.target_shape
            if len(given) == 4:
                maps.append(given[1:3])
                wanted = (-1, wanted[-1])
            elif len(wanted) == 3:
                values = math.prod(given[1:])
                height, width = next(each for each in maps if math.prod(each) * wanted[-1] == values)
                wanted = (height, width, wanted[-1])
            layer = keras.layers.Reshape(wanted, name=layer.name)
        return layer(*arguments, **options)

    return keras.models.clone_model(
        network,
        input_tensors=keras.Input((*size, 3), dtype=network.inputs[0].dtype),
        clone_function=lambda layer: layer,
        call_function=call,
    )


@contextlib.contextmanager
def undistributed() -> Iterator[None]:
    """Leaves variables and arrays on this process' own device."""
    before = keras.distribution.distribution()
    if before is None:
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


@contextlib.contextmanager
def _dtype_policy(precision: Precision) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _load_weights(network: keras.Model, config: ModelConfig, classes: Sequence[str]) -> LoadedWeights | None:
    if config.weights is None:
        return None
    try:
        return load_pretrained(
            network,
            name=config.name,
            weights=config.weights,
            width=config.options().get("width", 1.0),
            classes=classes,
        )
    except ValueError as error:
        raise InputError(f"model.weights can't be used: {error}") from error

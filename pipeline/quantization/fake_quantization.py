"""A network as integer arithmetic will compute it, with gradients. Loads Keras: it is imported where it is needed.

Weights are rounded by output channel, symmetric; activations by tensor, with an exact zero; biases stay float, for the
32 bits that targets give them are as good. Rounding lets gradients pass (Bengio et al. 2013, arXiv:1308.3432).

A table of ranges `{layer name: (low, high)}` says which layers' results are rounded. `quantization_points` names those
that targets round: after the ReLU that is a part of a convolution and not before it, after residual additions, pooling,
gates, and the products of hard-swish and swish. The input is not one of them: it is uint8 already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from pipeline.errors import UnsupportedModelError
from pipeline.quantization.arithmetic import (
    SMALLEST_WEIGHT,
    Range,
    channel_axes,
    largest_whole,
    nudged,
    nudged_range,
    round_weights,
)
from pipeline.quantization.config import IntegerArithmetic
from pipeline.quantization.graph import array_of, fused_rectifier, graph_of, is_linear

RANGE_SUFFIX = "_range"
"""Ends the names of the layers that round what the layer before them gives."""

_BATCH = 16
_SIGMOID_RANGE = (0.0, 255 / 256)
"""What LiteRT gives the result of a sigmoid, whatever comes."""

_SMALLEST_FACTOR = 1e-3


def round_straight(values: Any) -> Any:
    """Rounds; the gradient is that of the values themselves."""
    return values + ops.stop_gradient(ops.round(values) - values)


def scale_gradient(values: Any, factor: float) -> Any:
    """The values themselves, with a gradient that is multiplied."""
    return values * factor + ops.stop_gradient(values * (1 - factor))


def fake_quantize_weights(kernel: Any, axes: tuple[int, ...], bits: int) -> Any:
    """A kernel rounded to whole steps of each output channel, by the channel's largest weight of the moment."""
    peaks = ops.max(ops.abs(kernel), axis=axes, keepdims=True)
    steps = ops.stop_gradient(ops.where(peaks > SMALLEST_WEIGHT, peaks, ops.ones_like(peaks)) / largest_whole(bits))
    return round_straight(kernel / steps) * steps


def fake_quantize(values: Any, low: Any, step: Any, levels: int) -> Any:
    """Activations rounded to the levels of a range that starts at about `low`.

    Gradients are those of learned step size with an offset (arXiv:2004.09576, equations 3 and 4): within the range the
    step gets the rounding error, above it the number of levels; the offset gets what lies beyond on either side.

    Args:
        values: Of any shape.
        low: The lowest value, at most 0; rounded to whole steps, so that 0 is a level.
        step: Between two levels, above 0.
        levels: How many.
    """
    zero = ops.clip(round_straight(-low / step), 0.0, levels - 1.0)
    wholes = ops.clip(round_straight(values / step) + zero, 0.0, levels - 1.0)
    return (wholes - zero) * step


class RangeRounding(keras.layers.Layer):  # type: ignore[misc]
    """Rounds activations to the levels of a range, which is fixed or learned.

    What is learned is relative: a factor on the step, and where there are values below zero a shift in widths of the
    range. So one learning rate fits the ranges of all tensors.

    Args:
        limits: The range to start with.
        levels: How many.
        learned: Whether training changes it.
        name: Of the layer.
    """

    def __init__(self, limits: Range, levels: int, *, learned: bool, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self._levels = levels
        self._step, zero = nudged(limits, levels)
        self._low = -zero * self._step
        self._factor = self._shift = None
        if learned:
            self._factor = self.add_weight(shape=(), initializer="ones", name="step_factor")
            if zero:
                self._shift = self.add_weight(shape=(), initializer="zeros", name="low_shift")

    def call(self, values: Any) -> Any:
        """Returns the rounded values."""
        # Esser et al. 2020, section 2.2: without this factor a step would move by far more than a weight does.
        factor = 1 / math.sqrt(math.prod(values.shape[1:]) * (self._levels - 1))
        step, low = self._parts(lambda variable: scale_gradient(variable, factor))
        return fake_quantize(values, low, step, self._levels)

    def limits(self) -> Range:
        """The range as it is now."""
        step, low = (float(array_of(part)) for part in self._parts(lambda variable: variable))
        return nudged_range((low, low + step * (self._levels - 1)), self._levels)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The same."""
        return input_shape

    def _parts(self, take: Any) -> tuple[Any, Any]:
        """Step and lowest value; `take` makes a value of a variable."""
        step: Any = np.float32(self._step)
        low: Any = np.float32(self._low)
        if self._factor is not None:
            step = step * ops.maximum(take(self._factor), _SMALLEST_FACTOR)
        if self._shift is not None:
            width = np.float32(self._step * (self._levels - 1))
            low = ops.minimum(low + width * take(self._shift), 0.0)
        return step, low


class RoundedLinear(keras.layers.Layer):  # type: ignore[misc]
    """A convolution or dense layer with rounded weights.

    The kernel that is trained is relative to the largest weight of each channel.

    Args:
        source: The layer whose place it takes.
        bits: Of the weights; None leaves them as they are.
    """

    def __init__(self, source: keras.Layer, bits: int | None) -> None:
        super().__init__(name=source.name, dtype="float32")
        self._bits, self._activation = bits, source.activation
        self._is_depthwise = isinstance(source, keras.layers.DepthwiseConv2D)
        self._is_dense = isinstance(source, keras.layers.Dense)
        self._options: dict[str, Any] = {}
        if not self._is_dense:
            names = ("strides", "padding", "data_format", "dilation_rate")
            self._options = {name: getattr(source, name) for name in names}
        kernel = array_of(source.kernel)
        self._axes = channel_axes(kernel, depthwise=self._is_depthwise)
        self._unit = self.add_weight(
            shape=kernel.max(axis=self._axes, keepdims=True).shape, initializer="ones", trainable=False, name="unit"
        )
        self.kernel = self.add_weight(shape=kernel.shape, initializer="zeros", name="kernel")
        self.bias = None
        if source.use_bias:
            self.bias = self.add_weight(shape=source.bias.shape, initializer="zeros", name="bias")
            self.bias.assign(array_of(source.bias))
        self.take_kernel(kernel)

    def call(self, values: Any) -> Any:
        """Returns what the layer gives."""
        kernel = self.kernel * self._unit
        if self._bits is not None:
            kernel = fake_quantize_weights(kernel, self._axes, self._bits)
        if self._is_dense:
            values = ops.matmul(values, kernel)
        else:
            convolve = ops.depthwise_conv if self._is_depthwise else ops.conv
            values = convolve(values, kernel, **self._options)
        return self._activation(values if self.bias is None else values + self.bias)

    def take_kernel(self, kernel: npt.NDArray[np.float32]) -> None:
        """Puts a kernel of the source's form in place."""
        peaks = np.abs(kernel).max(axis=self._axes, keepdims=True)
        unit = np.where(peaks > SMALLEST_WEIGHT, peaks, 1).astype(np.float32)
        self._unit.assign(unit)
        self.kernel.assign(kernel / unit)

    def rounded_kernel(self) -> npt.NDArray[np.float32]:
        """The kernel in the source's form, whose weights are whole steps, where it has such."""
        kernel: npt.NDArray[np.float32] = array_of(self.kernel) * array_of(self._unit)
        return kernel if self._bits is None else round_weights(kernel, self._axes, self._bits)


class RoundedGate(keras.layers.Layer):  # type: ignore[misc]
    """Hard-swish or swish as a product with a rounded factor.

    Args:
        kind: `hard_swish` or `swish`.
        levels: Of the factor.
        name: Of the layer.
    """

    def __init__(self, kind: str, levels: int, *, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self._is_hard, self._levels = kind == "hard_swish", levels
        self._step, _ = nudged((0.0, 6.0) if self._is_hard else _SIGMOID_RANGE, levels)

    def call(self, values: Any) -> Any:
        """Returns the product."""
        if self._is_hard:
            return values * fake_quantize(ops.relu6(values + 3.0), 0.0, self._step, self._levels) / 6.0
        return values * fake_quantize(ops.sigmoid(values), 0.0, self._step, self._levels)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The same."""
        return input_shape


def quantization_points(network: keras.Model) -> tuple[str, ...]:
    """Returns the layers whose results targets round, in the order in which they run.

    Args:
        network: Folded (`folded.fold`).
    """
    graph = graph_of(network)
    passed_on = keras.layers.Reshape | keras.layers.Flatten | keras.layers.Dropout | keras.layers.InputLayer
    points = []
    for name, layer in graph.layers.items():
        if isinstance(layer, passed_on) or _is_input_scale(graph.sources[name], layer, network):
            continue
        fuses = is_linear(layer) or isinstance(layer, keras.layers.Add)
        if not (fuses and fused_rectifier(graph, name)):
            points.append(name)
    return tuple(points)


def activations(
    network: keras.Model, inputs: npt.NDArray[Any], names: Sequence[str], *, batch_size: int = _BATCH
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yields the float results of layers, batch by batch.

    Args:
        network: Folded.
        inputs: (images, ...), as the network takes them.
        names: Of layers.
        batch_size: Images at a time.

    Yields:
        By layer, (images, ...).
    """
    model = keras.Model(network.inputs, [network.get_layer(name).output for name in names])
    for start in range(0, len(inputs), batch_size):
        found = model.predict_on_batch(np.asarray(inputs[start : start + batch_size]))
        yield dict(zip(names, [found] if len(names) == 1 and not isinstance(found, list) else found, strict=True))


def observed_ranges(
    network: keras.Model, inputs: npt.NDArray[Any], names: Sequence[str] | None = None
) -> dict[str, Range]:
    """Returns the smallest and the largest value of layers over calibration images; None stands for all points."""
    ranges: dict[str, Range] = {}
    for batch in activations(network, inputs, quantization_points(network) if names is None else names):
        for name, values in batch.items():
            low, high = ranges.get(name, (math.inf, -math.inf))
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    return ranges


def fake_quantized(
    network: keras.Model,
    ranges: Mapping[str, Range],
    arithmetic: IntegerArithmetic | None = None,
    *,
    learned_ranges: bool = False,
) -> keras.Model:
    """Returns the network as integer arithmetic computes it, with weights of its own.

    Args:
        network: Folded (`folded.fold`).
        ranges: Of the layers whose results are rounded; the others' stay float.
        arithmetic: What integers can tell apart; None takes 8 bits.
        learned_ranges: Whether training changes the ranges.

    Raises:
        UnsupportedModelError: The network has a batch normalization, or no layer of a name.
    """
    arithmetic = arithmetic or IntegerArithmetic()
    levels = 2**arithmetic.activation_bits
    _check(network, [*ranges, *arithmetic.float_layers])

    def renew(layer: keras.Layer) -> keras.Layer:
        if is_linear(layer):
            return RoundedLinear(layer, None if layer.name in arithmetic.float_layers else arithmetic.weight_bits)
        if arithmetic.round_gates and layer.name in ranges and _gate_kind(layer) is not None:
            return RoundedGate(str(_gate_kind(layer)), levels, name=layer.name)
        return type(layer).from_config(layer.get_config())

    def call(layer: keras.Layer, *arguments: Any, **options: Any) -> Any:
        result = layer(*arguments, **options)
        if layer.name not in ranges:
            return result
        name = f"{layer.name}{RANGE_SUFFIX}"
        return RangeRounding(ranges[layer.name], levels, learned=learned_ranges, name=name)(result)

    return keras.models.clone_model(network, clone_function=renew, call_function=call)


def read_back(quantized: keras.Model, network: keras.Model) -> tuple[keras.Model, dict[str, Range]]:
    """Returns what became of a rounded network: its weights in the float layers, and its ranges.

    The weights lie on the integers' grid, so every target that rounds them to the nearest leaves them as they are.

    Args:
        quantized: Of `fake_quantized`.
        network: The float network that it came from, which is not changed.
    """
    result = keras.models.clone_model(network)
    result.set_weights(network.get_weights())
    ranges = {}
    for layer in quantized.layers:
        if isinstance(layer, RoundedLinear):
            bias = [] if layer.bias is None else [array_of(layer.bias)]
            result.get_layer(layer.name).set_weights([layer.rounded_kernel(), *bias])
        elif isinstance(layer, RangeRounding):
            ranges[layer.name.removesuffix(RANGE_SUFFIX)] = layer.limits()
    return result, ranges


def _is_input_scale(sources: Sequence[str], layer: keras.Layer, network: keras.Model) -> bool:
    """Whether a layer maps the input's 256 values to as many others."""
    return isinstance(layer, keras.layers.Rescaling) and list(sources) == [network.layers[0].name]


def _gate_kind(layer: keras.Layer) -> str | None:
    if not isinstance(layer, keras.layers.Activation):
        return None
    return {keras.activations.hard_swish: "hard_swish", keras.activations.swish: "swish"}.get(layer.activation)


def _check(network: keras.Model, names: Sequence[str]) -> None:
    known = {layer.name for layer in network.layers}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnsupportedModelError(
            f"{network.name} has no layer {unknown[0]}, which the ranges or the float layers name: give those of this "
            "network, folded."
        )
    norms = [layer.name for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if norms:
        raise UnsupportedModelError(
            f"{network.name} still has the batch normalization {norms[0]}, which integers don't compute: fold it first "
            "(pipeline.quantization.folded.fold)."
        )

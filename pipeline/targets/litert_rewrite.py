"""Float graphs that give the same as before, in operations that XNNPACK also has for int8.

What the delegate takes of an int8 graph decides how fast it is: each operation that it leaves out ends one of its
partitions, and runs in a kernel that is many times slower. It has HARD_SWISH, RELU, RELU6, MINIMUM and MAXIMUM for
floats only, and AVERAGE_POOL_2D (google-ai-edge/LiteRT, tflite/delegates/xnnpack/xnnpack_delegate.cc).
But an int8 tensor is a clamp by itself: what lies outside of its range is saturated, at no cost. So the functions here
write each activation as an addition or a convolution, then a `MINIMUM` with the largest value. In float that is a
clamp; `drop_clamps` leaves it to the range of the int8 tensor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.targets.litert_graph import NO_ACTIVATION, RELU, RELU6, Array, Graph

UNCLAMPED = "/unclamped"
"""Ends the names of tensors that go into a clamp; what comes out has the name without it."""

_SQUEEZED = 6.0**-0.5
"""What hard-swish's input is multiplied by, so that its sixth needs no operation: with u = x / sqrt(6),
x * min(max(x + 3, 0), 6) / 6 = u * min(max(u + 3 / sqrt(6), 0), 6 / sqrt(6))."""

_BY_INPUT_CHANNEL = {"CONV_2D": (1, 1, 1, -1), "DEPTHWISE_CONV_2D": (1, 1, 1, -1), "FULLY_CONNECTED": (1, -1)}
_BY_OUTPUT_CHANNEL = {"CONV_2D": (-1, 1, 1, 1), "DEPTHWISE_CONV_2D": (1, 1, 1, -1), "FULLY_CONNECTED": (-1, 1)}
"""How one number for each channel is laid along the weights (TFLite's 8-bit quantization specification)."""


@dataclass(frozen=True)
class Centering:
    """The way from the pixels of an image to the first convolutions: `CAST`, then `ADD` of a constant.

    Attributes:
        image: Index of the uint8 tensor that is fed.
        cast: The operation.
        add: The operation.
        zeros: The pixel values that become 0.0: one, or one for each channel.
        layers: The linear operations that take the result.
    """

    image: int
    cast: Any
    add: Any
    zeros: tuple[float, ...]
    layers: tuple[Any, ...]

    @property
    def level(self) -> int | None:
        """The pixel value that stands for 0.0 in all channels, rounded; None where they differ."""
        return int(np.rint(self.zeros[0])) if len(set(self.zeros)) == 1 else None

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value that the `ADD` can give."""
        return -max(self.zeros), 255.0 - min(self.zeros)


def lower_activations(graph: Graph) -> None:
    """Replaces hard-swish, hard sigmoids and the average over a whole map by what the delegate has for int8."""
    for operator in list(graph.operators):
        code = graph.code(operator)
        if code == "HARD_SWISH" and graph.type(operator.inputs[0]) == "float32":
            _lower_hard_swish(graph, operator)
        elif code == "MUL":
            _fold_factor(graph, operator)
        elif code == "AVERAGE_POOL_2D":
            _lower_average(graph, operator)


def center_image(graph: Graph) -> None:
    """Folds the factor of the scaling of a uint8 image into the layers that take it.

    `image * scale + offset` becomes `image - zero`, whose steps are the pixel's own, so that int8 holds each of them.
    Zeros of each channel are repeated along the width: sums over rows of three numbers are slow.
    """
    for cast in list(graph.operators):
        if graph.code(cast) != "CAST" or graph.type(cast.inputs[0]) != "uint8":
            continue
        multiply = _only_consumer(graph, cast.outputs[0], "MUL")
        add = multiply and _only_consumer(graph, multiply.outputs[0], "ADD")
        if add is None or graph.activation(multiply) or graph.activation(add):
            continue
        scale, offset = _other_constant(graph, multiply), _other_constant(graph, add)
        layers, shape = _layers_of(graph, add.outputs[0]), graph.shape(add.outputs[0])
        if scale is None or offset is None or not layers or not (scale > 0).all():
            continue
        if len(shape) != 4 or not {scale.size, offset.size} <= {1, shape[-1]}:
            continue
        for layer in layers:
            _scale_input(graph, layer, scale.reshape(-1))
        offsets = (offset.reshape(-1).astype(np.float64) / scale.reshape(-1)).astype(np.float32)
        values = offsets.reshape(()) if offsets.size == 1 else np.tile(offsets, (1, 1, shape[2], 1))
        graph.remove(multiply)
        add.inputs = [cast.outputs[0], graph.add_constant(f"{graph.name(add.outputs[0])}/offset", values)]


def find_centering(graph: Graph) -> Centering | None:
    """Returns what `center_image` wrote; None where there is nothing of the kind."""
    for cast in graph.operators:
        if graph.code(cast) != "CAST" or graph.type(cast.inputs[0]) != "uint8" or cast.inputs[0] not in graph.inputs:
            continue
        add = _only_consumer(graph, cast.outputs[0], "ADD")
        offset = None if add is None or graph.activation(add) else graph.constant(add.inputs[1])
        if add is None or offset is None or offset.dtype != np.float32:
            continue
        rows = offset.reshape(-1, offset.shape[-1] if offset.ndim else 1)
        layers, zeros = _layers_of(graph, add.outputs[0]), tuple(float(-value) for value in rows[0])
        if layers and (rows == rows[0]).all() and all(0 <= zero <= 255 for zero in zeros):
            return Centering(int(cast.inputs[0]), cast, add, zeros, layers)
    return None


def feed_centered(graph: Graph, centering: Centering) -> None:
    """Makes the graph take `image - level` as a float32 tensor, in place of the image.

    What the rounding of the level changes goes into the biases. It stays at the edges of the image, where a
    convolution pads with up to half a pixel step instead of none; converters round each pixel by as much.
    """
    rest = float(centering.level or 0) - centering.zeros[0]
    for layer in centering.layers:
        weights = graph.constant(layer.inputs[1])
        if weights is not None and rest:
            axes = tuple(axis for axis, size in enumerate(_BY_OUTPUT_CHANNEL[graph.code(layer)]) if size == 1)
            _add_to_bias(graph, layer, rest * weights.sum(axes, dtype=np.float64))
    graph.remove(centering.cast)
    graph.remove(centering.add)
    graph.set_inputs(centering.image, int(centering.add.outputs[0]))


def feed_image(graph: Graph, image: str, level: int) -> None:
    """Makes the quantized result of `feed_centered` take the uint8 image again.

    XNNPACK has no conversion from uint8 to int8, but one from each to float32.

    Args:
        graph: Its one input is int8.
        image: Name for the new input.
        level: The pixel value that stands for 0.0.
    """
    [fed] = graph.inputs
    graph.set_type(fed, "int8", scale=1.0, zero_point=level - 128)
    tensor = graph.add_tensor(image, graph.shape(fed), "uint8")
    graph.set_type(tensor, "uint8", scale=1.0, zero_point=level)
    floats = graph.add_tensor(f"{image}/floats", graph.shape(fed), "float32")
    first = graph.operators[0]
    graph.insert(first, "DEQUANTIZE", [tensor], floats)
    graph.insert(first, "QUANTIZE", [floats], fed)
    graph.set_inputs(fed, tensor)


def cast_in_delegate(graph: Graph) -> None:
    """Writes `CAST` of a uint8 input to float32 as `DEQUANTIZE`, which XNNPACK has."""
    for cast in [operator for operator in graph.operators if graph.code(operator) == "CAST"]:
        source, result = int(cast.inputs[0]), int(cast.outputs[0])
        expands = source in graph.inputs and graph.type(source) == "uint8" and graph.type(result) == "float32"
        if expands and graph.is_only_for(source, cast):
            graph.set_type(source, "uint8", scale=1.0, zero_point=0)
            graph.insert(cast, "DEQUANTIZE", [source], result)
            graph.remove(cast)


def clamp_of(graph: Graph, operator: Any) -> Any | None:
    """Returns the `MINIMUM` that `lower_activations` put behind an operation."""
    output = int(operator.outputs[0])
    if not graph.name(output).endswith(UNCLAMPED):
        return None
    return _only_consumer(graph, output, "MINIMUM")


def given_name(graph: Graph, operator: Any) -> str:
    """Returns the name of what an operation gives, after its clamp."""
    return graph.name(operator.outputs[0]).removesuffix(UNCLAMPED)


def drop_clamps(graph: Graph, kept: Collection[str]) -> dict[str, float]:
    """Takes clamps out, which leaves them to the ranges of the tensors.

    Args:
        graph: After `lower_activations`.
        kept: Names, as `given_name` has them, of the operations whose clamp stays.

    Returns:
        The upper end of each tensor that lost its clamp, by its name. The lower end is 0.
    """
    ends: dict[str, float] = {}
    for operator in list(graph.operators):
        clamp = clamp_of(graph, operator)
        if clamp is None or given_name(graph, operator) in kept:
            continue
        limit = graph.scalar(clamp.inputs[1])
        if limit is not None:
            operator.outputs = list(clamp.outputs)
            graph.remove(clamp)
            ends[graph.name(clamp.outputs[0])] = limit
    return ends


def _lower_hard_swish(graph: Graph, operator: Any) -> None:
    """Writes `x * relu6(x + 3) / 6` as an addition and a product."""
    source, result = int(operator.inputs[0]), int(operator.outputs[0])
    name, shape = graph.name(result), graph.shape(source)
    maker = graph.producer(source)
    squeezes = (
        maker is not None
        and graph.is_only_for(source, operator)
        and graph.activation(maker) == NO_ACTIVATION
        and _has_own_floats(graph, maker)
    )
    gate = graph.add_tensor(f"{name}/gate", shape, "float32")
    if squeezes:
        _scale_output(graph, maker, _SQUEEZED)
        unclamped = graph.add_tensor(f"{name}/gate{UNCLAMPED}", shape, "float32")
        graph.insert(operator, "ADD", [source, _scalar(graph, 3 * _SQUEEZED)], unclamped, activation=RELU)
        graph.insert(operator, "MINIMUM", [unclamped, _scalar(graph, 6 * _SQUEEZED)], gate)
    else:
        shifted = graph.add_tensor(f"{name}/shifted", shape, "float32")
        graph.insert(operator, "ADD", [source, _scalar(graph, 3.0)], shifted, activation=RELU6)
        graph.insert(operator, "MUL", [shifted, _scalar(graph, 1 / 6)], gate)
    graph.insert(operator, "MUL", [source, gate], result)
    graph.remove(operator)


def _lower_average(graph: Graph, operator: Any) -> None:
    """Writes the average over a whole map as MEAN."""
    [source], [result], options = operator.inputs, operator.outputs, operator.builtinOptions
    height, width = graph.shape(source)[1:3]
    if options.fusedActivationFunction or graph.shape(result)[1:3] != (1, 1):
        return
    if (options.filterHeight, options.filterWidth) == (height, width):
        axes = graph.add_constant(f"{graph.name(result)}/axes", np.array([1, 2], np.int32))
        graph.insert(operator, "MEAN", [source, axes], result).builtinOptions.keepDims = True
        graph.remove(operator)


def _fold_factor(graph: Graph, operator: Any) -> None:
    """Folds the positive constant that a linear operation's result is multiplied by into its weights.

    A hard sigmoid is `relu6(x + 3) / 6`, of which converters fold the 3 only.
    """
    if graph.activation(operator) or graph.scalar(operator.inputs[1]) is None:
        return
    source, result, factor = int(operator.inputs[0]), int(operator.outputs[0]), graph.scalar(operator.inputs[1])
    maker = graph.producer(source)
    if maker is None or not factor or factor < 0 or not graph.is_only_for(source, operator) or result in graph.outputs:
        return
    activation = graph.activation(maker)
    if activation not in {NO_ACTIVATION, RELU, RELU6} or not _has_own_floats(graph, maker):
        return
    _scale_output(graph, maker, factor)
    name = graph.name(source)
    if activation == RELU6:
        maker.builtinOptions.fusedActivationFunction = RELU
        graph.rename(source, name + UNCLAMPED)
        graph.insert(operator, "MINIMUM", [source, _scalar(graph, 6 * factor)], result)
    else:
        maker.outputs = [result]
        graph.rename(source, name + "/unscaled")
    graph.rename(result, name)
    graph.remove(operator)


def _has_own_floats(graph: Graph, operator: Any) -> bool:
    """Whether it is a linear operation with stored float32 weights, and a stored bias or none."""
    if graph.code(operator) not in _BY_OUTPUT_CHANNEL:
        return False
    stored = [graph.constant(index) for index in operator.inputs[1:3] if index >= 0]
    return all(values is not None and values.dtype == np.float32 for values in stored)


def _scale_output(graph: Graph, operator: Any, factor: float) -> None:
    """Multiplies weights and bias."""
    for place, index in enumerate(operator.inputs):
        values = graph.constant(index) if place else None
        if values is not None:
            graph.store(operator, place, (values * np.float64(factor)).astype(np.float32))


def _scale_input(graph: Graph, operator: Any, factors: Array) -> None:
    """Multiplies the weights by one number for all input channels, or by one for each."""
    weights = graph.constant(operator.inputs[1])
    if weights is not None:
        along = factors.astype(np.float64).reshape(_BY_INPUT_CHANNEL[graph.code(operator)])
        if graph.code(operator) == "DEPTHWISE_CONV_2D":  # an input channel has several outputs side by side
            along = along.repeat(weights.shape[-1] // along.size, -1)
        graph.store(operator, 1, (weights * along).astype(np.float32))


def _add_to_bias(graph: Graph, operator: Any, values: Array) -> None:
    bias = graph.constant(operator.inputs[2]) if len(operator.inputs) > 2 else None
    total = (values if bias is None else bias + values).astype(np.float32)
    graph.store(operator, 2, total)


def _scalar(graph: Graph, value: float) -> int:
    """Returns a stored number, the same tensor each time it is asked for."""
    name = f"constant/{value:.9g}"
    try:
        return graph.index(name)
    except KeyError:
        return graph.add_constant(name, np.array(value, np.float32))


def _only_consumer(graph: Graph, index: int, code: str) -> Any | None:
    """Returns the one operation that takes a tensor, if it is of that kind."""
    takers = graph.consumers(index)
    alone = len(takers) == 1 and index not in graph.outputs and graph.code(takers[0]) == code
    return takers[0] if alone else None


def _other_constant(graph: Graph, operator: Any) -> Array | None:
    """Returns the constant among the two inputs of a sum or a product, as one number or one for each channel."""
    values = graph.constant(operator.inputs[1])
    fits = values is not None and values.dtype == np.float32 and values.size == (values.shape or (1,))[-1]
    return values if fits else None


def _layers_of(graph: Graph, index: int) -> tuple[Any, ...]:
    """Returns the linear operations that take a tensor; none if something else takes it, too."""
    takers = graph.consumers(index)
    fits = index not in graph.outputs and all(
        _has_own_floats(graph, taker) and taker.inputs[0] == index for taker in takers
    )
    return tuple(takers) if fits else ()

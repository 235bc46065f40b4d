"""Writes QuantizeLinear and DequantizeLinear into an ONNX graph, with ranges that are given.

ONNX Runtime and OpenVINO read such a file and put integer operators in the place of the pairs. What is written follows
what ONNX Runtime's optimizer looks for: a linear layer whose input, weights, bias and result all come or go through a
pair, with its rectifier folded into the range of the result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.targets.onnx_first_layer import PIXEL_CENTER
from pipeline.targets.onnx_graph import Array, OnnxGraph, attribute, output_axis

ELEMENTWISE = ("Add", "Mul", "Sigmoid", "GlobalAveragePool", "AveragePool", "Concat", "LeakyRelu")
"""What ONNX Runtime computes on integers from quantized inputs, besides linear layers."""

_LAYOUT = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "MaxPool"}
"""Operations that only move or choose numbers: their results have the scale of their first input."""

RECTIFIERS = {"Relu", "Clip"}
_LINEAR = {"Conv", "Gemm", "MatMul"}
_GIVES_FLOAT = {"Gemm", "MatMul"}
"""Linear layers that integer kernels exist of which give floats."""

_MAX_BIAS = float(2**31 - 1)


@dataclass(frozen=True)
class Stored:
    """How a value is stored as uint8: `value = scale * (stored - zero_point)`."""

    scale: np.float32
    zero_point: np.uint8


def activation_parameters(low: float, high: float) -> Stored:
    """Returns the scale and zero point of a range, which is widened to hold 0, as padding and rectifiers need it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        return Stored(np.float32(1), np.uint8(0))
    return Stored(scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


def linear_nodes(graph: OnnxGraph) -> list[Any]:
    """Returns the convolutions and matrix products on floats; weights of products may be activations too."""
    import onnx

    found = []
    for node in graph.nodes:
        if node.op_type not in _LINEAR or node.input[0] in graph.constants:
            continue
        weights = graph.constants.get(node.input[1])
        if weights is None:
            is_float = node.op_type == "MatMul" and graph.types.get(node.output[0]) == onnx.TensorProto.FLOAT
        else:
            is_float = weights.dtype == np.float32
        if is_float:
            found.append(node)
    return found


def activation_values(graph: OnnxGraph) -> list[str]:
    """Returns the float values that a quantized form of the graph may store, in order; float inputs come first.

    Not among them: what a rectifier alone takes, which is never stored; pixels, whose range is known; what only moves
    numbers; and results of the model that a matrix product gives.
    """
    import onnx

    users = graph.users()
    pixels = {node.output[0] for nodes in _pixels(graph).values() for node in nodes}
    found = [name for name in graph.inputs if graph.types.get(name) == onnx.TensorProto.FLOAT]
    for node in graph.nodes:
        value = node.output[0]
        takers = users.get(value, [])
        if graph.types.get(value) != onnx.TensorProto.FLOAT or value in pixels or node.op_type in _LAYOUT:
            continue
        if node.op_type in {"Cast", "QuantizeLinear", "DequantizeLinear"} or not node.input:
            continue
        if graph.is_output(value):
            if not takers and node.op_type in _GIVES_FLOAT:
                continue
        elif len(takers) == 1 and takers[0].op_type in RECTIFIERS and _limits(graph, takers[0]) is not None:
            continue
        found.append(value)
    return found


def ranges_of_all_values(graph: OnnxGraph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Returns ranges also of values that `activation_values` leaves out, as far as they follow from those given.

    A value that only moves numbers has the range of its source, and one that a rectifier alone takes that of the
    rectifier's result, under whose name it is stored.
    """
    import onnx

    found = dict(ranges)
    for node in graph.nodes:
        if node.op_type in _LAYOUT and node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])
        elif node.op_type == "Cast" and graph.types.get(node.input[0]) == onnx.TensorProto.UINT8:
            found.setdefault(node.output[0], (0.0, 255.0))
    for node in reversed(graph.nodes):
        if node.op_type in RECTIFIERS and node.output[0] in found:
            found.setdefault(node.input[0], found[node.output[0]])
    return found


def quantize_graph(
    graph: OnnxGraph,
    ranges: Mapping[str, tuple[float, float]],
    *,
    float_layers: Collection[str],
    float_nodes: Collection[str] = (),
    reduce_range: bool,
) -> None:
    """Writes the pairs.

    Args:
        graph: Float; changed in place.
        ranges: Lowest and highest number of each value of `activation_values` that is to be stored.
        float_layers: Names of linear layers that stay float, and with them the activation functions after them.
        float_nodes: Names of other nodes that stay float.
        reduce_range: Whether weights keep to 7 bits.

    Raises:
        KeyError: The range of a value is missing.
    """
    _Writer(graph, ranges, {*float_layers, *float_nodes}, reduce_range=reduce_range).write()


class _Writer:
    """One quantization of one graph."""

    def __init__(
        self, graph: OnnxGraph, ranges: Mapping[str, tuple[float, float]], left_float: set[str], *, reduce_range: bool
    ) -> None:
        self._graph = graph
        self._ranges = ranges
        self._levels = 64 if reduce_range else 127
        self._makers = graph.makers()
        self._users = graph.users()
        self._linear = {
            id(node) for node in linear_nodes(graph) if node.name not in left_float and node.input[1] in graph.constants
        }
        self._pixels = {
            value: nodes
            for value, nodes in _pixels(graph).items()
            if all(id(user) in self._linear for user in self._users.get(value, []))
        }
        self._integer: set[int] = set(self._linear)
        self._find_integer(left_float)
        self._stored: dict[str, Stored] = {}
        self._integer_made: set[str] = set()

    def write(self) -> None:
        graph = self._graph
        for node in list(graph.nodes):
            self._choose(node)
        for node in [node for node in graph.nodes if id(node) in self._integer]:
            if id(node) in self._linear:
                self._store_weights(node)
            else:
                self._store_constants(node)
        for value in list(self._stored):
            if value in self._pixels:
                self._write_pixels(value)
            else:
                self._write_pair(value)

    def _find_integer(self, left_float: set[str]) -> None:
        """Adds the nodes without weights that compute on integers: those that follow an integer layer."""
        import onnx

        follows: set[str] = set()
        for node in self._graph.nodes:
            values = [name for name in node.input if name and name not in self._graph.constants]
            if id(node) in self._linear:
                follows.update(node.output)
            elif any(value in follows for value in values):
                takes_integers = node.op_type in ELEMENTWISE or node.op_type == "MatMul"
                is_float = self._graph.types.get(node.output[0]) == onnx.TensorProto.FLOAT
                if takes_integers and is_float and node.name not in left_float:
                    self._integer.add(id(node))
                if node.op_type in (*ELEMENTWISE, *RECTIFIERS, *_LAYOUT):
                    follows.update(node.output)

    def _choose(self, node: Any) -> None:
        """Decides what of a node's inputs and results is stored."""
        if id(node) in self._integer:
            first = node.input[:1] if id(node) in self._linear else node.input
            for value in first:
                if value and value not in self._graph.constants:
                    self._store(value)
            result = self._rectified(node)
            wants_float = node.op_type in _GIVES_FLOAT and id(node) in self._linear
            if not wants_float or any(id(user) in self._integer for user in self._users.get(result, [])):
                self._store(result)
                self._integer_made.add(result)
        elif node.op_type in _LAYOUT and node.input[0] in self._stored:
            self._stored[node.output[0]] = self._stored[node.input[0]]
            if node.input[0] in self._integer_made:
                self._integer_made.add(node.output[0])

    def _rectified(self, node: Any) -> str:
        """Returns what is stored of a node's result: that of its rectifier, if that is all that takes it."""
        result: str = node.output[0]
        takers = self._users.get(result, [])
        if len(takers) == 1 and not self._graph.is_output(result) and takers[0].op_type in RECTIFIERS:
            return str(takers[0].output[0]) if _limits(self._graph, takers[0]) is not None else result
        return result

    def _store(self, value: str) -> None:
        if value in self._stored:
            return
        if value in self._pixels:
            self._stored[value] = Stored(np.float32(1), np.uint8(PIXEL_CENTER))
            return
        maker = self._makers.get(value)
        if maker is not None and maker.op_type in _LAYOUT:
            self._store(maker.input[0])
            self._stored[value] = self._stored[maker.input[0]]
            return
        low, high = self._ranges[value]
        if maker is not None and maker.op_type in RECTIFIERS:
            limits = _limits(self._graph, maker)
            if limits is not None:
                low, high = max(low, limits[0]), min(high, limits[1])
        self._stored[value] = activation_parameters(low, high)

    def _write_pixels(self, value: str) -> None:
        """Lets integer layers take the pixels themselves, with the padding around them rounded to whole pixels."""
        graph = self._graph
        cast, center, *moves = self._pixels[value]
        source = cast.input[0]
        for node in moves:
            for at, name in enumerate(node.input):
                if name == center.output[0]:
                    node.input[at] = source
                elif node.op_type == "Concat" and name in graph.constants:
                    pixels = np.rint(graph.constants[name].astype(np.float64) + PIXEL_CENTER).clip(0, 255)
                    node.input[at] = graph.add_constant(f"{name}/pixels", pixels.astype(np.uint8))
        takers = self._users[value]
        scale, zero_point = self._parameters(value, self._stored[value])
        result = f"{value}/dequantized"
        last = moves[-1].output[0] if moves else source
        graph.add_node(takers[0], "DequantizeLinear", [last, scale, zero_point], result, name=f"{value}/dequantize")
        graph.replace_uses(value, result, of=takers)
        graph.remove(cast)
        graph.remove(center)

    def _write_pair(self, value: str) -> None:
        """Puts a pair behind a value; a rectifier that the range makes needless goes."""
        graph = self._graph
        maker = self._makers.get(value)
        is_integer = value in self._integer_made
        takers = [user for user in graph.nodes if value in user.input]
        if not is_integer:  # what stays float takes the value as it is
            takers = [user for user in takers if id(user) in self._integer or user.op_type in _LAYOUT]
        is_output = is_integer and graph.is_output(value)
        if maker is not None and is_integer and maker.op_type in RECTIFIERS:
            graph.remove(maker)
            source = maker.input[0]
        elif maker is not None and is_output:
            source = f"{value}/float"
            maker.output[:] = [source if name == value else name for name in maker.output]
        else:
            source = value
        before = takers[0] if takers else None
        if not is_integer and self._is_straight(value):
            # One input: a copy. ONNX Runtime would quantize a float layer between pairs again.
            source = graph.add_node(before, "Max", [value], f"{value}/kept_float")
        scale, zero_point = self._parameters(value, self._stored[value])
        stored = graph.add_node(before, "QuantizeLinear", [source, scale, zero_point], f"{value}/quantized")
        result = value if is_output else f"{value}/dequantized"
        graph.add_node(before, "DequantizeLinear", [stored, scale, zero_point], result, name=f"{value}/dequantize")
        graph.replace_uses(value, result, of=takers)

    def _is_straight(self, value: str) -> bool:
        """Whether a value comes from a layer that stays float, with nothing but rectifiers in between."""
        maker = self._makers.get(value)
        while maker is not None and maker.op_type in RECTIFIERS:
            maker = self._makers.get(maker.input[0])
        return maker is not None and maker.op_type in {*_LINEAR, "ConvTranspose"}

    def _parameters(self, value: str, stored: Stored) -> list[str]:
        return [
            self._graph.add_constant(f"{value}/scale", np.array(stored.scale)),
            self._graph.add_constant(f"{value}/zero_point", np.array(stored.zero_point)),
        ]

    def _store_weights(self, node: Any) -> None:
        """Gives a linear layer int8 weights, symmetric for each output channel, and an int32 bias."""
        graph = self._graph
        weights = graph.constants[node.input[1]].astype(np.float64)
        axis = output_axis(node, weights)
        others = tuple(at for at in range(weights.ndim) if at != axis)
        scale = np.abs(weights).max(axis=others) / self._levels
        scale[scale < np.finfo(np.float32).tiny] = 1.0
        taken = float(self._stored[node.input[0]].scale)
        bias = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is not None and attribute(node, "beta", 1.0) == 1.0 and bias.size == scale.size:
            # A bias has the scale of the products; where they are tiny it would not fit into 32 bits.
            scale = np.maximum(scale, np.abs(bias.reshape(-1)) / (taken * _MAX_BIAS) * 1.0001)
        scale = scale.astype(np.float32)
        shape = tuple(-1 if at == axis else 1 for at in range(weights.ndim))
        levels = np.clip(np.rint(weights / scale.reshape(shape)), -self._levels, self._levels).astype(np.int8)
        name = f"{node.name}/weights"
        parts = [levels, scale, np.zeros(len(scale), np.int8)]
        node.input[1] = self._dequantized(node, name, parts, axis=axis)
        if bias is not None and bias.size == scale.size:
            products = (scale * np.float32(taken)).astype(np.float32)
            limit = np.iinfo(np.int32)
            rounded = np.rint(bias.reshape(-1).astype(np.float64) / products).clip(limit.min, limit.max)
            stored = [rounded.astype(np.int32), products, np.zeros(len(scale), np.int32)]
            node.input[2] = self._dequantized(node, f"{node.name}/bias", stored, axis=0)

    def _store_constants(self, node: Any) -> None:
        """Stores the constants that an elementwise node takes; a single number is stored exactly."""
        for at, name in enumerate(node.input):
            values = self._graph.constants.get(name)
            if values is None or values.dtype != np.float32:
                continue
            if values.size == 1:
                number = float(values.reshape(-1)[0])
                stored = Stored(np.float32(abs(number) or 1.0), np.uint8(number < 0))
                levels = np.full(values.shape, number > 0).astype(np.uint8)
            else:
                stored = activation_parameters(float(values.min()), float(values.max()))
                levels = np.clip(np.rint(values / stored.scale) + stored.zero_point, 0, 255).astype(np.uint8)
            parts: list[Array] = [levels, np.array(stored.scale), np.array(stored.zero_point)]
            node.input[at] = self._dequantized(node, f"{node.name}/constant_{at}", parts)

    def _dequantized(self, node: Any, name: str, parts: Sequence[Array], **attributes: Any) -> str:
        graph = self._graph
        stored = [
            graph.add_constant(f"{name}/{part}", values)
            for part, values in zip(("levels", "scale", "zero_point"), parts, strict=True)
        ]
        return graph.add_node(node, "DequantizeLinear", stored, f"{name}/dequantized", **attributes)


def _pixels(graph: OnnxGraph) -> dict[str, list[Any]]:
    """Returns the values that are 8-bit pixels less `PIXEL_CENTER`, each with the nodes it comes from.

    These are a cast, a subtraction, and what then moves the pixels or writes padding around them.
    """
    import onnx

    makers, users = graph.makers(), graph.users()
    found = {}
    for center in graph.nodes:
        cast = makers.get(center.input[0]) if center.op_type == "Sub" else None
        if cast is None or cast.op_type != "Cast" or graph.scalar(center.input[1]) != PIXEL_CENTER:
            continue
        if graph.types.get(cast.input[0]) != onnx.TensorProto.UINT8 or len(users[cast.output[0]]) > 1:
            continue
        nodes = [cast, center]
        takers = users.get(center.output[0], [])
        while len(takers) == 1 and _moves_pixels(graph, takers[0], nodes[-1].output[0]):
            nodes.append(takers[0])
            takers = users.get(takers[0].output[0], [])
        found[nodes[-1].output[0]] = nodes
    return found


def _moves_pixels(graph: OnnxGraph, node: Any, value: str) -> bool:
    if node.op_type == "Concat":
        return all(name == value or name in graph.constants for name in node.input)
    return node.op_type in _LAYOUT and node.input[0] == value


def _limits(graph: OnnxGraph, rectifier: Any) -> tuple[float, float] | None:
    """Returns between what a rectifier keeps numbers, if that is a range around 0 that is stored in the graph."""
    limits = [0.0, np.inf] if rectifier.op_type == "Relu" else [-np.inf, np.inf]
    for at, name in enumerate(rectifier.input[1:]):
        if name:
            number = graph.scalar(name)
            if number is None:
                return None
            limits[at] = number
    for at, name in enumerate(("min", "max")):  # attributes before operator set 11
        limits[at] = attribute(rectifier, name, limits[at])
    return (limits[0], limits[1]) if limits[0] <= 0 <= limits[1] else None

"""Memory of a network on a board: what its activations need at the worst moment, and what its file weighs.

**Peak activation memory** is the largest sum, over the operations in the order of the graph, of all tensors that are
alive while one runs: what it reads, what it writes, and what a later one still needs. Tensors are those that are left
after what every runtime does when it loads a file:

- Batch normalization is folded into the convolution before it, as is a factor for each channel. Where there is none
  before it, it is an operation that writes over its input.
- ReLU and ReLU6 are part of the convolution or sum before them. Any other activation is an operation that reads one
  tensor and writes another: LiteRT and ONNX Runtime keep it (`x * sigmoid(x)` writes over `sigmoid(x)`). OpenVINO fuses
  those too, and needs less.
- Dropout is gone; reshaping moves nothing.
- A sum or product of equal shapes writes over an operand that nothing later needs. One that broadcasts, such as the
  gate of squeeze-and-excite, does not.
- The caller owns inputs and outputs: an input is alive from the first operation to the last, an output from the
  operation that writes it.
- The image is uint8, one byte a value. The network scales it in float32, in an int8 file too, which then quantizes
  it; the outputs of an int8 file are float32 again. All else takes 4 bytes a value in float32 and 1 byte in int8.

No allocation can do with less in that order. LiteRT's arena (without delegate) is equal to it to the byte in most
networks; where it is larger, by 6 and 11 % in two of those tried, tensors of different sizes did not fit into each
other's gaps (`tests/integration/test_memory_arena.py`). Scratch memory of operations is not in it, such as the copied
patches of a convolution (im2col) in LiteRT's kernels without XNNPACK, nor are the weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, get_args

from models.accounting import count_parameters

if TYPE_CHECKING:
    import keras

Precision = Literal["float32", "int8"]
"""What a file for a board stores and computes in."""

_VALUE_BYTES = {"float32": 4, "int8": 1}

# Layers, and operations of keras.ops, by the name of their class.
_GONE = {"ActivityRegularization", "AlphaDropout", "Dropout", "ExpandDims", "Flatten", "GaussianDropout",
         "GaussianNoise", "Identity", "Reshape", "SpatialDropout1D", "SpatialDropout2D", "Squeeze"}  # fmt: skip
_LINEAR = {"Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv1D", "DepthwiseConv2D"}
_AFFINE = {"BatchNormalization", "Rescaling"}
_ELEMENTWISE = {"Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"}
_TAKES_RELU = _LINEAR | _AFFINE | {"Add", "Multiply", "Subtract"}
_HIDES_OPERATIONS = {"Attention", "AdditiveAttention", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "Functional", "GRU",
                     "GroupedQueryAttention", "LSTM", "MultiHeadAttention", "RNN", "SeparableConv1D", "SeparableConv2D",
                     "Sequential", "SimpleRNN", "TimeDistributed"}  # fmt: skip

_QUANTIZED_CHANNEL_BYTES = 28
"""Of an output channel of a layer in an int8 TFLite file: the bias in int32; a scale in float32 and a zero point in
int64 for the channel's weights, and the same again for its bias."""


@dataclass(frozen=True, kw_only=True)
class MemoryStep:
    """The moment at which one operation runs.

    Args:
        layer: The layer that the operation comes from.
        alive_bytes: All tensors that are alive, together.
    """

    layer: str
    alive_bytes: int


def peak_activation_bytes(model: keras.Model, *, precision: Precision = "float32") -> int:
    """Peak activation memory of a network for one image; arguments and errors as in `memory_steps`."""
    return peak_step(model, precision=precision).alive_bytes


def peak_step(model: keras.Model, *, precision: Precision = "float32") -> MemoryStep:
    """The first moment at which most activation memory is needed; arguments and errors as in `memory_steps`."""
    return max(memory_steps(model, precision=precision), key=lambda step: step.alive_bytes)


def memory_steps(model: keras.Model, *, precision: Precision = "float32") -> list[MemoryStep]:
    """The activation memory at each operation that is left after loading, in the order of the graph.

    Args:
        model: A flat functional model with fixed sizes that calls each layer once; any number of inputs and outputs.
        precision: Of the file: `float32`, or `int8` for 8-bit weights and activations.

    Returns:
        One row for each operation; layers that are folded, fused or gone have none. A layer with an activation that
        can't be fused has two.

    Raises:
        ValueError: If the precision is unknown, a size is open, a layer holds other layers or a recurrence, or a
            layer is called more than once.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(get_args(Precision))}.")
    lowering = _Lowering(model, precision)
    return _alive(lowering.operations, lowering.owned_by_caller)


def file_size_bytes(model: keras.Model, *, precision: Precision) -> int:
    """The weights of a file for a board, after folding: an estimate of its size that leaves out the graph.

    The graph takes 10 KB in the smallest networks and up to a few percent in the others.

    In float32 four bytes a parameter. In int8 one byte a weight, and 28 bytes a channel of a layer's output: the bias
    in int32, and the scales and zero points that a TFLite file holds for the weights and the bias.

    Args:
        model: As in `memory_steps`.
        precision: Of the file.

    Raises:
        ValueError: As in `memory_steps` and `models.accounting.layer_table`.
    """
    folded = count_parameters(model, batch_norm="folded")
    if precision == "float32":
        return 4 * folded
    if precision != "int8":
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(get_args(Precision))}.")
    channels = sum(_output_channels(layer) for layer in model.layers)
    weights = sum(math.prod(weight.shape) for layer in model.layers for weight in _kernels(layer))
    return int(weights + _QUANTIZED_CHANNEL_BYTES * channels)


def _kernels(layer: keras.layers.Layer) -> list[keras.Variable]:
    return [weight for weight in layer.weights if len(weight.shape) > 1]


def _output_channels(layer: keras.layers.Layer) -> int:
    return int(layer.output.shape[-1]) if _kernels(layer) else 0


@dataclass
class _Buffer:
    """Memory of one tensor.

    Args:
        size_bytes: Of the tensor.
        first: The operation that writes it, counted from 0.
        last: The last operation that needs it.
    """

    size_bytes: int
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class _Operation:
    """What is left of a layer.

    Args:
        layer: The layer's name.
        reads: Buffers.
        writes: A buffer made for it.
        in_place: Whether it may write over what it reads, where all of that has the size of the result.
    """

    layer: str
    reads: tuple[_Buffer, ...]
    writes: _Buffer
    in_place: bool = False


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph.

    Args:
        buffer: Where it is.
        folds: Whether it comes straight from a linear layer, which takes in a factor and an offset for each channel.
        takes_relu: Whether the operation that writes it takes in a ReLU.
    """

    buffer: _Buffer
    folds: bool = False
    takes_relu: bool = False


class _Lowering:
    """The operations that are left of a model.

    Args:
        model: See `memory_steps`.
        precision: See `memory_steps`.
    """

    def __init__(self, model: keras.Model, precision: Precision) -> None:
        self.operations: list[_Operation] = []
        self.owned_by_caller: list[tuple[_Buffer, bool]] = []
        """Buffers of inputs and outputs, and whether it is an input."""
        self._precision = precision
        self._values: dict[int, _Value] = {}
        self._uses = Counter(id(tensor) for operation in model.operations for tensor in _inputs(operation))
        self._uses.update(id(tensor) for tensor in model.outputs)
        for operation in model.operations:
            self._lower(operation)
        for tensor in model.outputs:
            buffer = self._value(tensor, "The outputs").buffer
            if precision == "int8":
                buffer = self._emit(model.operations[-1].name, [buffer], 4 * _size(tensor, model.name))
            self.owned_by_caller.append((buffer, False))

    def _lower(self, operation: Any) -> None:
        name, kind = operation.name, type(operation).__name__
        if kind in _HIDES_OPERATIONS:
            raise ValueError(
                f"Layer {name!r} is a {kind}, which holds operations of its own: expected a flat model of layers that "
                "are one operation each."
            )
        if kind == "InputLayer":
            self._values[id(operation.output)] = self._input(operation)
            return
        outputs = operation.output if isinstance(operation.output, list | tuple) else [operation.output]
        inputs = [self._value(tensor, f"Layer {name!r}") for tensor in _inputs(operation)]
        alone = all(self._uses[id(tensor)] == 1 for tensor in _inputs(operation))
        if kind in _GONE or (kind in _AFFINE and inputs[0].folds and alone):
            self._values[id(outputs[0])] = inputs[0] if alone else _Value(inputs[0].buffer)
            return
        activation = _activation(operation)
        if kind in {"Activation", "ReLU"}:
            fused = activation == "linear" or (_is_fusible(activation) and inputs[0].takes_relu and alone)
            buffer = inputs[0].buffer if fused else self._write(operation, inputs, outputs[0])
            self._values[id(outputs[0])] = _Value(buffer)
            return
        for output in outputs:
            buffer = self._write(operation, inputs, output)
            own = activation == "linear"
            if not (own or _is_fusible(activation)):
                buffer = self._write(operation, [_Value(buffer)], output)
            self._values[id(output)] = _Value(buffer, folds=own and kind in _LINEAR, takes_relu=kind in _TAKES_RELU)

    def _write(self, operation: Any, inputs: Sequence[_Value], output: Any) -> _Buffer:
        size = _size(output, operation.name) * _VALUE_BYTES[self._precision]
        reads = [value.buffer for value in inputs]
        kind = type(operation).__name__
        if kind == "Rescaling" and self._precision == "int8" and "int" in _inputs(operation)[0].dtype:
            # No runtime scales uint8 pixels in int8: they become float32, and that is quantized.
            reads = [self._emit(operation.name, reads, 4 * size)]
        return self._emit(operation.name, reads, size, in_place=kind in _AFFINE | _ELEMENTWISE)

    def _emit(self, layer: str, reads: Iterable[_Buffer], size_bytes: int, *, in_place: bool = False) -> _Buffer:
        writes = _Buffer(size_bytes)
        self.operations.append(_Operation(layer, tuple(reads), writes, in_place))
        return writes

    def _input(self, layer: Any) -> _Value:
        tensor = layer.output
        integer = "int" in tensor.dtype
        buffer = _Buffer(_size(tensor, layer.name) * (1 if tensor.dtype in {"uint8", "int8"} else 4))
        self.owned_by_caller.append((buffer, True))
        if self._precision == "int8" and not integer:
            return _Value(self._emit(layer.name, [buffer], _size(tensor, layer.name)))
        return _Value(buffer)

    def _value(self, tensor: Any, reader: str) -> _Value:
        value = self._values.get(id(tensor))
        if value is None:
            raise ValueError(
                f"{reader} reads a tensor that no layer of the model writes at its first call: expected a flat model "
                "that calls each layer once."
            )
        return value


def _inputs(operation: Any) -> list[Any]:
    """Symbolic inputs; none of an input layer."""
    if type(operation).__name__ == "InputLayer":
        return []
    tensors = operation.input
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _activation(operation: Any) -> str:
    """Name of the nonlinearity that a layer has or is; `linear` without one."""
    if type(operation).__name__ == "ReLU":
        usual = operation.max_value in (None, 6.0) and not operation.negative_slope and not operation.threshold
        return "relu" if usual else "clipped"
    function = getattr(operation, "activation", None)
    return "linear" if function is None else str(getattr(function, "__name__", type(function).__name__))


def _is_fusible(activation: str) -> bool:
    return activation in {"relu", "relu6"}


def _size(tensor: Any, name: str) -> int:
    """Number of values for one image."""
    shape = tuple(tensor.shape[1:])
    if None in shape:
        raise ValueError(f"{name!r} has a tensor of shape {shape}, expected fixed sizes: build it with a fixed input.")
    return math.prod(shape)


def _alive(operations: Sequence[_Operation], owned_by_caller: Iterable[tuple[_Buffer, bool]]) -> list[MemoryStep]:
    """Sums what is alive at each operation."""
    owned = {id(buffer) for buffer, _ in owned_by_caller}
    buffers = [buffer for buffer, is_input in owned_by_caller if is_input]
    for index, operation in enumerate(operations):
        operation.writes.first = index
        buffers.append(operation.writes)
        for buffer in (*operation.reads, operation.writes):
            buffer.last = index
    for buffer, _ in owned_by_caller:
        buffer.last = len(operations) - 1
    for index, operation in enumerate(operations):
        over = next(
            (buffer for buffer in operation.reads if _can_be_overwritten(buffer, operation, index, owned)), None
        )
        if over is not None:
            over.last = index - 1
    changes = [0] * (len(operations) + 1)
    for buffer in buffers:
        changes[buffer.first] += buffer.size_bytes
        changes[buffer.last + 1] -= buffer.size_bytes
    return [
        MemoryStep(layer=operation.layer, alive_bytes=alive)
        for operation, alive in zip(operations, accumulate(changes), strict=False)
    ]


def _can_be_overwritten(buffer: _Buffer, operation: _Operation, index: int, owned: Iterable[int]) -> bool:
    return (
        operation.in_place
        and all(read.size_bytes == operation.writes.size_bytes for read in operation.reads)
        and buffer.last == index
        and id(buffer) not in owned
    )

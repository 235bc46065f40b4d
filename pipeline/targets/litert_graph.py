"""The graph of a `.tflite` file, for changing it: tensors are found by name, operations by what they give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelFileError

Array = npt.NDArray[Any]

NO_ACTIVATION, RELU, RELU6 = 0, 1, 3
"""Of `ActivationFunctionType`, the functions that an operation applies to its own result."""

WEIGHTS_AT = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1, "BATCH_MATMUL": 1}
"""Linear operations, and where their weights are among the inputs. The bias, if any, follows the activations."""

_OPTIONS = {
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "QUANTIZE": "QuantizeOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "MEAN": "ReducerOptions",
}
"""The kinds of operations that can be added, and the tables that hold their options."""


class Graph:
    """The first subgraph of a file; the others are kept as they are.

    Args:
        content: The file.

    Raises:
        ModelFileError: It is no TFLite flatbuffer, or holds no graph.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        if content[4:8] != b"TFL3":
            raise ModelFileError(
                f"This is no TensorFlow Lite file: expected the identifier TFL3 at byte 4, found {content[4:8]!r}."
            )
        self._schema = schema
        self.model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        if not self.model.subgraphs:
            raise ModelFileError("The file holds no graph.")
        self._subgraph = self.model.subgraphs[0]
        self._codes = {number: name for name, number in vars(schema.BuiltinOperator).items() if type(number) is int}
        self._types = {number: name for name, number in vars(schema.TensorType).items() if type(number) is int}

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Reads a file."""
        return cls(path.read_bytes())

    def content(self) -> bytes:
        """Returns the file. Tensors and buffers that nothing uses are left out; all data is inside the flatbuffer."""
        from ai_edge_litert.tools import flatbuffer_utils

        self._prune()
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    def write(self, path: Path) -> None:
        """Writes the file."""
        path.write_bytes(self.content())

    @property
    def operators(self) -> list[Any]:
        """In the order in which they run; not to be changed while iterating."""
        operators: list[Any] = self._subgraph.operators
        return operators

    @property
    def inputs(self) -> list[int]:
        """Indices of the tensors that are fed."""
        return [int(index) for index in self._subgraph.inputs]

    @property
    def outputs(self) -> list[int]:
        """Indices of the tensors that are the result."""
        return [int(index) for index in self._subgraph.outputs]

    def code(self, operator: Any) -> str:
        """Returns the kind of an operation, such as CONV_2D; CUSTOM for those that are not built in."""
        entry = self.model.operatorCodes[operator.opcodeIndex]
        return str(self._codes[max(entry.builtinCode, entry.deprecatedBuiltinCode)])

    def is_linear(self, operator: Any) -> bool:
        """Whether it is a convolution or a matrix product."""
        return self.code(operator) in WEIGHTS_AT

    def name(self, index: int) -> str:
        """Returns the name of a tensor."""
        return str(self._subgraph.tensors[index].name.decode())

    def index(self, name: str) -> int:
        """Returns the index of the tensor with that name.

        Raises:
            KeyError: There is none.
        """
        for index, tensor in enumerate(self._subgraph.tensors):
            if tensor.name.decode() == name:
                return index
        raise KeyError(name)

    def holds(self, name: str) -> bool:
        """Whether there is a tensor with that name."""
        return any(tensor.name.decode() == name for tensor in self._subgraph.tensors)

    def type(self, index: int) -> str:
        """Returns the element type of a tensor, such as `float32`."""
        return str(self._types[self._subgraph.tensors[index].type]).lower()

    def shape(self, index: int) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        sizes = self._subgraph.tensors[index].shape
        return () if sizes is None else tuple(int(size) for size in sizes)

    def num_tensors(self) -> int:
        """Returns how many tensors there are."""
        return len(self._subgraph.tensors)

    def constant(self, index: int) -> Array | None:
        """Returns a copy of the values that the file stores for a tensor; None for what is computed or fed."""
        data = self.model.buffers[self._subgraph.tensors[index].buffer].data if index >= 0 else None
        if data is None or not len(data):
            return None
        return np.frombuffer(bytes(data), self.type(index)).reshape(self.shape(index)).copy()

    def scalar(self, index: int) -> float | None:
        """Returns the value of a constant of one element; None for anything else."""
        values = self.constant(index)
        return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None

    def quantization(self, index: int) -> tuple[Array, Array] | None:
        """Returns scales and zero points of a tensor; None where it holds its values themselves."""
        found = self._subgraph.tensors[index].quantization
        if found is None or found.scale is None or not len(found.scale):
            return None
        return np.asarray(found.scale, np.float32), np.asarray(found.zeroPoint, np.int64)

    def producer(self, index: int) -> Any | None:
        """Returns the operation that gives a tensor; None for constants and inputs."""
        return next((operator for operator in self.operators if index in operator.outputs), None)

    def consumers(self, index: int) -> list[Any]:
        """Returns the operations that take a tensor."""
        return [operator for operator in self.operators if index in operator.inputs]

    def is_only_for(self, index: int, operator: Any) -> bool:
        """Whether a tensor is taken by that operation and by nothing else."""
        takers = self.consumers(index)
        return len(takers) == 1 and takers[0] is operator and index not in self.outputs

    def activation(self, operator: Any) -> int | None:
        """Returns the function that the operation applies to its result; None where it can't have one."""
        return getattr(operator.builtinOptions, "fusedActivationFunction", None)

    def add_constant(self, name: str, values: Array) -> int:
        """Adds a tensor with stored values and returns its index."""
        index = self.add_tensor(name, values.shape, values.dtype.name)
        self.set_constant(index, values)
        return index

    def set_constant(self, index: int, values: Array) -> None:
        """Gives a tensor new values, in a buffer that no other tensor reads."""
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self._subgraph.tensors[index].buffer = len(self.model.buffers) - 1

    def store(self, operator: Any, place: int, values: Array) -> None:
        """Gives an operation's input new values; other operations that read the old ones keep them.

        Args:
            operator: Of this graph.
            place: Among its inputs; the one after the last, or an empty one, is added.
            values: Of the element type that is to be stored.
        """
        inputs = [int(index) for index in operator.inputs] + [-1] * (place + 1 - len(operator.inputs))
        if inputs[place] >= 0 and self.is_only_for(inputs[place], operator):
            self.set_constant(inputs[place], values)
            return
        inputs[place] = self.add_constant(f"{self.name(operator.outputs[0])}/input{place}", values)
        operator.inputs = inputs

    def add_tensor(self, name: str, shape: Sequence[int], dtype: str) -> int:
        """Adds a tensor that is computed or fed, and returns its index.

        Raises:
            ValueError: There is a tensor with that name already.
        """
        if any(tensor.name == name.encode() for tensor in self._subgraph.tensors):
            raise ValueError(f"the graph has a tensor {name} already; take another name")
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), [int(size) for size in shape], 0
        tensor.type = getattr(self._schema.TensorType, dtype.upper())
        tensor.hasRank = True
        self._subgraph.tensors.append(tensor)
        return len(self._subgraph.tensors) - 1

    def rename(self, index: int, name: str) -> None:
        """Gives a tensor another name."""
        self._subgraph.tensors[index].name = name.encode()

    def set_type(self, index: int, dtype: str, *, scale: float, zero_point: int) -> None:
        """Makes a tensor one of integers with one scale and one zero point."""
        tensor, parameters = self._subgraph.tensors[index], self._schema.QuantizationParametersT()
        parameters.scale, parameters.zeroPoint = [scale], [zero_point]
        tensor.type, tensor.quantization = getattr(self._schema.TensorType, dtype.upper()), parameters

    def set_inputs(self, old: int, new: int) -> None:
        """Feeds another tensor in the place of one, under the same name in the signatures."""
        self._subgraph.inputs = [new if index == old else index for index in self.inputs]
        for entry in self._signature_entries("inputs"):
            if entry.tensorIndex == old:
                entry.tensorIndex = new

    def add_output(self, index: int) -> None:
        """Makes a tensor part of the result, though of no signature."""
        if index not in self.outputs:
            self._subgraph.outputs = [*self.outputs, index]

    def insert(
        self, before: Any, code: str, inputs: Sequence[int], output: int, *, activation: int = NO_ACTIVATION
    ) -> Any:
        """Adds an operation of one of the kinds in `_OPTIONS` in front of another and returns it."""
        operator, schema = self._schema.OperatorT(), self._schema
        name = _OPTIONS[code]
        operator.opcodeIndex = self._opcode(code)
        operator.inputs, operator.outputs = list(inputs), [output]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        operator.builtinOptions = getattr(schema, f"{name}T")()
        if activation:
            operator.builtinOptions.fusedActivationFunction = activation
        position = next(place for place, other in enumerate(self.operators) if other is before)
        self.operators.insert(position, operator)
        return operator

    def remove(self, operator: Any) -> None:
        """Takes an operation out; its tensors stay until the file is written."""
        position = next(place for place, other in enumerate(self.operators) if other is operator)
        del self.operators[position]

    def _opcode(self, code: str) -> int:
        number = getattr(self._schema.BuiltinOperator, code)
        for place, entry in enumerate(self.model.operatorCodes):
            if max(entry.builtinCode, entry.deprecatedBuiltinCode) == number:
                return place
        entry = self._schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = number, min(number, 127), 1
        self.model.operatorCodes.append(entry)
        return len(self.model.operatorCodes) - 1

    def _signature_entries(self, *kinds: str) -> Iterable[Any]:
        for signature in self.model.signatureDefs or ():
            if signature.subgraphIndex == 0:
                for kind in kinds:
                    yield from getattr(signature, kind) or ()

    def _prune(self) -> None:
        """Drops tensors and buffers that nothing refers to."""
        used = {*self.inputs, *self.outputs}
        for operator in self.operators:
            for indices in (operator.inputs, operator.outputs, operator.intermediates):
                used.update(int(index) for index in (indices if indices is not None else ()) if index >= 0)
        kept = [index for index in range(self.num_tensors()) if index in used]
        place = {old: new for new, old in enumerate(kept)} | {-1: -1}
        self._subgraph.tensors = [self._subgraph.tensors[index] for index in kept]
        self._subgraph.inputs = [place[index] for index in self.inputs]
        self._subgraph.outputs = [place[index] for index in self.outputs]
        for operator in self.operators:
            for kind in ("inputs", "outputs", "intermediates"):
                indices = getattr(operator, kind)
                if indices is not None:
                    setattr(operator, kind, [place[int(index)] for index in indices])
        for entry in self._signature_entries("inputs", "outputs"):
            entry.tensorIndex = place[entry.tensorIndex]
        self._prune_buffers()

    def _prune_buffers(self) -> None:
        holders = [tensor for graph in self.model.subgraphs for tensor in graph.tensors or ()]
        holders += list(self.model.metadata or ())
        used = {0, *(holder.buffer for holder in holders)}
        kept = [index for index in range(len(self.model.buffers)) if index in used]
        place = {old: new for new, old in enumerate(kept)}
        self.model.buffers = [self.model.buffers[index] for index in kept]
        for holder in holders:
            holder.buffer = place[holder.buffer]

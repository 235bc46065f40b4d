"""Reads `.tflite` files; the interpreter is not loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import ModelFileError
from pipeline.targets.base import GraphSummary, LinearOperation, TensorDescription, summarize

_LINEAR = {
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "TRANSPOSE_CONV",
    "CONV_3D",
    "CONV_3D_TRANSPOSE",
    "BATCH_MATMUL",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "LSTM",
}
_WEIGHTS_AT = {"TRANSPOSE_CONV": (2, 1), "CONV_3D_TRANSPOSE": (2, 1)}
"""Where the activations and the weights are among an operation's inputs; elsewhere first and second."""

_LAYOUT = {"RESHAPE", "TRANSPOSE", "DEQUANTIZE"}
"""Operations between stored weights and the operation that takes them."""


class TFLiteFile:
    """A flatbuffer, read with the schema that ships with the runtime.

    Args:
        path: The file.

    Raises:
        ModelFileError: It is no TFLite flatbuffer, or holds no graph.
    """

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        content = path.read_bytes()
        if content[4:8] != b"TFL3":
            raise ModelFileError(
                f"{path} is no TensorFlow Lite file: expected the identifier TFL3 at byte 4, found {content[4:8]!r}."
            )
        self._path = path
        self._model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        self._types = _names(schema.TensorType)
        self._codes = _names(schema.BuiltinOperator)
        if not self._model.subgraphs:
            raise ModelFileError("The file holds no graph.")
        self._graph = self._model.subgraphs[0]

    def summary(self) -> GraphSummary:
        """Returns what all subgraphs hold; inputs and outputs are those of the first."""
        weights: dict[str, int] = {}
        for graph in self._model.subgraphs:
            for tensor in _some(graph.tensors):
                data = self._model.buffers[tensor.buffer].data
                if data is not None and len(data):
                    weights[self._type(tensor)] = weights.get(self._type(tensor), 0) + len(data)
        graphs = self._model.subgraphs
        return summarize(
            self._path,
            format_name="tflite",
            inputs=self._describe(self._graph.inputs, "inputs"),
            outputs=self._describe(self._graph.outputs, "outputs"),
            operations=[self._code(operator) for graph in graphs for operator in _some(graph.operators)],
            tensor_types=[self._type(tensor) for graph in graphs for tensor in _some(graph.tensors)],
            weight_bytes=weights,
            linear=[operation for graph in graphs for operation in self._linear(graph)],
        )

    def tensor_names(self) -> dict[str, str]:
        """Returns the name of the tensor behind each input and output of the summary, by the name there."""
        found = {}
        for kind in ("inputs", "outputs"):
            indices = _some(getattr(self._graph, kind))
            for description, index in zip(self._describe(indices, kind), indices, strict=True):
                found[description.name] = self._graph.tensors[index].name.decode()
        return found

    def signature_key(self) -> str | None:
        """Returns the name of the file's only signature; None where it has none or several."""
        signatures = _some(self._model.signatureDefs)
        return str(signatures[0].signatureKey.decode()) if len(signatures) == 1 else None

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes that the inputs have when the file is loaded: free dimensions have a size there, too."""
        indices = _some(self._graph.inputs)
        return {
            description.name: tuple(int(size) for size in _some(self._graph.tensors[index].shape))
            for description, index in zip(self._describe(indices, "inputs"), indices, strict=True)
        }

    def _linear(self, graph: Any) -> list[LinearOperation]:
        producers = {index: operator for operator in _some(graph.operators) for index in _some(operator.outputs)}
        found = []
        for operator in _some(graph.operators):
            code = self._code(operator)
            if code not in _LINEAR:
                continue
            at, weights_at = _WEIGHTS_AT.get(code, (0, 1))
            activations = self._type(graph.tensors[operator.inputs[at]])
            weights = self._type(graph.tensors[operator.inputs[weights_at]])
            stored = self._stored(graph, producers, operator.inputs[weights_at])
            if weights.startswith("float"):
                weights = stored
            elif weights == "int8" and activations == "float32":
                activations = "dynamic"
            name = graph.tensors[operator.outputs[0]].name.decode()
            found.append(LinearOperation(name, weights, "float" if activations.startswith("float") else activations))
        return found

    def _stored(self, graph: Any, producers: dict[int, Any], index: int) -> str:
        """Returns the element type that weights are stored as, before they are expanded."""
        kind = self._type(graph.tensors[index])
        maker = producers.get(index)
        while maker is not None and self._code(maker) in _LAYOUT:
            index = maker.inputs[0]
            if self._code(maker) == "DEQUANTIZE":
                return self._type(graph.tensors[index])
            maker = producers.get(index)
        return kind

    def _describe(self, indices: Iterable[int] | None, kind: str) -> list[TensorDescription]:
        """Describes inputs or outputs under the names of the signature, where the file has exactly one.

        A signature may give one tensor several names, and then lists it as often.
        """
        names: dict[int, list[str]] = {}
        signatures = _some(self._model.signatureDefs)
        if len(signatures) == 1:
            for entry in _some(getattr(signatures[0], kind)):
                names.setdefault(entry.tensorIndex, []).append(str(entry.name.decode()))
        found = []
        for index in _some(indices):
            tensor = self._graph.tensors[index]
            sizes = tensor.shapeSignature if tensor.shapeSignature is not None else _some(tensor.shape)
            left = names.get(index)
            found.append(
                TensorDescription(
                    left.pop(0) if left else tensor.name.decode(),
                    self._type(tensor),
                    tuple(int(size) for size in sizes),
                )
            )
        return found

    def _type(self, tensor: Any) -> str:
        return self._types.get(tensor.type, f"type{tensor.type}").lower()

    def _code(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        if code.customCode:
            return f"CUSTOM:{code.customCode.decode()}"
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return self._codes.get(number, f"OPERATOR_{number}")


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _some(values: Any) -> Any:
    """Returns a vector of a flatbuffer, which is None where it is empty."""
    return [] if values is None else values

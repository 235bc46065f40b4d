"""Reads `.onnx` files; no session is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ModelFileError
from pipeline.targets.base import GraphSummary, LinearOperation, TensorDescription, summarize
from pipeline.targets.onnx_names import all_graphs

_LINEAR = {"Conv", "Gemm", "MatMul", "ConvTranspose", "GRU", "LSTM", "RNN"}
_INTEGER = {"QLinearConv", "QLinearMatMul", "QGemm"}
_DYNAMIC = {"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
_LAYOUT = {"Transpose", "Reshape", "Cast", "Identity", "Unsqueeze", "Squeeze"}
"""Operations between a DequantizeLinear of weights and the operation that takes them."""


def load_model(path: Path) -> Any:
    """Returns the model with its external data.

    Raises:
        ModelFileError: It is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path))
    except DecodeError as error:
        raise ModelFileError(f"{path} is no ONNX file: {error}.") from error
    if not model.graph.node or not model.graph.output:
        raise ModelFileError(f"{path} is no ONNX model: it holds no graph.")
    return model


def summary(path: Path) -> GraphSummary:
    """Returns what a model and the bodies of its loops and branches hold.

    Raises:
        ModelFileError: It is no ONNX model.
    """
    model = load_model(path)
    graphs = list(all_graphs(model.graph))
    constants = [constant for graph in graphs for constant in _constants(graph)]
    weights: dict[str, int] = {}
    for constant in constants:
        name = type_name(constant.data_type)
        weights[name] = weights.get(name, 0) + _size(constant)
    types = [number for graph in graphs for number in _types(graph).values()]
    stored = {constant.name for constant in model.graph.initializer}
    return summarize(
        path,
        format_name="onnx",
        inputs=[describe(value) for value in model.graph.input if value.name not in stored],
        outputs=[describe(value) for value in model.graph.output],
        operations=[node.op_type for graph in graphs for node in graph.node],
        tensor_types=[type_name(number) for number in types],
        weight_bytes=weights,
        linear=_Linear(model).operations(),
        external_files=external_files(path),
    )


def external_files(path: Path) -> list[Path]:
    """Returns the files beside a model that hold its constants; empty where the model holds them itself."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    model = onnx.load(str(path), load_external_data=False)
    names = {
        entry.value
        for graph in all_graphs(model.graph)
        for constant in _constants(graph)
        if uses_external_data(constant)
        for entry in constant.external_data
        if entry.key == "location"
    }
    return [path.parent / name for name in sorted(names)]


def type_name(number: int) -> str:
    """Returns the name of an element type; `unknown` of one that is not stated."""
    import onnx

    if number == onnx.TensorProto.STRING:
        return "string"
    return str(onnx.helper.tensor_dtype_to_np_dtype(number)) if number else "unknown"


def describe(value: Any) -> TensorDescription:
    """Returns an input or output as the file describes it."""
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorDescription(value.name, type_name(tensor.elem_type), shape)


def _constants(graph: Any) -> Iterator[Any]:
    """Yields the stored tensors: initializers and the values of Constant nodes."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _size(constant: Any) -> int:
    import onnx

    if constant.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in constant.string_data)
    return int(np.prod(constant.dims, dtype=np.int64)) * int(
        onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).itemsize
    )


def _types(graph: Any) -> dict[str, int]:
    """Returns the element types that the file states, by value."""
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types.update({constant.name: constant.data_type for constant in graph.initializer})
    return types


class _Linear:
    """Finds what linear operations are computed on."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._producers: dict[str, Any] = {}
        self._known: dict[str, int] = {}
        for graph in all_graphs(model.graph):
            self._learn(graph)
        self._inferred = False

    def operations(self) -> list[LinearOperation]:
        """Returns those of all graphs."""
        found = []
        for graph in all_graphs(self._model.graph):
            for node in graph.node:
                name = node.name or f"{node.op_type} {node.output[0]}"
                if node.op_type in _INTEGER:
                    found.append(LinearOperation(name, "int8", "int8"))
                elif node.op_type in _DYNAMIC:
                    found.append(LinearOperation(name, "int8", "dynamic"))
                elif node.op_type in _LINEAR:
                    weights, from_integer = self._stored_type(node.input[1])
                    activations, quantized = self._stored_type(node.input[0])
                    # What comes through a DequantizeLinear to float weights is computed on as floats.
                    quantized = quantized and from_integer
                    activations = ("int16" if "16" in activations else "int8") if quantized else "float"
                    found.append(LinearOperation(name, "int8" if from_integer else weights, activations))
        return found

    def _stored_type(self, name: str) -> tuple[str, bool]:
        """Returns the element type a value is stored as, looking through DequantizeLinear, and whether it did."""
        producer = self._producers.get(name)
        source = producer
        while source is not None and source.op_type in _LAYOUT:
            source = self._producers.get(source.input[0])
        if source is not None and source.op_type == "DequantizeLinear":
            zero_point = source.input[2] if len(source.input) > 2 else source.input[0]
            return type_name(self._type(zero_point) or self._type(source.input[0])), True
        return type_name(self._type(name) or 1), False

    def _type(self, name: str) -> int:
        """Returns the element type of a value; the graph is gone through only if the file does not state it."""
        if name not in self._known and not self._inferred:
            import onnx

            self._inferred = True
            try:
                inferred = onnx.shape_inference.infer_shapes(self._model)
            except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
                return 0
            for graph in all_graphs(inferred.graph):
                self._known = {**_types(graph), **self._known}
        return self._known.get(name, 0)

    def _learn(self, graph: Any) -> None:
        self._producers.update({name: node for node in graph.node for name in node.output})
        self._known.update(_types(graph))
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._known[node.output[0]] = attribute.t.data_type

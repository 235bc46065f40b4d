from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

OPTIONS: dict[str, str | None] = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "HARD_SWISH": "HardSwishOptions",
    "LOGISTIC": None,
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
}


class TFLiteBuilder:
    """Writes a flatbuffer of one graph, operation by operation, in the order of the calls."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema: Any = schema
        self._model = schema.ModelT()
        self._model.version, self._model.description = 3, b"test"
        self._model.buffers, self._model.operatorCodes = [schema.BufferT()], []
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model.subgraphs = [self._graph]

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", values: Any = None) -> int:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.hasRank = name.encode(), list(shape), 0, True
        tensor.type = getattr(self._schema.TensorType, dtype.upper())
        if values is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(values, dtype).tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            tensor.buffer = len(self._model.buffers) - 1
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def constant(self, name: str, values: Any) -> int:
        array = np.asarray(values)
        return self.tensor(name, array.shape, array.dtype.name, array)

    def operation(self, code: str, inputs: Sequence[int], name: str, shape: Sequence[int], **options: Any) -> int:
        """Adds one that gives a float32 tensor; `activation` is its fused function."""
        schema, operator = self._schema, self._schema.OperatorT()
        number = getattr(schema.BuiltinOperator, code)
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = number, min(number, 127), 1
        self._model.operatorCodes.append(entry)
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        output = self.tensor(name, shape)
        operator.inputs, operator.outputs = list(inputs), [output]
        kind = OPTIONS[code]
        if kind is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(schema, f"{kind}T")()
            if "activation" in options:
                options["fusedActivationFunction"] = options.pop("activation")
            for key, value in options.items():
                assert hasattr(operator.builtinOptions, key)
                setattr(operator.builtinOptions, key, value)
        self._graph.operators.append(operator)
        return output

    def convolution(self, source: int, kernel: Any, bias: Any, name: str, **options: Any) -> int:
        """A convolution with stride 1 that keeps the size; the kernel is `(outputs, side, side, inputs)`."""
        kernel = np.asarray(kernel, np.float32)
        shape = [*self._graph.tensors[source].shape[:3], kernel.shape[0]]
        bias = np.zeros(len(kernel)) if bias is None else bias
        inputs = [source, self.constant(f"{name}/kernel", kernel), self.constant(f"{name}/bias", np.float32(bias))]
        steps = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        return self.operation("CONV_2D", inputs, name, shape, **steps, **options)

    def content(self, inputs: Sequence[int], outputs: Sequence[int], *, signature: bool = True) -> bytes:
        """Returns the file; its signature calls the tensors `in0`, ... and `out0`, ...."""
        import flatbuffers

        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        if signature:
            made = self._schema.SignatureDefT()
            made.signatureKey, made.subgraphIndex = b"serve", 0
            made.inputs = [self._entry(f"in{place}", index) for place, index in enumerate(inputs)]
            made.outputs = [self._entry(f"out{place}", index) for place, index in enumerate(outputs)]
            self._model.signatureDefs = [made]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _entry(self, name: str, index: int) -> Any:
        entry = self._schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), index
        return entry


@pytest.fixture(scope="session")
def tflite_builder() -> type[TFLiteBuilder]:
    """What builds small `.tflite` files."""
    return TFLiteBuilder

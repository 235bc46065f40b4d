"""LiteRT (TensorFlow Lite): the TFLite converter, and reading `.tflite` files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelFileError, StageError
from pipeline.model_source import Calibration, ModelSource
from pipeline.targets.base import (
    GraphSummary,
    LinearOperation,
    TensorDescription,
    summarize,
)

_LINEAR = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "BATCH_MATMUL"}


class LiteRTTarget:
    """Builtin operations only, never Flex."""

    suffix = ".tflite"
    format_name = "TensorFlow Lite"
    precisions: tuple[str, ...] = ("float32", "float16", "int8")
    tools: tuple[str, ...] = ("keras", "numpy", "tensorflow")
    runtime = "ai-edge-litert"
    notes: Mapping[str, str] = {
        "float16": "weights are stored in float16 and expanded to float32 when the file is loaded",
    }

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Converts the SavedModel.

        Raises:
            StageError: The converter refuses the network.
        """
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(str(source.path))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        elif precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: _one_by_one(calibration)
        try:
            content = converter.convert()
        except (tf.errors.OpError, ValueError, RuntimeError, TypeError) as error:
            raise StageError(f"The TFLite converter refuses the network in {precision}: {error}.") from error
        path = out_dir / f"model{self.suffix}"
        path.write_bytes(content)
        return path

    def inspect(self, path: Path) -> GraphSummary:
        """Reads the flatbuffer; the interpreter is not loaded.

        Raises:
            ModelFileError: It is no TFLite flatbuffer.
        """
        content = path.read_bytes()
        if content[4:8] != b"TFL3":
            raise ModelFileError(
                f"{path} is no TensorFlow Lite file: expected the identifier TFL3 at byte 4, found {content[4:8]!r}."
            )
        return _Reader(content).summary(path)


def _one_by_one(calibration: Calibration) -> Iterator[list[Any]]:
    for sample in calibration:
        yield list(sample.values())


class _Reader:
    """Reads a flatbuffer with the schema that ships with the runtime."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        self._types = _names(schema.TensorType)
        self._codes = _names(schema.BuiltinOperator)
        if not self._model.subgraphs:
            raise ModelFileError("The file holds no graph.")
        self._graph = self._model.subgraphs[0]

    def summary(self, path: Path) -> GraphSummary:
        graph = self._graph
        weights: dict[str, int] = {}
        for tensor in graph.tensors:
            data = self._model.buffers[tensor.buffer].data
            if data is not None and len(data):
                weights[self._type(tensor)] = weights.get(self._type(tensor), 0) + len(data)
        return summarize(
            path,
            format_name="tflite",
            inputs=[self._describe(index) for index in graph.inputs],
            outputs=[self._describe(index) for index in graph.outputs],
            operations=[self._code(operator) for operator in graph.operators],
            tensor_types=[self._type(tensor) for tensor in graph.tensors],
            weight_bytes=weights,
            linear=self._linear(),
        )

    def _linear(self) -> list[LinearOperation]:
        producers = {index: operator for operator in self._graph.operators for index in operator.outputs}
        found = []
        for operator in self._graph.operators:
            if self._code(operator) not in _LINEAR:
                continue
            tensors = self._graph.tensors
            first, second = tensors[operator.inputs[0]], operator.inputs[1]
            activations = self._type(first)
            weights = self._type(tensors[second])
            maker = producers.get(second)
            if maker is not None and self._code(maker) == "DEQUANTIZE":
                weights = self._type(tensors[maker.inputs[0]])
            elif weights == "int8" and activations == "float32":
                activations = "dynamic"
            name = tensors[operator.outputs[0]].name.decode()
            found.append(LinearOperation(name, weights, "float" if activations.startswith("float") else activations))
        return found

    def _describe(self, index: int) -> TensorDescription:
        tensor = self._graph.tensors[index]
        signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        return TensorDescription(
            self._signature_name(index) or tensor.name.decode(),
            self._type(tensor),
            tuple(int(size) for size in signature),
        )

    def _signature_name(self, index: int) -> str | None:
        for signature in self._model.signatureDefs or []:
            for entry in [*signature.inputs, *signature.outputs]:
                if entry.tensorIndex == index:
                    return str(entry.name.decode())
        return None

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

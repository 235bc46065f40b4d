"""ONNX Runtime: tf2onnx, onnxruntime.quantization, and reading `.onnx` files."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ModelFileError
from pipeline.model_source import Calibration, ModelSource
from pipeline.targets.base import (
    GraphSummary,
    LinearOperation,
    TensorDescription,
    summarize,
)

OPSET = 17
_ARBITRARY = re.compile(r"^(StatefulPartitionedCall(_\d+)?/)+|__\d+")
"""What TensorFlow puts before a name and tf2onnx behind it."""

_LINEAR = {"Conv", "Gemm", "MatMul", "ConvTranspose"}
_INTEGER = {"QLinearConv", "QLinearMatMul", "QGemm"}
_DYNAMIC = {"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"}


class OnnxRuntimeTarget:
    """Quantize-dequantize pairs with unsigned activations and signed weights per channel.

    Unsigned activations, because with signed ones part of the convolutions stay outside QLinearConv.
    """

    suffix = ".onnx"
    format_name = "ONNX"
    precisions: tuple[str, ...] = ("float32", "float16", "int8")
    tools: tuple[str, ...] = ("keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tf2onnx")
    runtime = "onnxruntime"
    notes: Mapping[str, str] = {
        "float16": (
            "weights and activations are float16 in the file; on a processor without float16 kernels "
            "ONNX Runtime inserts casts and computes in float32"
        ),
    }

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Converts the SavedModel, then lowers the precision."""
        import onnx

        path = out_dir / f"model{self.suffix}"
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_dir) as scratch:
            model = _fold(_convert(source.path), Path(scratch))
            if precision == "float16":
                model = _to_float16(model)
            elif precision == "int8":
                model = _to_int8(model, calibration, Path(scratch))
        _drop_unused_domains(model)
        onnx.save(model, str(path))
        return path

    def inspect(self, path: Path) -> GraphSummary:
        """Parses the protocol buffer; no session is made.

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
        return _summary(path, model)


def _convert(saved_model: Path) -> Any:
    """Returns the ONNX model of a SavedModel's one signature."""
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    # The signature alone would not keep the variables alive.
    loaded = tf.saved_model.load(str(saved_model))
    _, inputs = loaded.signatures["serve"].structured_input_signature
    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()]
    model, _ = tf2onnx.convert.from_function(
        tf.function(
            lambda image: loaded.signatures["serve"](image=image)["logits"],
            input_signature=signature,
            autograph=False,  # which would leave its copy of this code among the temporary files
        ),
        input_signature=signature,
        opset=OPSET,
    )
    _rename_output(model, "logits")
    return model


def _rename_output(model: Any, name: str) -> None:
    (output,) = model.graph.output
    old = output.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, value in enumerate(names):
                if value == old:
                    names[index] = name
    output.name = name


def _fold(model: Any, scratch: Path) -> Any:
    """Returns the model with constants and batch norms folded, and with names that depend on the graph alone."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    _name_after_position(model)
    converted, folded = scratch / "converted.onnx", scratch / "folded.onnx"
    onnx.save(model, str(converted))
    quant_pre_process(str(converted), str(folded), skip_symbolic_shape=True)
    model = onnx.load(str(folded))
    _name_after_position(model)
    return model


def _name_after_position(model: Any) -> None:
    """Names nodes, values and constants after their place in the graph.

    tf2onnx numbers them by a counter whose order differs from one process to the next, and so would the file. The
    inputs and the output of the graph keep their names; a node keeps the part of its name that says which layer
    it came from.
    """
    graph = model.graph
    new = {value.name: value.name for value in [*graph.input, *graph.output]}
    taken: set[str] = set()
    constants = {constant.name: constant for constant in graph.initializer}
    in_order = []
    for node in graph.node:
        node.name = _unique(_ARBITRARY.sub("", node.name) or node.op_type, taken)
        for index, name in enumerate(node.input):
            if name in constants and name not in new:
                new[name] = f"{node.name}.{index}"
                in_order.append(constants[name])
        for index, name in enumerate(node.output):
            new.setdefault(name, f"{node.name}:{index}")
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new[name] for name in node.output]
    kept = [_copy(constant) for constant in in_order]
    for constant in kept:
        constant.name = new[constant.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    # Types of values in between follow from the graph.
    shapes = sorted((value for value in graph.value_info if value.name in new), key=lambda value: new[value.name])
    for value in shapes:
        value.name = new[value.name]
    described = [_copy(value) for value in shapes]
    del graph.value_info[:]
    graph.value_info.extend(described)


def _drop_unused_domains(model: Any) -> None:
    """Leaves out the operator sets that ONNX Runtime notes down without using them."""
    used = {node.domain for node in model.graph.node}
    kept = [_copy(opset) for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique)
    return unique


def _copy(message: Any) -> Any:
    fresh = type(message)()
    fresh.CopyFrom(message)
    return fresh


def _to_float16(model: Any) -> Any:
    """Returns the model with float16 weights and activations; its input and output keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def _to_int8(model: Any, calibration: Calibration, scratch: Path) -> Any:
    """Returns the model with quantize-dequantize pairs whose ranges come from the calibration images."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._samples, None)

    floating, quantized = scratch / "float.onnx", scratch / "int8.onnx"
    onnx.save(model, str(floating))
    quantize_static(
        str(floating),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=calibration.reduce_range,
    )
    return onnx.load(str(quantized))


def _summary(path: Path, model: Any) -> GraphSummary:
    import onnx

    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types.update({name: constant.data_type for name, constant in constants.items()})
    weights: dict[str, int] = {}
    for constant in constants.values():
        name = _type_name(constant.data_type)
        item = onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).itemsize
        weights[name] = weights.get(name, 0) + int(np.prod(constant.dims, dtype=np.int64)) * item
    inputs = [value for value in graph.input if value.name not in constants]
    return summarize(
        path,
        format_name="onnx",
        inputs=[_describe(value) for value in inputs],
        outputs=[_describe(value) for value in graph.output],
        operations=[node.op_type for node in graph.node],
        tensor_types=[_type_name(number) for number in types.values()],
        weight_bytes=weights,
        linear=_linear(graph, types),
    )


def _linear(graph: Any, types: Mapping[str, int]) -> list[LinearOperation]:
    producers = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type in _INTEGER:
            found.append(LinearOperation(node.name, "int8", "int8"))
        elif node.op_type in _DYNAMIC:
            found.append(LinearOperation(node.name, "int8", "dynamic"))
        elif node.op_type in _LINEAR:
            weights, from_integer = _stored_type(node.input[1], producers, types)
            activations, quantized = _stored_type(node.input[0], producers, types)
            activations = ("int16" if "16" in activations else "int8") if quantized else "float"
            found.append(LinearOperation(node.name, "int8" if from_integer else weights, activations))
    return found


def _stored_type(name: str, producers: Mapping[str, Any], types: Mapping[str, int]) -> tuple[str, bool]:
    """Returns the element type a value is stored as, looking through DequantizeLinear, and whether it did."""
    producer = producers.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        zero_point = producer.input[2] if len(producer.input) > 2 else producer.input[0]
        return _type_name(types.get(zero_point, types.get(producer.input[0], 0))), True
    return _type_name(types.get(name, 1)), False


def _type_name(number: int) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(number)) if number else "unknown"


def _describe(value: Any) -> TensorDescription:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorDescription(value.name, _type_name(tensor.elem_type), shape)

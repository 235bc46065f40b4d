"""ONNX Runtime: tf2onnx and onnxruntime.quantization."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedModelError
from pipeline.model_source import Calibration, ModelSource
from pipeline.signature import Signature, SourceFormat
from pipeline.targets import onnx_file
from pipeline.targets.base import GraphSummary, Reach, check_interface, check_source_precision, signature_names
from pipeline.targets.onnx_names import all_graphs, drop_unused_domains, name_after_position, rename_values
from pipeline.targets.tensorflow_graph import frozen_graph
from pipeline.targets.tflite_file import TFLiteFile

OPSET = 17
MIN_INT8_OPSET = 13
"""The first with scales per channel (ONNX, QuantizeLinear-13)."""

_ALL = ("float32", "float16", "int8")


class OnnxRuntimeTarget:
    """Quantize-dequantize pairs with unsigned activations and signed weights per channel.

    Unsigned activations, because with signed ones part of the convolutions stay outside QLinearConv.
    """

    sources: Mapping[SourceFormat, Reach] = {
        "saved_model": Reach(_ALL),
        "onnx": Reach(_ALL),
        "tflite": Reach(_ALL),
        "openvino": Reach(
            reason="No converter leads from OpenVINO to ONNX: give the model that the .xml file was made from."
        ),
    }
    suffix = ".onnx"
    format_name = "ONNX"
    precisions: tuple[str, ...] = _ALL
    tools: tuple[str, ...] = ("keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tf2onnx")
    runtime = "onnxruntime"
    notes: Mapping[str, str] = {
        "float16": (
            "weights and activations are float16 in the file; on a processor without float16 kernels "
            "ONNX Runtime inserts casts and computes in float32"
        ),
    }

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Converts the model to ONNX, if it is none, then lowers the precision.

        Raises:
            UnsupportedModelError: A converter refuses the model, or its file holds what the precision can't be made of.
        """
        import onnx

        path = out_dir / f"model{self.suffix}"
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_dir) as scratch:
            if _is_finished(source, precision):
                shutil.copyfile(source.path, path)
            else:
                onnx.save(_made(source, precision, calibration, Path(scratch)), str(path))
        check_interface(self.inspect(path), source.signature, runtime="ONNX")
        return path

    def inspect(self, path: Path) -> GraphSummary:
        """Parses the protocol buffer; no session is made.

        Raises:
            ModelFileError: It is no ONNX model.
        """
        return onnx_file.summary(path)


def _is_finished(source: ModelSource, precision: str) -> bool:
    """Whether the source is an ONNX file of the precision, in one piece and with fixed shapes."""
    if source.signature.source != "onnx" or onnx_file.external_files(source.path):
        return False
    held = onnx_file.summary(source.path)
    shapes = {tensor.name: tensor.shape for tensor in held.inputs}
    return held.precision == precision and all(
        shapes.get(tensor.name) == tensor.shape for tensor in source.signature.inputs
    )


def _made(source: ModelSource, precision: str, calibration: Calibration, scratch: Path) -> Any:
    """Returns the model in the precision.

    Raises:
        UnsupportedModelError: A converter refuses the model, or its file holds what the precision can't be made of.
    """
    if source.signature.source == "onnx":
        held = onnx_file.summary(source.path)
        model = _with_fixed_shapes(onnx_file.load_model(source.path), source.signature)
        if held.precision == precision:
            return model
        check_source_precision(held, precision)
    elif source.signature.source == "tflite":
        check_source_precision(TFLiteFile(source.path).summary(), precision)
        model = _with_fixed_shapes(_from_tflite(source), source.signature)
    else:
        model = _from_saved_model(source)
    model = _fold(model, scratch)
    if precision == "float16":
        model = _to_float16(model)
    elif precision == "int8":
        model = _to_int8(model, calibration, scratch)
    drop_unused_domains(model)
    return model


@contextlib.contextmanager
def _in_one_order() -> Iterator[None]:
    """Lets tf2onnx go through nodes in the same order in every conversion.

    Its optimizers keep nodes in sets, whose order goes by addresses in memory, and names by a counter of the process;
    from one conversion to the next other transposes were removed.
    """
    from tf2onnx import graph, utils

    before = graph.Node.__hash__
    utils.INTERNAL_NAME = 1
    graph.Node.__hash__ = lambda self: hash(self.name)
    try:
        yield
    finally:
        graph.Node.__hash__ = before


def _from_saved_model(source: ModelSource) -> Any:
    """Returns the ONNX model of the SavedModel's signature.

    Raises:
        UnsupportedModelError: tf2onnx refuses it.
    """
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it can't convert is named below
    frozen = frozen_graph(source)
    names = dict(zip((*frozen.inputs, *frozen.outputs), signature_names(source.signature), strict=True))
    try:
        with _in_one_order():
            model, _ = tf2onnx.convert.from_graph_def(
                frozen.graph_def,
                input_names=list(frozen.inputs),
                output_names=list(frozen.outputs),
                opset=OPSET,
                tensors_to_rename=names,
            )
    except Exception as error:  # it raises whatever its handlers run into
        raise UnsupportedModelError(f"tf2onnx can't convert the model: {_short(error)}", details=str(error)) from error
    _check_operations(model)
    _state_output_shapes(model, source.signature)
    return model


def _from_tflite(source: ModelSource) -> Any:
    """Returns the ONNX model of a `.tflite` file in float32.

    Raises:
        UnsupportedModelError: tf2onnx refuses it.
    """
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    tensors = TFLiteFile(source.path).tensor_names()
    try:
        with _in_one_order():
            model, _ = tf2onnx.convert.from_tflite(str(source.path), opset=OPSET)
    except Exception as error:  # it raises whatever its handlers run into
        raise UnsupportedModelError(
            f"tf2onnx can't convert {source.path.name}: {_short(error)}", details=str(error)
        ) from error
    _check_operations(model)
    rename_values(model, {old: new for new, old in tensors.items()})
    _state_output_shapes(model, source.signature)
    return model


def _state_output_shapes(model: Any, signature: Signature) -> None:
    """Writes the sizes of outputs that the converter lost, as behind a loop; the signature has them."""
    shapes = {tensor.name: tensor.shape for tensor in signature.outputs}
    for value in model.graph.output:
        shape = shapes.get(value.name, ())
        dims = value.type.tensor_type.shape.dim
        if len(dims) == len(shape):
            for dim, size in zip(dims, shape, strict=True):
                if not dim.HasField("dim_value") and size >= 0:
                    dim.dim_value = size


def _check_operations(model: Any) -> None:
    """Refuses operations that tf2onnx left as they were.

    Raises:
        UnsupportedModelError: There are some.
    """
    import onnx

    used = {(node.op_type, node.domain) for graph in all_graphs(model.graph) for node in graph.node}
    unknown = sorted(kind for kind, domain in used if domain or not onnx.defs.has(kind))
    if unknown:
        raise UnsupportedModelError(
            f"ONNX has no operation for {', '.join(unknown)} that tf2onnx knows of. Replace it in the model, or "
            f"choose other targets."
        )


def _with_fixed_shapes(model: Any, signature: Signature) -> Any:
    """Returns the model with the inputs' shapes as in the signature, and the shapes that follow from them.

    Raises:
        UnsupportedModelError: The model can't take inputs of these shapes.
    """
    import onnx
    from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_input_shape_fixed

    known = {value.name: onnx_file.describe(value).shape for value in model.graph.input}
    try:
        for tensor in signature.inputs:
            if known.get(tensor.name) != tensor.shape:
                make_input_shape_fixed(model.graph, tensor.name, list(tensor.shape))
        if any(-1 in onnx_file.describe(value).shape for value in model.graph.output):
            fix_output_shapes(model)
    except (ValueError, RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedModelError(
            f"The ONNX model can't take inputs of the signature's shapes: {_short(error)} Give shapes that it takes.",
            details=str(error),
        ) from error
    return model


def _fold(model: Any, scratch: Path) -> Any:
    """Returns the model with constants and batch norms folded, and with names that depend on the graph alone.

    Raises:
        UnsupportedModelError: ONNX Runtime can't load the model.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    name_after_position(model)
    converted, folded = scratch / "converted.onnx", scratch / "folded.onnx"
    onnx.save(model, str(converted))
    try:
        quant_pre_process(str(converted), str(folded), skip_symbolic_shape=True)
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise UnsupportedModelError(
            f"ONNX Runtime can't load the model: {_short(error)}", details=str(error)
        ) from error
    model = onnx.load(str(folded))
    name_after_position(model)
    return model


def _to_float16(model: Any) -> Any:
    """Returns the model with float16 weights and activations; its inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def _to_int8(model: Any, calibration: Calibration, scratch: Path) -> Any:
    """Returns the model with quantize-dequantize pairs whose ranges come from the calibration samples.

    Raises:
        UnsupportedModelError: Its operator set is too old, or the quantization fails.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._samples, None)

    floating, quantized = scratch / "float.onnx", scratch / "int8.onnx"
    onnx.save(_recent(model), str(floating))
    try:
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
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise UnsupportedModelError(
            f"ONNX Runtime can't quantize the model: {_short(error)}", details=str(error)
        ) from error
    return onnx.load(str(quantized))


def _recent(model: Any) -> Any:
    """Returns the model in an operator set that has scales per channel.

    Raises:
        UnsupportedModelError: It can't be brought there.
    """
    import onnx

    (version,) = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if version >= MIN_INT8_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # a bare RuntimeError or a ConvertError, by version
        raise UnsupportedModelError(
            f"The model is of operator set {version}; int8 takes {MIN_INT8_OPSET} or later, and bringing it there "
            f"fails: {_short(error)} Export the model again with a later operator set.",
            details=str(error),
        ) from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]}..."

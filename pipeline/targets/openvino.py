"""OpenVINO: its converter and NNCF."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StageError, UnsupportedModelError
from pipeline.model_source import Calibration, ModelSource
from pipeline.signature import InputTensor, Signature, SourceFormat
from pipeline.targets import onnx_file, openvino_file
from pipeline.targets.base import (
    GraphSummary,
    Reach,
    check_interface,
    check_source_precision,
    model_files,
    signature_names,
)
from pipeline.targets.openvino_graph import fold_scales, hide_gates, number_anew
from pipeline.targets.tensorflow_graph import static_saved_model
from pipeline.targets.tflite_file import TFLiteFile

_NO_RULE = re.compile(r"No conversion rule found for operations: ([\w.:, -]+?)(?:\n|$| To facilitate)")
_FAILED_RULE = re.compile(r"-- ([\w.:-]+) with a message")
_ALL = ("float32", "float16", "int8")


class OpenVinoTarget:
    """Intermediate representation (`.xml` and `.bin`); int8 by NNCF post-training quantization."""

    sources: Mapping[SourceFormat, Reach] = {
        "saved_model": Reach(_ALL),
        "onnx": Reach(_ALL),
        "tflite": Reach(_ALL),
        "openvino": Reach(_ALL),
    }
    suffix = ".xml"
    format_name = "OpenVINO"
    precisions: tuple[str, ...] = _ALL
    tools: tuple[str, ...] = ("keras", "nncf", "numpy", "openvino", "tensorflow")
    runtime = "openvino"
    notes: Mapping[str, str] = {
        "float16": "weights are stored in float16; the CPU plugin computes in float32",
    }

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Converts the model, quantizes it for int8, and saves it.

        Raises:
            UnsupportedModelError: The converter refuses it, or its file holds what the precision can't be made of.
        """
        path = out_dir / f"model{self.suffix}"
        held = _held(source)
        if held is not None and source.signature.source == "openvino" and held.precision == precision:
            shapes = {tensor.name: tensor.shape for tensor in held.inputs}
            if all(shapes.get(tensor.name) == tensor.shape for tensor in source.signature.inputs):
                for file in model_files(source.path):
                    shutil.copyfile(file, path.with_suffix(file.suffix))
                return path
        if held is not None and held.precision != precision:
            allowed = ("float32", "float16") if precision == "int8" else ("float32",)
            check_source_precision(held, precision, allowed=allowed)
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_dir) as scratch:
            _make(source, precision, calibration, path, scratch=Path(scratch))
        check_interface(self.inspect(path), source.signature, runtime="OpenVINO")
        return path

    def inspect(self, path: Path) -> GraphSummary:
        """Parses the .xml; the runtime is not loaded.

        Raises:
            ModelFileError: It is no OpenVINO model, or the .bin beside it is missing.
        """
        return openvino_file.summary(path)


def _held(source: ModelSource) -> GraphSummary | None:
    """Returns what the source file holds; None of a SavedModel, which holds floats."""
    match source.signature.source:
        case "onnx":
            return onnx_file.summary(source.path)
        case "tflite":
            return TFLiteFile(source.path).summary()
        case "openvino":
            return openvino_file.summary(source.path)
        case _:
            return None


def _make(source: ModelSource, precision: str, calibration: Calibration, path: Path, *, scratch: Path) -> None:
    """Writes the model in the precision.

    Raises:
        UnsupportedModelError: The converter or NNCF refuses it.
    """
    import openvino as ov

    held = _held(source)
    try:
        model = _converted(source, scratch)
        if precision == "int8" and (held is None or held.precision != "int8"):
            model = _to_int8(model, calibration)
        # What the converter notes about itself names the temporary directory it read from.
        if source.signature.source != "openvino":
            model.set_rt_info("", ["conversion_parameters", "input_model"])
        ov.save_model(model, str(path), compress_to_fp16=precision == "float16")
        number_anew(path)
    except (StageError, OSError):
        raise
    except Exception as error:  # OpenVINO's and NNCF's errors have no common class
        raise UnsupportedModelError(_explain(str(error), precision), details=str(error)) from error


def _converted(source: ModelSource, scratch: Path) -> Any:
    """Returns the model with the names and shapes of the signature.

    Raises:
        UnsupportedModelError: A name of the signature is not in it.
    """
    import openvino as ov

    signature = source.signature
    names = {name: name for name in signature_names(signature)}
    if signature.source == "tflite":
        names |= TFLiteFile(source.path).tensor_names()
    if signature.source == "saved_model":
        saved_model, _key = static_saved_model(source, scratch)
        model = ov.convert_model(str(saved_model))
    else:
        model = ov.convert_model(str(source.path)) if signature.source != "openvino" else _read(source.path)
    inputs = {tensor.name: _port(model.inputs, names[tensor.name]) for tensor in signature.inputs}
    outputs = {tensor.name: _port(model.outputs, names[tensor.name]) for tensor in signature.outputs}
    for name, port in (*inputs.items(), *outputs.items()):
        port.get_tensor().set_names({name})
    if any(list(port.partial_shape) != list(tensor.shape) for port, tensor in _pairs(inputs, signature)):
        model.reshape({port: list(tensor.shape) for port, tensor in _pairs(inputs, signature)})
    return model


def _read(path: Path) -> Any:
    import openvino as ov

    return ov.Core().read_model(str(path))


def _pairs(inputs: Mapping[str, Any], signature: Signature) -> list[tuple[Any, InputTensor]]:
    return [(inputs[tensor.name], tensor) for tensor in signature.inputs]


def _port(ports: Any, name: str) -> Any:
    """Returns the input or output of a name; a tensor without names goes by its operation's.

    Raises:
        UnsupportedModelError: There is none.
    """
    for port in ports:
        if name in port.get_names() or (not port.get_names() and name == port.node.friendly_name):
            return port
    known = ", ".join(sorted("|".join(sorted(port.get_names())) or port.node.friendly_name for port in ports))
    raise UnsupportedModelError(
        f"The converted model has no tensor {name}; it has {known}. Name the model's tensors in the recipe."
    )


def _to_int8(model: Any, calibration: Calibration) -> Any:
    """Returns the model with FakeQuantize operations whose ranges come from the calibration samples.

    NNCF's ranges of activations are averages over the samples, so that values beyond them are clipped: robust for
    a classifier, whose largest logit stays the largest, but wrong wherever the values themselves are the answer.
    There the ranges cover all samples.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    fold_scales(model)
    hide_gates(model)
    samples = list(calibration)
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    parameters = None
    if not calibration.signature.is_classifier:
        parameters = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges.MINMAX)

    def quantize(given: Any, *, fast: bool) -> Any:
        return nncf.quantize(
            given,
            nncf.Dataset(samples),
            subset_size=len(samples),
            target_device=nncf.TargetDevice.CPU,
            fast_bias_correction=fast,
            advanced_parameters=parameters,
        )

    # Correcting each layer's bias with the layers before it quantized costs seconds and gains decibels; the fast
    # form, NNCF's default, loses 15 points of MobileNetV3-small-050 on ImageNet (NNCF, ptq_reference_data.yaml).
    try:
        return quantize(model.clone(), fast=False)
    except RuntimeError:
        # It runs parts of the network, and the CPU plugin can't run all parts: not a transposed convolution whose
        # output nothing takes.
        return quantize(model, fast=True)


def _explain(message: str, precision: str) -> str:
    """Returns what OpenVINO's message, which is long, says about which operation."""
    found = _NO_RULE.search(message)
    if found:
        return f"OpenVINO has no operation for {found[1].strip()}. Replace it in the model, or choose other targets."
    failed = _FAILED_RULE.findall(message)
    if failed:
        return (
            f"OpenVINO can't convert {', '.join(dict.fromkeys(failed))}. Give the model in another format, or choose "
            f"other targets."
        )
    text = " ".join(message.split())
    return f"OpenVINO can't make {precision} of the model: {text if len(text) <= 500 else f'{text[:500]}...'}"

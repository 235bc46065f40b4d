"""LiteRT (TensorFlow Lite): the TFLite converter, and ai-edge-quantizer for files that are converted already."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedModelError
from pipeline.model_source import Calibration, ModelSource
from pipeline.quantization.ranges import estimate, observe
from pipeline.signature import SourceFormat
from pipeline.targets import litert_int8
from pipeline.targets.base import GraphSummary, Reach, check_interface, check_source_precision
from pipeline.targets.tensorflow_graph import control_flow, static_saved_model
from pipeline.targets.tflite_file import TFLiteFile

_ALL = ("float32", "float16", "int8", "int8_dynamic", "int8_weights", "int16x8")
_NO_CONVERTER = (
    "No maintained converter leads from {} to TensorFlow Lite: give the Keras model, the SavedModel or the .tflite "
    "file that it was made from."
)
_NO_INT8 = "LiteRT has no int8 kernel for {}. Leave int8 out, or replace it in the model."
_NO_BUILTIN = "LiteRT has no builtin operation for {}. Replace it in the model, or choose other targets."
_LACKS = (
    (re.compile(r"Quantization not yet supported for op: '?(\w+)"), _NO_INT8),
    (re.compile(r"'([\w.]+)' op is neither a custom op nor a flex op"), _NO_BUILTIN),
    (re.compile(r"failed to legalize operation '([\w.]+)'"), _NO_BUILTIN),
    (re.compile(r"Flex ops: ((?:\w+(?:, )?)+)"), _NO_BUILTIN),
    (re.compile(r"Custom ops: ((?:\w+(?:, )?)+)"), _NO_BUILTIN),
)
"""What the converter's message says of an operation, most telling first, and what that means."""


class LiteRTTarget:
    """Builtin operations only, never Flex."""

    sources: Mapping[SourceFormat, Reach] = {
        "saved_model": Reach(_ALL),
        "tflite": Reach(_ALL),
        "onnx": Reach(reason=_NO_CONVERTER.format("ONNX")),
        "openvino": Reach(reason=_NO_CONVERTER.format("OpenVINO")),
    }
    suffix = ".tflite"
    format_name = "TensorFlow Lite"
    precisions: tuple[str, ...] = _ALL
    tools: tuple[str, ...] = ("ai-edge-quantizer", "keras", "numpy", "tensorflow")
    runtime = "ai-edge-litert"
    notes: Mapping[str, str] = {
        "float16": "weights are stored in float16 and expanded to float32 when the file is loaded",
        "int8_weights": "weights are stored in int8 and expanded to float32 when the file is loaded",
        "int8_dynamic": "activations are quantized while the model runs, with ranges of the moment",
        "int16x8": "activations are int16, which XNNPACK does not compute with",
    }

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Converts a SavedModel, or lowers the precision of a `.tflite` file.

        Raises:
            UnsupportedModelError: The converter refuses it, or the file holds what the precision can't be made of.
        """
        path = out_dir / f"model{self.suffix}"
        if precision in ("int8_dynamic", "int8_weights", "int16x8"):
            self._of_float(source, precision, calibration, path)
        elif source.signature.source == "tflite":
            _requantize(source, precision, calibration, path)
        else:
            with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_dir) as scratch:
                path.write_bytes(_convert(source, precision, calibration, Path(scratch)))
        check_interface(self.inspect(path), source.signature, runtime="LiteRT")
        return path

    def _of_float(self, source: ModelSource, precision: str, calibration: Calibration, path: Path) -> None:
        """Writes what is made of the file in float32 in one step."""
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=path.parent) as scratch:
            floats = self.export(source, "float32", calibration, Path(scratch))
            if precision != "int16x8":
                litert_int8.quantize_weights(
                    floats, "int8_dynamic" if precision == "int8_dynamic" else "int8_weights", path
                )
                return
            names = litert_int8.observed(floats)
            observations = observe(lambda: litert_int8.activations(floats, calibration, names))
            ranges = {name: estimate(observation, "min_max") for name, observation in observations.items()}
            litert_int8.quantize(floats, "converter", ranges, (), path, precision="int16x8")

    def inspect(self, path: Path) -> GraphSummary:
        """Reads the flatbuffer; the interpreter is not loaded.

        Raises:
            ModelFileError: It is no TFLite flatbuffer.
        """
        return TFLiteFile(path).summary()


def _convert(source: ModelSource, precision: str, calibration: Calibration, scratch: Path) -> bytes:
    import tensorflow as tf

    loops = control_flow(source) if precision == "int8" else ()
    if loops:  # the calibration would end the process
        raise UnsupportedModelError(_NO_INT8.format(", ".join(loops)) + " A loop over time (GRU, LSTM) is a While.")
    saved_model, key = static_saved_model(source, scratch)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[key])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    elif precision == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: iter(calibration)
    try:
        content: bytes = converter.convert()
    except Exception as error:  # the converter's own error is private, and others pass through it
        raise UnsupportedModelError(_explain(str(error), precision), details=str(error)) from error
    return content


def _explain(message: str, precision: str) -> str:
    """Returns what the converter's message, which is long, says about which operation."""
    for pattern, lack in _LACKS:
        names = {name for found in pattern.findall(message) for name in found.split(", ")}
        if names:
            return lack.format(", ".join(sorted(names)))
    text = " ".join(message.split())
    return f"The TFLite converter refuses the model in {precision}: {text[:800]}"


def _requantize(source: ModelSource, precision: str, calibration: Calibration, path: Path) -> None:
    """Writes a `.tflite` file as it is, if it holds the precision, else one made of its floats.

    Raises:
        UnsupportedModelError: It has dimensions left open, or holds other than floats.
    """
    file = TFLiteFile(source.path)
    held, shapes = file.summary(), file.input_shapes()
    for tensor in source.signature.inputs:
        if shapes.get(tensor.name) != tensor.shape:
            raise UnsupportedModelError(
                f"{source.path.name} takes {tensor.name} in the shape {shapes.get(tensor.name)}, the signature says "
                f"{tensor.shape}. The shapes of a .tflite file are fixed: give the shape it has, or the SavedModel."
            )
    if held.precision == precision:
        shutil.copyfile(source.path, path)
        return
    check_source_precision(held, precision)
    path.write_bytes(_quantized(source.path, file, precision, calibration))


def _quantized(path: Path, file: TFLiteFile, precision: str, calibration: Calibration) -> bytes:
    """Returns the file with float16 weights, or with int8 weights and activations."""
    from ai_edge_quantizer import algorithm_manager, calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    names = file.tensor_names()
    key = file.signature_key()
    tool: Any = quantizer.Quantizer(str(path))
    try:
        if precision == "float16":
            algorithm = algorithm_manager.AlgorithmName.FLOAT_CASTING
            tool.add_weight_only_config(regex=".*", operation_name="*", num_bits=16, algorithm_key=algorithm)
            result = tool.quantize(enable_progress_report=False)
        else:
            tool.load_quantization_recipe(recipe.static_wi8_ai8())
            for end in ("INPUT", "OUTPUT"):  # which keep the types of the signature
                tool.update_quantization_recipe(
                    regex=".*", operation_name=end, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
                )
            samples = [
                sample if key is not None else {names[name]: value for name, value in sample.items()}
                for sample in calibration
            ]
            # The tool's own `calibrate` averages over the samples, so that larger values are clipped.
            recipes = recipe_manager.RecipeManager()
            recipes.load_quantization_recipe(tool.get_quantization_recipe())
            ranges = calibrator.Calibrator(str(path), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
            ranges.calibrate({key: samples}, recipes)
            result = tool.quantize(ranges.get_model_qsvs(), enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError, IndexError) as error:
        raise UnsupportedModelError(
            f"ai-edge-quantizer can't make {precision} of {path.name}: {' '.join(str(error).split())[:500]}",
            details=str(error),
        ) from error
    return bytes(result.quantized_model)

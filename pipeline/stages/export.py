"""Exports the calibrated network to one target in one precision, and reads back what the file holds."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import model_validator

from devices.board.confidence import CONFIDENCE_FILE
from pipeline.errors import UnsupportedModelError
from pipeline.manifest import read_manifest
from pipeline.model_source import Calibration, ModelSource
from pipeline.quantization.int8 import Int8Export
from pipeline.quantization.ranges import RANGE_METHODS, RangeMethod
from pipeline.quantization.remedies import Remedy
from pipeline.quantization.sensitivity import SENSITIVITY_FILE, SENSITIVITY_PICTURE
from pipeline.quantization.walk import ValidationJudge, take_step
from pipeline.samples import calibration_input_file
from pipeline.signature import Signature, read_signature
from pipeline.stages.base import FrozenConfig, Stage, Tell
from pipeline.targets import QUANTIZERS, TARGETS, inspect_model
from pipeline.targets.base import RANGED, Precision, TargetName, check_interface


class ExportConfig(FrozenConfig):
    """What is exported: every target in every precision.

    Attributes:
        targets: Keys of `pipeline.targets.TARGETS`.
        precisions: `float32`, `float16`, `int8`; for LiteRT also `int8_dynamic`, `int8_weights`, `int16x8`.
    """

    targets: tuple[TargetName, ...] = ("litert", "onnxruntime", "openvino")
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, values in (("targets", self.targets), ("precisions", self.precisions)):
            if not values:
                raise ValueError(f"export.{name} is empty: name at least one.")
            if len(set(values)) != len(values):
                raise ValueError(f"export.{name} names one twice: {', '.join(values)}.")
        for target in self.targets:
            for precision in self.precisions:
                if precision not in TARGETS[target].precisions:
                    raise ValueError(f"{target} has no {precision}; it has {', '.join(TARGETS[target].precisions)}.")
        return self


class ExportStage(Stage):
    """Reads `calibrate`; writes one model, and `calibration.json` where a map of the confidence goes with it.

    For int8 it may read `float32`, the same target's export in float32, which it makes for itself otherwise. With a
    limit for the drop it also reads `data`, from the second remedy on `previous` (the step before), and `weights`, a
    network whose weights the remedy changed. Then it keeps the files of what it tried in `attempts`, and writes
    `sensitivity.json` and `.svg` where layers stay in float.

    Attributes:
        target: Key of `TARGETS`.
        precision: What is asked for; what the file holds is in the metrics.
        reduce_range: Whether int8 weights keep to 7 bits (`Calibration.reduce_range`).
        range_methods: For int8, ways to choose ranges that are compared.
        schemes: For int8, ways of the target's quantizer, the fastest first; none takes the quantizer's first.
        max_drop: For int8, how much accuracy may fall on the validation images, 0..1; None judges nothing.
        remedy: What is tried to keep to that.
        sensitivity: Whether int8 is accompanied by how much it hurts each layer.
    """

    stage: ClassVar[str] = "export"

    target: TargetName
    precision: Precision
    reduce_range: bool = False
    range_methods: tuple[RangeMethod, ...] = ()
    schemes: tuple[str, ...] = ()
    max_drop: float | None = None
    remedy: Remedy = "ranges"
    sensitivity: bool = False

    def tool_names(self) -> tuple[str, ...]:
        """Those of the target; for int8 also its runtime, in which the network is observed, and what draws layers."""
        target = TARGETS[self.target]
        runtime = (target.runtime,) if self.precision in RANGED else ()
        draws = ("matplotlib",) if self.sensitivity or self.remedy == "mixed" else ()
        return tuple(dict.fromkeys((*target.tools, *runtime, *draws)))

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Converts and inspects.

        Raises:
            UnsupportedModelError: The target or the precision can't take the model, or the file holds another
                precision than asked for.
        """
        target = TARGETS[self.target]
        # A network of ours lies beside its calibration set, an imported model in an artifact of its own.
        holder = inputs.get("weights", inputs.get("model", inputs["calibrate"]))
        source = ModelSource(holder, read_signature(inputs["calibrate"]))
        tell({"message": f"{self.target} {self.precision}"})
        calibration = _calibration(inputs["calibrate"], source.signature, reduce_range=self.reduce_range)
        path, quantized = self._write(source, calibration, inputs, out_dir, tell)
        summary = target.inspect(path)
        expected = "mixed" if quantized.get("float_layers") else self.precision
        if summary.precision != expected:
            raise UnsupportedModelError(
                f"{self.target} was asked for {self.precision}, but the tensors of the file say "
                f"{summary.precision}"
                + (f" (in float: {', '.join(summary.float_operations[:5])})" if summary.float_operations else "")
                + ". Leave this precision out of export.precisions, or choose another network."
            )
        metrics: dict[str, Any] = {
            "target": self.target,
            "requested_precision": self.precision,
            "float_layers": quantized.get("float_layers", []),
            "precision": summary.precision,
            "model": path.name,
            "graph": summary.to_dict(),
            "note": target.notes.get(self.precision),
        }
        confidence = inputs["calibrate"] / CONFIDENCE_FILE
        if confidence.is_file():
            shutil.copyfile(confidence, out_dir / CONFIDENCE_FILE)
            metrics["confidence_map"] = CONFIDENCE_FILE
        if self.precision in RANGED:
            metrics["calibration_set_sha256"] = calibration_digest(calibration)
            metrics["calibration_images"] = len(calibration)
            metrics["reduce_range"] = self.reduce_range
            metrics["quantization"] = quantized
        return metrics

    def _write(
        self, source: ModelSource, calibration: Calibration, inputs: Mapping[str, Path], out_dir: Path, tell: Tell
    ) -> tuple[Path, dict[str, Any]]:
        """Writes the model; int8 of a float one by our own ranges, unless that refuses what the converter takes.

        Raises:
            UnsupportedModelError: The target can't take the model.
        """
        target, quantizer = TARGETS[self.target], QUANTIZERS.get(self.target)
        if self.precision != "int8" or quantizer is None or not _is_float(source):
            return target.export(source, self.precision, calibration, out_dir), {}
        with tempfile.TemporaryDirectory(prefix=".float-", dir=out_dir) as scratch:
            if "float32" in inputs and "weights" not in inputs:
                floats = inputs["float32"] / f"model{target.suffix}"
            else:
                floats = target.export(source, "float32", calibration, Path(scratch))
            export = Int8Export(
                quantizer=quantizer,
                float_path=floats,
                calibration=calibration,
                schemes=self.schemes or tuple(quantizer.SCHEMES)[:1],
                methods=self.range_methods or RANGE_METHODS,
                sensitivity=self.sensitivity,
            )
            if self.max_drop is not None:
                return self._step(export, inputs, source.signature, out_dir, tell)
            try:
                path, record = export.make(out_dir)
                check_interface(target.inspect(path), source.signature, runtime=target.format_name)
            except UnsupportedModelError as error:
                tell({"message": f"{self.target} int8 is left to the converter: {error.message}"})
                for name in (SENSITIVITY_FILE, SENSITIVITY_PICTURE):  # of the file that is not kept
                    (out_dir / name).unlink(missing_ok=True)
            else:
                return path, record
        return target.export(source, self.precision, calibration, out_dir), {"scheme": "converter"}

    def _step(
        self, export: Int8Export, inputs: Mapping[str, Path], signature: Signature, out_dir: Path, tell: Tell
    ) -> tuple[Path, dict[str, Any]]:
        """Tries the remedy; float is what the target made of the network that was trained."""
        before = read_manifest(inputs["previous"]).metrics if "previous" in inputs else None
        floats = inputs["float32"] / export.float_path.name if "float32" in inputs else export.float_path
        path, record = take_step(
            export,
            self.remedy,
            judge=ValidationJudge(self.target, signature, inputs["data"], floats, scratch=out_dir),
            max_drop=self.max_drop or 0.0,
            previous=inputs["previous"] / before["model"] if before is not None else None,
            record=before["quantization"] if before is not None else None,
            out_dir=out_dir,
            tell=tell,
        )
        check_interface(TARGETS[self.target].inspect(path), signature, runtime=TARGETS[self.target].format_name)
        if "weights" in inputs and self.remedy != "mixed":  # which starts from what another remedy made
            seconds = read_manifest(inputs["weights"]).wall_time_s
            for row in record["attempts"]:
                if row["remedy"] == self.remedy:
                    row["weights_seconds"] = seconds
        return path, record


def _is_float(source: ModelSource) -> bool:
    """Whether a model is float32, and not quantized already."""
    return source.signature.source == "saved_model" or inspect_model(source.path).precision == "float32"


def _calibration(directory: Path, signature: Signature, *, reduce_range: bool) -> Calibration:
    """Returns the calibration set of an artifact; empty where it has none, as one made from random samples."""
    files = {tensor.name: directory / calibration_input_file(index) for index, tensor in enumerate(signature.inputs)}
    samples = {name: np.load(path, mmap_mode="r") for name, path in files.items() if path.is_file()}
    return Calibration(signature, samples if len(samples) == len(files) else {}, reduce_range)


def calibration_digest(calibration: Calibration) -> str:
    """Returns the SHA-256 of the samples that integer ranges came from: the bytes of each input's array in turn."""
    digest = hashlib.sha256()
    for array in calibration.samples.values():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

"""Says how much int8 owes to the images that its ranges come from, by drawing them several times."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from devices.errors import DeviceError
from devices.measurement import Case
from devices.profile import load_profile
from pipeline.answers import answers_on
from pipeline.errors import StageError
from pipeline.judgement import compare_quality
from pipeline.manifest import read_manifest
from pipeline.metrics import parity
from pipeline.model_source import Calibration, ModelSource
from pipeline.quantization.calibration_set import draw_calibration_set
from pipeline.quantization.int8 import Int8Export
from pipeline.quantization.ranges import RANGE_METHODS, RangeMethod
from pipeline.quantization.spread import MEASURES, spread_of
from pipeline.samples import reference_output_file, reference_samples, split_samples
from pipeline.signature import Signature, read_signature
from pipeline.stages.base import Stage, Tell
from pipeline.targets import QUANTIZERS, TARGETS
from pipeline.targets.base import TargetName
from pipeline.training.images import preprocessed_training_images


class SpreadStage(Stage):
    """Reads `data`, `calibrate` and `int8`, the export whose scheme and float layers are taken; writes only metrics.

    It may read `float32`, the same target's export in float32, which it makes for itself otherwise, from `model` where
    that is one of one's own, or from `weights`, a network whose weights a remedy changed. Those stay as they are.

    Attributes:
        target: Key of `QUANTIZERS`.
        draws: How many calibration sets are drawn. The first is that of the export.
        calibration_images: In each.
        seed: Of the first draw; each further one has the next.
        range_methods: Ways to choose ranges that are compared in each draw.
        reduce_range: Whether weights keep to 7 bits.
        host: Processor of this machine: the same int8 file can answer differently on another one.
    """

    stage: ClassVar[str] = "spread"
    other_code: ClassVar[tuple[str, ...]] = ("devices.board.*",)

    target: TargetName
    draws: int
    calibration_images: int
    seed: int
    range_methods: tuple[RangeMethod, ...] = ()
    reduce_range: bool = False
    host: dict[str, Any]

    def tool_names(self) -> tuple[str, ...]:
        """Those of the target, and its runtime."""
        return tuple(dict.fromkeys(("numpy", *TARGETS[self.target].tools, TARGETS[self.target].runtime)))

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Quantizes with each draw and runs the reference samples.

        Raises:
            StageError: The runtime refused a file, or the export was not made with ranges of ours.
            UnsupportedModelError: The runtime's tools refuse the model.
        """
        exported = read_manifest(inputs["int8"]).metrics
        record, signature = exported["quantization"], read_signature(inputs["calibrate"])
        if record["scheme"] not in QUANTIZERS[self.target].SCHEMES or not record.get("range_method"):
            raise StageError(
                f"int8 of {self.target} was left to the converter, which chooses ranges by itself: there is nothing to "
                f"draw anew. Leave quantization.draws out."
            )
        rows = []
        with tempfile.TemporaryDirectory(prefix=".spread-", dir=out_dir) as scratch:
            directory = Path(scratch)
            floats = self._floats(inputs, signature, directory)
            for number in range(self.draws):
                tell({"message": f"{self.target} int8, draw {number + 1} of {self.draws} of the calibration set"})
                drawn = directory / str(number)
                drawn.mkdir()
                rows.append(self._draw(number, floats, record, inputs, drawn))
        return {
            "target": self.target,
            "precision": exported["precision"],
            "scheme": record["scheme"],
            "metric": signature.metric,
            "exported_sha256": exported["graph"]["sha256"],
            "draws": rows,
            "spread": spread_of(rows),
        }

    def _floats(self, inputs: Mapping[str, Path], signature: Signature, directory: Path) -> Path:
        """Returns the target's file in float32 of the network that was quantized."""
        target = TARGETS[self.target]
        if "float32" in inputs and "weights" not in inputs:
            return inputs["float32"] / f"model{target.suffix}"
        holder = inputs.get("weights", inputs.get("model", inputs["calibrate"]))
        return target.export(ModelSource(holder, signature), "float32", Calibration(signature, {}), directory)

    def _draw(
        self, number: int, floats: Path, record: Mapping[str, Any], inputs: Mapping[str, Path], directory: Path
    ) -> dict[str, Any]:
        signature, seed = read_signature(inputs["calibrate"]), self.seed + number
        calibration = draw_calibration(
            inputs["data"], signature, self.calibration_images, seed, reduce_range=self.reduce_range
        )
        export = Int8Export(
            quantizer=QUANTIZERS[self.target],
            float_path=floats,
            calibration=calibration,
            schemes=(record["scheme"],),
            methods=self.range_methods or RANGE_METHODS,
        )
        path, made = export.make(directory, float_layers=tuple(record.get("float_layers", ())))
        summary = TARGETS[self.target].inspect(path)
        found = self._judge(path, signature, inputs["calibrate"], directory)
        return {
            "seed": seed,
            "sha256": summary.sha256,
            "weights_sha256": summary.weights_sha256,
            "range_method": made["range_method"],
            **found,
        }

    def _judge(self, path: Path, signature: Signature, calibrate: Path, directory: Path) -> dict[str, Any]:
        """Returns the values of `MEASURES`, as the verify stage measures them."""
        samples = reference_samples(calibrate, signature)
        case = Case(id=f"{self.target}/{path.parent.name}", runtime=self.target, path=str(path), num_threads=1)
        try:
            answers = answers_on(load_profile("local"), case, samples.for_device(), signature, scratch=directory)
        except DeviceError as error:
            raise StageError(
                f"{self.target} int8 of a draw can't be run on this machine: {error.message}", details=error.details
            ) from error
        output, reference = answers[signature.outputs[0].name], np.load(calibrate / reference_output_file(0))
        agreement = parity(reference, output, classes=signature.is_classifier)
        quality = compare_quality(signature, samples, output, reference)
        values = {**quality, **agreement}
        return {name: values[name] for name in MEASURES}


def draw_calibration(
    data: Path, signature: Signature, count: int, seed: int, *, reduce_range: bool = False
) -> Calibration:
    """Draws a calibration set from the training split, as the calibrate stage does.

    Args:
        data: Directory of a `data` artifact, of images or of arrays.
        signature: Of the model.
        count: How many samples.
        seed: Of the draw.
        reduce_range: See `pipeline.model_source.Calibration`.

    Raises:
        DataError: The training split has fewer samples than asked for.
    """
    if "inputs" not in json.loads((data / "dataset.json").read_text(encoding="utf-8")):
        rows = draw_calibration_set(np.load(data / "train_labels.npy"), count, seed)
        images = preprocessed_training_images(data, rows)
        return Calibration(signature, {signature.inputs[0].name: images}, reduce_range)
    samples = split_samples(data, "train", signature)
    labels = np.zeros(len(samples), np.int64) if samples.labels is None else np.load(samples.labels).astype(np.int64)
    rows = draw_calibration_set(labels, count, seed)
    arrays = {
        tensor.name: np.load(path, mmap_mode="r")[rows]
        for tensor, path in zip(signature.inputs, samples.files, strict=True)
    }
    return Calibration(signature, arrays, reduce_range)

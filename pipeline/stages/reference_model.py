"""What an imported model itself answers: the reference that its exported files are compared with.

It runs in its own framework, on the samples of the data section or on random ones. Nothing is fitted or folded: a
model of one's own is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, InputError
from pipeline.imports.checks import check_image_input
from pipeline.imports.reference import reference_outputs
from pipeline.judgement import completed, judge
from pipeline.model_source import ModelSource
from pipeline.quantization.calibration_checks import calibration_doubts
from pipeline.quantization.calibration_set import draw_calibration_set
from pipeline.quantization.section import CalibrationSetConfig
from pipeline.samples import (
    SampleSet,
    calibration_input_file,
    reference_input_file,
    reference_output_file,
    split_samples,
)
from pipeline.signature import Signature, read_signature
from pipeline.sources.samples import RandomConfig
from pipeline.stages.base import Stage, Tell


class ReferenceStage(Stage):
    """Reads `model` and, where there is one, `data`; writes the reference and the calibration set.

    Files: `signature.json` with the metric and the kind of the first output filled in, `reference_input_<i>.npy`,
    `reference_output_<i>.npy`, `reference_labels.npy`, `reference_targets.npy`, `calibration_input_<i>.npy`.

    Attributes:
        quantization: Which samples integer ranges come from; None draws no calibration set.
        random: What is drawn where there is no `data`.
        split: Of the data, whose samples the model answers.
    """

    stage: ClassVar[str] = "calibrate"

    quantization: CalibrationSetConfig | None
    random: RandomConfig | None = None
    split: Literal["train", "validation", "test"] = "test"
    backend: Literal["tensorflow"] = "tensorflow"

    def tool_names(self) -> tuple[str, ...]:
        """The frameworks that models come from."""
        return ("ai-edge-litert", "numpy", "onnxruntime", "openvino", "scikit-learn", "tensorflow")

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Runs the model over the samples and judges its answers.

        Raises:
            InputError: The samples don't fit the model, or it answers what is no number.
            DataError: There are too few samples to calibrate with.
        """
        signature = read_signature(inputs["model"])
        data = inputs.get("data")
        metrics: dict[str, Any] = {}
        if data is None:
            samples = self._random_samples(signature, out_dir)
        else:
            if (data / "test_images.npy").is_file():
                _, height, width, _ = np.load(data / "test_images.npy", mmap_mode="r").shape
                signature = check_image_input(signature, (height, width))
            samples = _copied(split_samples(data, self.split, signature), out_dir)
            if self.quantization is not None:
                train, test = (split_samples(data, name, signature) for name in ("train", "test"))
                metrics["calibration_set"] = _calibration_set(train, test, self.quantization, out_dir)
                for warning in metrics["calibration_set"]["warnings"]:
                    tell({"warning": warning})
        tell({"message": f"running the model itself on {len(samples)} samples"})
        outputs = reference_outputs(ModelSource(inputs["model"], signature), samples, tell)
        _check_finite(outputs)
        for index, tensor in enumerate(signature.outputs):
            np.save(out_dir / reference_output_file(index), outputs[tensor.name])
        signature = completed(signature, outputs[signature.outputs[0].name], samples)
        signature.write(out_dir)
        metrics["reference_samples"] = len(samples)
        metrics["random"] = data is None
        metrics["metric"] = signature.metric
        metrics["quality"] = judge(signature, outputs[signature.outputs[0].name], samples)
        return metrics

    def _random_samples(self, signature: Signature, out_dir: Path) -> SampleSet:
        random = self.random or RandomConfig()
        files = []
        for index, tensor in enumerate(signature.inputs):
            shape, dtype = tensor.shape[1:], tensor.dtype
            if tensor.transform is not None:  # it makes the input of pixels
                shape = (*shape[1:], shape[0]) if tensor.transform.layout == "NCHW" else shape
                dtype = "uint8"
            path = out_dir / reference_input_file(index)
            np.save(path, random.draw(shape, dtype, index=index))
            files.append(path)
        return SampleSet(signature, tuple(files))


def _calibration_set(
    samples: SampleSet, test: SampleSet, config: CalibrationSetConfig, out_dir: Path
) -> dict[str, Any]:
    """Draws the calibration set from the training split, balanced over the classes where there are labels.

    Doubts are about the first input, which most models have alone.
    """
    available, count = len(samples), config.calibration_images
    if count > available:
        raise DataError(
            f"quantization.calibration_images is {count}, but the training split has {available} samples. "
            f"Lower it or give more samples."
        )
    labels = np.load(samples.labels) if samples.labels is not None else np.zeros(available, np.int64)
    rows = draw_calibration_set(labels.astype(np.int64), count, config.seed)
    for index, path in enumerate(samples.files):
        np.save(out_dir / calibration_input_file(index), np.load(path, mmap_mode="r")[rows])
    doubts = calibration_doubts(
        np.load(out_dir / calibration_input_file(0), mmap_mode="r"),
        labels[rows] if samples.labels is not None else None,
        num_classes=int(labels.max()) + 1,
        test=np.load(test.files[0], mmap_mode="r"),
    )
    return {**doubts, "seed": config.seed, "count": len(rows), "rows": rows.tolist()}


def _copied(samples: SampleSet, out_dir: Path) -> SampleSet:
    """Copies samples into the artifact, so that it stands for itself."""
    files = []
    for index, path in enumerate(samples.files):
        files.append(out_dir / reference_input_file(index))
        np.save(files[-1], np.load(path, mmap_mode="r"))
    copies: dict[str, Path | None] = {}
    for name, source in (("labels", samples.labels), ("targets", samples.targets)):
        copies[name] = None if source is None else out_dir / f"reference_{name}.npy"
        if source is not None:
            np.save(out_dir / f"reference_{name}.npy", np.load(source))
    return SampleSet(samples.signature, tuple(files), **copies)


def _check_finite(outputs: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"The model itself answers NaN or infinity in its output {name}: there is nothing to compare with. "
                f"Give it samples it is made for (data: {{source: arrays}}), or mend the model."
            )

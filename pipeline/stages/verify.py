"""Compares one exported model with the Keras reference, image by image, through the code that runs on boards."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from devices.errors import DeviceError
from devices.measurement import Case, SampleFile, predict
from devices.profile import load_profile
from pipeline.errors import StageError
from pipeline.manifest import read_manifest
from pipeline.metrics import accuracy_interval, calibration_summary, count_correct, parity
from pipeline.stages.base import Stage, Tell
from pipeline.targets import TARGETS
from pipeline.targets.base import TargetName


class VerifyStage(Stage):
    """Reads `calibrate` (the reference) and `export`; writes the logits of the exported model.

    Attributes:
        target: Whose runtime runs the model.
        host: Processor of this machine: the same int8 file can answer differently on another one.
    """

    stage: ClassVar[str] = "verify"
    runs_in_child: ClassVar[bool] = False
    other_code: ClassVar[tuple[str, ...]] = ("devices.board.*",)

    target: TargetName
    host: dict[str, Any]

    def tool_names(self) -> tuple[str, ...]:
        """The runtime."""
        return ("numpy", TARGETS[self.target].runtime)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Runs every reference image through the runtime, in an agent's process of its own.

        Raises:
            StageError: The runtime refused the model, crashed, or gave logits that are no numbers.
        """
        exported = read_manifest(inputs["export"]).metrics
        reference_dir = inputs["calibrate"]
        reference = np.load(reference_dir / "reference_logits.npy")
        labels = np.load(reference_dir / "reference_labels.npy")
        label = f"{exported['target']}/{exported['precision']}"
        case = Case(
            id=label,
            runtime=self.target,
            path=str(inputs["export"] / exported["model"]),
            sha256=exported["graph"]["sha256"],
            weights_sha256=exported["graph"]["weights_sha256"],
            num_threads=1,
        )
        logits_path = out_dir / "logits.npy"
        try:
            images = SampleFile(path=str(reference_dir / "reference_images.npy"))
            with tempfile.TemporaryDirectory(prefix=".outputs-", dir=out_dir) as scratch:
                answer = predict(load_profile("local"), case, [images], None, scratch, tell=tell)
                Path(answer.outputs[0].path).replace(logits_path)
        except DeviceError as error:
            raise StageError(f"{label} can't be run on this machine: {error.message}", details=error.details) from error
        logits = np.load(logits_path)
        try:
            compared = parity(reference, logits)
        except ValueError as error:
            raise StageError(f"{label} can't be compared with the reference: {error}") from error
        count = len(labels)
        correct, reference_correct = count_correct(logits[:count], labels), count_correct(reference[:count], labels)
        return {
            "images": len(reference),
            "test_images": count,
            "parity": compared,
            "correct": correct,
            "accuracy": correct / count,
            "accuracy_interval": list(accuracy_interval(correct, count)),
            "reference_accuracy": reference_correct / count,
            "accuracy_drop": (reference_correct - correct) / count,
            **{
                name: value for name, value in calibration_summary(logits[:count], labels).items() if name != "accuracy"
            },
        }

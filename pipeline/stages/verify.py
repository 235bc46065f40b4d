"""Compares one exported model with the Keras reference, image by image, through the code that runs on boards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from devices.board.confidence import read_confidence_map
from devices.errors import DeviceError
from devices.measurement import Case
from devices.profile import load_profile
from pipeline.answers import answers_on
from pipeline.errors import StageError
from pipeline.judgement import compare_quality
from pipeline.manifest import read_manifest
from pipeline.metrics import parity, worst_parity
from pipeline.samples import output_file, reference_output_file, reference_samples
from pipeline.signature import read_signature
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
        """Runs every reference sample through the runtime, in an agent's process of its own.

        Raises:
            StageError: The runtime refused the model, crashed, or gave values that are no numbers.
        """
        exported = read_manifest(inputs["export"]).metrics
        directory = inputs["calibrate"]
        signature = read_signature(directory)
        label = f"{exported['target']}/{exported['precision']}"
        case = Case(
            id=label,
            runtime=self.target,
            path=str(inputs["export"] / exported["model"]),
            sha256=exported["graph"]["sha256"],
            weights_sha256=exported["graph"]["weights_sha256"],
            num_threads=1,
        )
        samples = reference_samples(directory, signature)
        try:
            answers = answers_on(
                load_profile("local"), case, samples.for_device(), signature, scratch=out_dir, tell=tell
            )
        except DeviceError as error:
            raise StageError(f"{label} can't be run on this machine: {error.message}", details=error.details) from error
        names, compared = [output.name for output in signature.outputs], []
        for index, output in enumerate(signature.outputs):
            np.save(out_dir / output_file(index), answers[output.name])
            reference = np.load(directory / reference_output_file(index))
            classes = signature.is_classifier and index == 0
            try:
                compared.append(parity(reference, answers[output.name], classes=classes))
            except ValueError as error:
                raise StageError(f"{label} can't be compared with the reference: {output.name}: {error}") from error
        first = signature.outputs[0].name
        return {
            "images": len(samples),
            "outputs": [{"name": name, **row} for name, row in zip(names, compared, strict=True)],
            "parity": worst_parity(compared),
            **compare_quality(
                signature,
                samples,
                answers[first],
                np.load(directory / reference_output_file(0)),
                read_confidence_map(str(directory)),
            ),
        }

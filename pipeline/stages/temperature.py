"""Fits a temperature to an int8 export whose confidence quantization shifted, and folds it into the file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from devices.measurement import Case
from devices.profile import load_profile
from pipeline.answers import answers_on
from pipeline.errors import StageError
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.metrics import Logits
from pipeline.quantization.temperature import refit
from pipeline.samples import split_samples
from pipeline.signature import Signature, read_signature
from pipeline.stages.base import Stage, Tell
from pipeline.targets import QUANTIZERS, TARGETS
from pipeline.targets.base import TargetName, model_files


class TemperatureStage(Stage):
    """Reads `export` (int8 or mixed), `calibrate`, `data` and `float32`; writes the export, folded or as it was.

    Without `float32` (the same target's export in float) the network's temperature counts as 1. Only validation images
    are looked at. Metrics are those of the export, and `temperature` (`pipeline.quantization.temperature.refit`).

    Attributes:
        target: Key of `QUANTIZERS`.
    """

    stage: ClassVar[str] = "temperature"
    other_code: ClassVar[tuple[str, ...]] = ("devices.board.*",)

    target: TargetName

    def tool_names(self) -> tuple[str, ...]:
        """Those of the target, its runtime, and what fits."""
        return tuple(dict.fromkeys((*TARGETS[self.target].tools, TARGETS[self.target].runtime, "numpy", "scipy")))

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Runs the files on the validation images, fits, and folds what is certain.

        Raises:
            StageError: The model is no classifier with logits, or the data has no labels.
            DeviceError: The runtime refused a file.
        """
        exported = read_manifest(inputs["export"]).metrics
        signature = read_signature(inputs["calibrate"])
        samples = split_samples(inputs["data"], "validation", signature)
        if not gives_logits(signature) or samples.labels is None:
            raise StageError(
                "A temperature is fitted to the logits of a classifier on labelled images, but the model or its data "
                "has no classes. Set quantization.refit_temperature to false."
            )
        for file in inputs["export"].iterdir():
            if file.is_file() and file.name != MANIFEST:  # attempts of a walk stay in the artifact of their step
                shutil.copyfile(file, out_dir / file.name)
        output = signature.outputs[0].name

        def answer(path: Path) -> Logits:
            case = Case(id=path.name, runtime=self.target, path=str(path), num_threads=1)
            found = answers_on(load_profile("local"), case, samples.for_device(), signature, scratch=out_dir)
            return found[output]

        tell({"message": f"{self.target} {exported['precision']}: temperature on {len(samples)} validation images"})
        model = _model_of(inputs["export"])
        with tempfile.TemporaryDirectory(prefix=".folded-", dir=out_dir) as scratch:
            folded = Path(scratch) / model.name
            record = refit(
                QUANTIZERS[self.target],
                model,
                folded,
                answer=answer,
                floats=answer(_model_of(inputs["float32"])) if "float32" in inputs else None,
                labels=np.load(samples.labels),
                output=output,
            )
            if record["folded"]:
                for file in model_files(folded):
                    shutil.copyfile(file, out_dir / file.name)
        return {
            **exported,
            "graph": TARGETS[self.target].inspect(out_dir / model.name).to_dict(),
            "temperature": record,
        }


def _model_of(export: Path) -> Path:
    return export / str(read_manifest(export).metrics["model"])


def gives_logits(signature: Signature) -> bool:
    """Whether a temperature means something for a model's first output."""
    return signature.is_classifier and signature.outputs[0].kind == "logits"

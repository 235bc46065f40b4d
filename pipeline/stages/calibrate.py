"""Makes the confidence honest and fixes what the exported models are compared with.

Calibrates confidence on the validation split and folds what it can into the last layer, draws the calibration set for
int8 from the training split, and records the logits of the finished network on the test split: the Keras reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.calibration.record import SplitLogits, calibrate_confidence
from pipeline.network import ModelConfig, load_network, predict_logits, save_network
from pipeline.quantization.section import CalibrationSetConfig
from pipeline.reference import CalibrateConfig, write_calibration_set, write_reference
from pipeline.saved_model import write_saved_model
from pipeline.stages.base import Stage, Tell
from pipeline.training.config import Backend


class CalibrateStage(Stage):
    """Reads `data` and `train`; writes the folded network, the calibration set and the reference logits.

    Also `reliability.json`, `reliability.svg`, and `calibration.json` where a map of the confidence goes with the
    network (`pipeline.calibration.record`).
    """

    stage: ClassVar[str] = "calibrate"

    calibrate: CalibrateConfig
    quantization: CalibrationSetConfig
    backend: Backend = "tensorflow"

    def tool_names(self) -> tuple[str, ...]:
        """Keras, the backend, and what fits and draws."""
        return ("keras", "matplotlib", "numpy", "scikit-learn", "scipy", self.backend)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Fits, folds, draws, and records the reference."""
        data = inputs["data"]
        model = load_network(inputs["train"])
        metrics = self._calibrate(model, data, out_dir, tell)
        description = json.loads((inputs["train"] / "network.json").read_text(encoding="utf-8"))
        save_network(
            model,
            out_dir,
            config=ModelConfig.model_validate(description["model"]),
            classes=description["classes"],
        )
        tell({"message": "writing the network in the form that targets convert from"})
        write_saved_model(model, out_dir)
        tell({"message": "recording the reference on the test split"})
        metrics["test"] |= write_reference(data, out_dir, lambda images: predict_logits(model, images))
        metrics["calibration_set"] = write_calibration_set(data, out_dir, self.quantization, tell)
        return metrics

    def _calibrate(self, model: Any, data: Path, out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Fits, folds what can be folded, and writes and returns what was found."""
        splits = {}
        for name in ("validation", "test"):
            tell({"message": f"running the network on the {name} split"})
            images = np.load(data / f"{name}_images.npy", mmap_mode="r")
            logits = predict_logits(model, images) if len(images) else np.empty((0, 1), np.float32)
            splits[name] = SplitLogits(logits, np.load(data / f"{name}_labels.npy"))
        scaling, metrics = calibrate_confidence(
            self.calibrate.method, splits["validation"], splits["test"], out_dir, tell
        )
        if scaling.changes_logits:
            layer = model.get_layer("logits")
            kernel, bias = (np.asarray(weight) for weight in layer.get_weights())
            layer.set_weights(scaling.folded(kernel, bias))
        return metrics

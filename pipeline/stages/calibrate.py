"""Makes the confidence honest and fixes what the exported models are compared with.

Fits one temperature on the validation split and folds it into the last layer, draws the calibration set for int8
from the training split, and records the logits of the finished network on the test split: the Keras reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.metrics import calibration_summary, fit_temperature
from pipeline.network import ModelConfig, load_network, predict_logits, save_network
from pipeline.reference import CalibrateConfig, QuantizationConfig, write_calibration_set, write_reference
from pipeline.saved_model import write_saved_model
from pipeline.stages.base import Stage, Tell
from pipeline.training.config import Backend


class CalibrateStage(Stage):
    """Reads `data` and `train`; writes the folded network, the calibration set and the reference logits."""

    stage: ClassVar[str] = "calibrate"

    calibrate: CalibrateConfig
    quantization: QuantizationConfig
    backend: Backend = "tensorflow"

    def tool_names(self) -> tuple[str, ...]:
        """Keras, SciPy and the backend."""
        return ("keras", "numpy", "scipy", self.backend)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Fits, folds, draws, and records the reference."""
        data = inputs["data"]
        model = load_network(inputs["train"])
        metrics = self._fold_temperature(model, data, tell)
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
        metrics["calibration_set"] = write_calibration_set(data, out_dir, self.quantization)
        return metrics

    def _fold_temperature(self, model: Any, data: Path, tell: Tell) -> dict[str, Any]:
        validation_images = np.load(data / "validation_images.npy", mmap_mode="r")
        validation_labels = np.load(data / "validation_labels.npy")
        test_images = np.load(data / "test_images.npy", mmap_mode="r")
        test_labels = np.load(data / "test_labels.npy")
        tell({"message": "fitting the temperature on the validation split"})
        validation = predict_logits(model, validation_images)
        test = predict_logits(model, test_images)
        temperature = fit_temperature(validation, validation_labels) if self.calibrate.temperature else 1.0
        if temperature != 1.0:
            layer = model.get_layer("logits")
            layer.set_weights([np.asarray(weight) / temperature for weight in layer.get_weights()])
        return {
            "temperature": temperature,
            "validation": {
                "before": calibration_summary(validation, validation_labels),
                "after": calibration_summary(validation / temperature, validation_labels),
            },
            "test": {
                "before": calibration_summary(test, test_labels),
                "after": calibration_summary(test / temperature, test_labels),
            },
        }

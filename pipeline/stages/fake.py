"""Stand-ins for the stages that need Keras: a linear classifier, trained in milliseconds with NumPy.

They serve a recipe whose network is `fake`, so that the runner, the caches and the command line can be tried, and
are tested, in seconds. They obey the same contracts as the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.calibration.record import SplitLogits, calibrate_confidence
from pipeline.metrics import calibration_summary
from pipeline.quantization.section import CalibrationSetConfig
from pipeline.reference import CalibrateConfig, write_calibration_set, write_reference
from pipeline.signature import image_signature
from pipeline.stages.base import Stage, Tell
from pipeline.targets.fake import WEIGHTS_FILE
from pipeline.training.images import preprocessed_training_images


class FakeTrainStage(Stage):
    """Reads `data`; writes ridge-regressed weights of a linear classifier."""

    stage: ClassVar[str] = "train"
    tools: ClassVar[tuple[str, ...]] = ("numpy",)

    ridge: float = 10.0

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Solves the normal equations of the one-hot targets."""
        data = inputs["data"]
        classes = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["classes"]
        images = preprocessed_training_images(data)
        labels = np.load(data / "train_labels.npy")
        tell({"message": "solving for the fake network's weights"})
        features = images.reshape(len(images), -1).astype(np.float64) / 255
        mean = features.mean(axis=0)
        targets = np.eye(len(classes))[labels]
        gram = (features - mean).T @ (features - mean) + self.ridge * np.eye(features.shape[1])
        weights = 8 * np.linalg.solve(gram, (features - mean).T @ (targets - targets.mean(axis=0)))
        bias = 8 * targets.mean(axis=0) - mean @ weights
        _save(out_dir, weights, bias, images.shape[1:])
        validation = np.load(data / "validation_images.npy")
        logits = _predict(out_dir, validation)
        judged = calibration_summary(logits, np.load(data / "validation_labels.npy"))
        return {
            "best_epoch": 1,
            "validation_accuracy": judged["accuracy"],
            "validation_loss": judged["nll"],
            "parameters": int(weights.size + bias.size),
            "training_images": len(images),
            "backend": "numpy",
        }


class FakeCalibrateStage(Stage):
    """What `CalibrateStage` does, for the fake network."""

    stage: ClassVar[str] = "calibrate"
    tools: ClassVar[tuple[str, ...]] = ("matplotlib", "numpy", "scikit-learn", "scipy")

    calibrate: CalibrateConfig
    quantization: CalibrationSetConfig

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Fits, folds, draws, and records the reference."""
        data, train = inputs["data"], inputs["train"]
        splits = {
            name: SplitLogits(
                _predict(train, np.load(data / f"{name}_images.npy")), np.load(data / f"{name}_labels.npy")
            )
            for name in ("validation", "test")
        }
        scaling, metrics = calibrate_confidence(
            self.calibrate.method, splits["validation"], splits["test"], out_dir, tell
        )
        with np.load(train / WEIGHTS_FILE) as archive:
            weights, bias = scaling.folded(archive["weights"], archive["bias"])
            _save(out_dir, weights, bias, archive["shape"])
            height, width, channels = (int(size) for size in archive["shape"])
        classes = splits["test"].logits.shape[1]
        image_signature((height, width, channels), classes, source="fake", model=WEIGHTS_FILE).write(out_dir)
        metrics["test"] |= write_reference(data, out_dir, lambda images: _predict(out_dir, images))
        metrics["calibration_set"] = write_calibration_set(data, out_dir, self.quantization, tell)
        return metrics


def _save(directory: Path, weights: npt.NDArray[Any], bias: npt.NDArray[Any], shape: Any) -> None:
    np.savez(
        directory / WEIGHTS_FILE,
        weights=weights.astype(np.float32),
        bias=bias.astype(np.float32),
        shape=np.asarray(shape, np.int64),
    )


def _predict(directory: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with np.load(directory / WEIGHTS_FILE) as archive:
        features = np.asarray(images).reshape(len(images), -1).astype(np.float32) / np.float32(255)
        logits: npt.NDArray[np.float32] = features @ archive["weights"] + archive["bias"]
    return logits

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
import numpy.typing as npt
from pydantic import Field

from pipeline.errors import DataError
from pipeline.metrics import calibration_summary, fit_temperature
from pipeline.network import ModelConfig, load_network, predict_logits, save_network
from pipeline.quantization.calibration_set import draw_calibration_set
from pipeline.saved_model import write_saved_model
from pipeline.stages.base import FrozenConfig, Stage, Tell
from pipeline.training.config import Backend

MIN_PARITY_IMAGES = 128


class CalibrateConfig(FrozenConfig):
    """How confidence is calibrated.

    Attributes:
        temperature: Whether a temperature is fitted and folded into the last layer.
    """

    temperature: bool = True


class QuantizationConfig(FrozenConfig):
    """What the integer precisions take their ranges from.

    Attributes:
        calibration_images: How many training images, balanced over the classes.
        seed: Of the draw.
    """

    calibration_images: int = Field(default=200, ge=64)
    seed: int = Field(default=0, ge=0, lt=2**31)


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


def write_reference(data: Path, out_dir: Path, predict: Any) -> dict[str, Any]:
    """Writes the images every exported model is verified on, and the network's logits for them.

    They are the test split; where that has fewer than 128 images, validation images are added for the comparison
    of logits. Accuracy is always that of the test images alone.

    Raises:
        DataError: Test and validation together have fewer than 128 images.
    """
    images = np.load(data / "test_images.npy", mmap_mode="r")
    labels = np.load(data / "test_labels.npy")
    num_test = len(labels)
    if num_test < MIN_PARITY_IMAGES:
        more = np.load(data / "validation_images.npy", mmap_mode="r")[: MIN_PARITY_IMAGES - num_test]
        if num_test + len(more) < MIN_PARITY_IMAGES:
            raise DataError(
                f"The test split has {num_test} images and validation {len(more)}; verifying needs at least "
                f"{MIN_PARITY_IMAGES} in both together. Give more images or larger test and validation fractions."
            )
        images = np.concatenate([images, more])
    logits: npt.NDArray[np.float32] = predict(images)
    np.save(out_dir / "reference_images.npy", images)
    np.save(out_dir / "reference_labels.npy", labels)
    np.save(out_dir / "reference_logits.npy", logits)
    return {"reference_images": len(images), "test_images": num_test}


def write_calibration_set(data: Path, out_dir: Path, config: QuantizationConfig) -> dict[str, Any]:
    """Draws the calibration set from the training split, writes its images, and returns the list for the manifest.

    Raises:
        DataError: The training split has fewer images than asked for.
    """
    labels = np.load(data / "train_labels.npy")
    rows = draw_calibration_set(labels, config.calibration_images, config.seed)
    chosen = set(rows.tolist())
    names: dict[int, tuple[str, str]] = {}
    with (data / "index.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            if record["split"] == "train" and record["row"] in chosen:
                names[record["row"]] = (record["name"], record["digest"])
    np.save(out_dir / "calibration_images.npy", np.load(data / "train_images.npy", mmap_mode="r")[rows])
    return {
        "seed": config.seed,
        "count": len(rows),
        "rows": rows.tolist(),
        "names": [names[row][0] for row in rows.tolist()],
        "digests": [names[row][1] for row in rows.tolist()],
    }

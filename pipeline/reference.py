"""What the exported models are compared with, and what their integer ranges come from.

Shared by the calibrate stage and its stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from pipeline.calibration.methods import Method
from pipeline.errors import DataError
from pipeline.quantization.calibration_checks import calibration_doubts
from pipeline.quantization.calibration_set import draw_calibration_set
from pipeline.quantization.section import CalibrationSetConfig
from pipeline.samples import calibration_input_file, reference_input_file, reference_output_file
from pipeline.stages.base import FrozenConfig, Tell
from pipeline.training.images import preprocessed_training_images

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Takes images (images, height, width, 3) and gives logits (images, classes)."""

MIN_PARITY_IMAGES = 128


class CalibrateConfig(FrozenConfig):
    """How confidence is calibrated, on the validation split.

    Attributes:
        method: `temperature` divides all logits by one number (Guo et al. 2017); `vector` gives each class a scale
            and a bias of its own, which may change the top class; both are folded into the last layer. `isotonic`
            maps the confidence that a temperature leaves by a monotone curve (Zadrozny and Elkan 2002), which lies
            beside the model as `calibration.json`. `none` takes the confidence as training left it.
    """

    method: Method = "temperature"

    @model_validator(mode="before")
    @classmethod
    def _has_no_old_key(cls, values: Any) -> Any:
        if isinstance(values, dict) and "temperature" in values:
            raise ValueError(
                "calibrate.temperature is now calibrate.method: write method: temperature in place of true, and "
                "method: none in place of false."
            )
        return values


def write_reference(data: Path, out_dir: Path, predict: Predict) -> dict[str, Any]:
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
    np.save(out_dir / reference_input_file(0), images)
    np.save(out_dir / "reference_labels.npy", labels)
    np.save(out_dir / reference_output_file(0), logits)
    return {"reference_images": len(images), "test_images": num_test}


def write_calibration_set(data: Path, out_dir: Path, config: CalibrationSetConfig, tell: Tell) -> dict[str, Any]:
    """Draws the calibration set from the training split, writes its images, and returns the list for the manifest.

    What speaks against it (`calibration_doubts`) is told as warnings and stands in the manifest.

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
    images = preprocessed_training_images(data, rows)
    np.save(out_dir / calibration_input_file(0), images)
    num_classes = len(json.loads((data / "dataset.json").read_text(encoding="utf-8"))["classes"])
    test = np.load(data / "test_images.npy", mmap_mode="r")
    doubts = calibration_doubts(images, labels[rows], num_classes=num_classes, test=test)
    for warning in doubts["warnings"]:
        tell({"warning": warning})
    return {
        **doubts,
        "seed": config.seed,
        "count": len(rows),
        "rows": rows.tolist(),
        "names": [names[row][0] for row in rows.tolist()],
        "digests": [names[row][1] for row in rows.tolist()],
    }

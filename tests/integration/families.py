"""One network of each family, exported by every target; run as a script by a test.

    python families.py DIRECTORY NAME...

writes for each `DIRECTORY/NAME/samples.npz` (`inputs`, and the `outputs` that Keras answers), the calibration
artifact in `calibrate`, and for each target and precision the model in `<target>/<precision>` with `metrics.json`.

The weights are random, as `tests/random_weights.py` draws them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

import models
from pipeline.samples import calibration_input_file
from pipeline.saved_model import write_saved_model
from pipeline.stages.export import ExportStage
from tests.random_weights import randomize

COUNT = 24
SIZE = 64

OPTIONS: dict[str, dict[str, Any]] = {
    "mobilenet_v1": {"width": 0.5},
    "mobilenet_v2": {"width": 0.5},
    "mobilenet_v3_small": {},
    "mobilenet_v3_small_minimalistic": {},
    "mobilenet_v4_conv_small": {"width": 0.5},
    "mobilenet_v4_hybrid_medium": {"width": 0.5},
    "efficientnet_b0": {},
    "efficientnet_lite0": {},
    "efficientnet_v2_b0": {},
    "resnet8": {"input_shape": None},
    "ds_cnn": {"input_shape": None},
    "mobilenet_v1_025_96": {"input_shape": None},
    "dense_autoencoder": {"input_shape": None, "num_classes": None},
}
"""What is exported: each family, with the options of `models.build`."""

TARGETS = ("litert", "onnxruntime", "openvino")
PRECISIONS = ("float32", "int8")


def build(name: str) -> Any:
    """The network, without dropout, so that a step of training gives the statistics of the samples."""
    arguments: dict[str, Any] = {"input_shape": (SIZE, SIZE, 3), "num_classes": 10, "dropout": 0.0, "drop_path": 0.0}
    return models.build(name, **(arguments | OPTIONS[name]))


def samples(network: Any, rng: np.random.Generator) -> Any:
    """Images with large and small structures, or normal values."""
    shape = network.inputs[0].shape[1:]
    if network.inputs[0].name != "image":
        return rng.normal(0, 1, (COUNT, *shape)).astype(np.float32)
    coarse = rng.uniform(0, 255, (COUNT, 4, 4, 3)).repeat(shape[0] // 4, 1).repeat(shape[1] // 4, 2)
    return np.clip(coarse + rng.normal(0, 30, (COUNT, *shape)), 0, 255).astype(np.uint8)


def export(name: str, directory: Path) -> None:
    """Writes one network."""
    keras.utils.set_random_seed(0)
    network, rng = build(name), np.random.default_rng(0)
    inputs = samples(network, rng)
    randomize(network, inputs, rng)
    calibrate = directory / "calibrate"
    calibrate.mkdir(parents=True)
    np.savez(directory / "samples.npz", inputs=inputs, outputs=network.predict(inputs, verbose=0))
    write_saved_model(network, calibrate)
    np.save(calibrate / calibration_input_file(0), inputs)
    for target in TARGETS:
        for precision in PRECISIONS:
            folder = directory / target / precision
            folder.mkdir(parents=True)
            stage = ExportStage(target=target, precision=precision)  # type: ignore[arg-type]
            metrics = stage.run({"calibrate": calibrate}, folder, tell_nobody)
            (folder / "metrics.json").write_text(json.dumps(metrics))


def tell_nobody(event: Any) -> None:
    """The progress of a stage goes nowhere."""
    del event


if __name__ == "__main__":
    for chosen in sys.argv[2:] or OPTIONS:
        export(chosen, Path(sys.argv[1]) / chosen)

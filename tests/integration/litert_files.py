"""The float32 and the converter's int8 `.tflite` file of networks; run as a script by a test.

    python litert_files.py DIRECTORY NAME...

writes `DIRECTORY/NAME/samples.npz` (`inputs`, and the `outputs` that Keras answers), `float32.tflite`, `int8.tflite`.
The networks and their weights are those of `families.py`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import families
import keras
import numpy as np

from pipeline.model_source import Calibration, ModelSource
from pipeline.saved_model import write_saved_model
from pipeline.signature import read_signature
from pipeline.targets.litert import LiteRTTarget


def write(name: str, directory: Path) -> None:
    """Writes the files of one network."""
    keras.utils.set_random_seed(0)
    network, rng = families.build(name), np.random.default_rng(0)
    inputs = families.samples(network, rng)
    families.randomize(network, inputs, rng)
    directory.mkdir(parents=True)
    np.savez(directory / "samples.npz", inputs=inputs, outputs=network.predict(inputs, verbose=0))
    with tempfile.TemporaryDirectory() as scratch:
        write_saved_model(network, Path(scratch))
        signature = read_signature(Path(scratch))
        source = ModelSource(Path(scratch), signature)
        calibration = Calibration(signature, {signature.inputs[0].name: inputs})
        for precision in ("float32", "int8"):
            path = LiteRTTarget().export(source, precision, calibration, Path(scratch))
            shutil.move(path, directory / f"{precision}.tflite")


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        write(chosen, Path(sys.argv[1]) / chosen)

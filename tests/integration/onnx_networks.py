"""Networks of `families.py` as float ONNX files; run as a script by a test.

    python onnx_networks.py DIRECTORY NAME...

writes for each `DIRECTORY/NAME/samples.npz` (`inputs`, and the `outputs` that Keras answers) and `float.onnx`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
from families import build, randomize, samples

from pipeline.model_source import Calibration, ModelSource
from pipeline.saved_model import write_saved_model
from pipeline.signature import read_signature
from pipeline.targets.onnxruntime import OnnxRuntimeTarget


def export(name: str, directory: Path) -> None:
    """Writes one network."""
    keras.utils.set_random_seed(0)
    network, rng = build(name), np.random.default_rng(0)
    inputs = samples(network, rng)
    randomize(network, inputs, rng)
    directory.mkdir(parents=True)
    np.savez(directory / "samples.npz", inputs=inputs, outputs=network.predict(inputs, verbose=0))
    write_saved_model(network, directory)
    signature = read_signature(directory)
    source, nothing = ModelSource(directory, signature), Calibration(signature, {})
    OnnxRuntimeTarget().export(source, "float32", nothing, directory).rename(directory / "float.onnx")


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        export(chosen, Path(sys.argv[1]) / chosen)

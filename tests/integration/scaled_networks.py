"""Two small classifiers as float32 files of each target; run as a script by a test.

    python scaled_networks.py DIRECTORY

writes for each network and target `DIRECTORY/NAME/TARGET/model.*`, and `DIRECTORY/NAME/samples.npz` (`inputs`, and the
`outputs` that Keras answers). Weights are drawn as `families.py` draws them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import families
import keras
import numpy as np
from keras import layers

from pipeline.model_source import Calibration, ModelSource
from pipeline.saved_model import write_saved_model
from pipeline.signature import read_signature
from pipeline.targets import TARGETS

SIZE, CLASSES = 16, 5
HEADS = ("dense_head", "conv_head")


def build(name: str) -> Any:
    """A stem, a depthwise block, and a head that is a matrix product, or a convolution with a reshape behind it."""
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    value = layers.Rescaling(1 / 127.5, -1, name="rescaling")(image)
    value = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(value)
    value = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(name="stem_bn")(value))
    value = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(value)
    value = layers.ReLU(6.0, name="depthwise_relu")(layers.BatchNormalization(name="depthwise_bn")(value))
    if name == "dense_head":
        value = layers.GlobalAveragePooling2D(name="pool")(value)
        logits = layers.Dense(CLASSES, name="logits")(value)
    else:
        value = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(value)
        logits = layers.Reshape((CLASSES,), name="logits")(layers.Conv2D(CLASSES, 1, name="head")(value))
    return keras.Model(image, logits, name=name)


def write(name: str, directory: Path) -> None:
    """Writes the files of one network."""
    keras.utils.set_random_seed(0)
    network, rng = build(name), np.random.default_rng(0)
    inputs = families.samples(network, rng)
    families.randomize(network, inputs, rng)
    directory.mkdir(parents=True)
    np.savez(directory / "samples.npz", inputs=inputs, outputs=network.predict(inputs, verbose=0))
    write_saved_model(network, directory)
    signature = read_signature(directory)
    for target in families.TARGETS:
        (directory / target).mkdir()
        nothing = Calibration(signature, {})
        TARGETS[target].export(ModelSource(directory, signature), "float32", nothing, directory / target)


if __name__ == "__main__":
    for head in HEADS:
        write(head, Path(sys.argv[1]) / head)

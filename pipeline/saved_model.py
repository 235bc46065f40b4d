"""One TensorFlow SavedModel of a network, from which all three targets convert.

The calibrate stage writes it into its artifact, beside the weights it came from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.signature import image_signature

if TYPE_CHECKING:
    import keras

DIRECTORY = "saved_model"


def write_saved_model(model: keras.Model, directory: Path) -> None:
    """Writes a SavedModel of the contract and its signature into an artifact's directory; Keras must run on TensorFlow.

    Its one signature, `serve`, takes `image`, uint8 (1, height, width, 3), and gives `logits`, float32 (1, classes).
    """
    import keras

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        name="serve",
        fn=lambda image: {"logits": model(image, training=False)},
        input_signature=[keras.InputSpec(shape=(1, *model.inputs[0].shape[1:]), dtype="uint8", name="image")],
    )
    archive.write_out(str(directory / DIRECTORY), verbose=False)
    height, width, channels = model.inputs[0].shape[1:]
    num_classes = model.outputs[0].shape[-1]
    image_signature((height, width, channels), num_classes, source="saved_model", model=DIRECTORY).write(directory)

"""One TensorFlow SavedModel of a network, from which all three targets convert.

The calibrate stage writes it into its artifact, beside the weights it came from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.folding import fold_for_inference
from pipeline.signature import InputTensor, OutputTensor, Signature, image_signature

if TYPE_CHECKING:
    import keras

DIRECTORY = "saved_model"


def write_saved_model(model: keras.Model, directory: Path) -> None:
    """Writes a SavedModel of the contract and its signature into an artifact's directory; Keras must run on TensorFlow.

    Its one signature, `serve`, takes `image`, uint8 (1, height, width, 3), and gives `logits`, float32 (1, classes);
    that of a network on features takes `features`, float32, and gives what the network gives. What only training needs
    is folded away first.
    """
    import keras

    model = fold_for_inference(model)
    [tensor], [output] = model.inputs, model.output_names
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        name="serve",
        fn=lambda values: {output: model(values, training=False)},
        input_signature=[keras.InputSpec(shape=(1, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name)],
    )
    archive.write_out(str(directory / DIRECTORY), verbose=False)
    _signature(model).write(directory)


def _signature(model: keras.Model) -> Signature:
    """The contract's, or that of a network on features."""
    [tensor], [output] = model.inputs, model.output_names
    if tensor.name == "image":
        height, width, channels = tensor.shape[1:]
        num_classes = model.outputs[0].shape[-1]
        return image_signature((height, width, channels), num_classes, source="saved_model", model=DIRECTORY)
    classifies = output == "logits"
    return Signature(
        source="saved_model",
        model=DIRECTORY,
        inputs=(InputTensor(name=tensor.name, dtype=str(tensor.dtype), shape=(1, *tensor.shape[1:])),),
        outputs=(
            OutputTensor(
                name=output,
                dtype="float32",
                shape=(1, *model.outputs[0].shape[1:]),
                kind="logits" if classifies else "values",
            ),
        ),
        metric="top1" if classifies else None,
    )

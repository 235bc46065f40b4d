"""What a model takes and gives: the names, types and shapes that every target, device and metric goes by.

Networks of ours all have the signature of the model contract (`image_signature`); a model of one's own brings its
own, read from its file and completed by the recipe.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from devices.board.preprocess import InputTransform
from pipeline.stages.base import FrozenConfig

SIGNATURE_FILE = "signature.json"

SourceFormat = Literal["saved_model", "onnx", "tflite", "openvino", "fake"]
"""What targets convert from. A `.keras` file becomes a SavedModel when it is imported."""

OutputKind = Literal["logits", "probabilities", "values"]
Metric = Literal["top1", "mse", "auc"]


class Transform(FrozenConfig):
    """How a stored sample becomes the input of a model.

    `value * scale + offset`, per channel or for all, then the layout, then the type of the input. See
    `devices.board.preprocess.InputTransform`, which computes it.

    Attributes:
        layout: `NHWC` leaves images as they are stored, `NCHW` puts the channels first.
        scale: One number, or one for each channel.
        offset: One number, or one for each channel.
    """

    layout: Literal["NHWC", "NCHW"] = "NHWC"
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0


class InputTensor(FrozenConfig):
    """One input.

    Attributes:
        name: As the model calls it.
        dtype: Element type, such as `uint8` or `float32`.
        shape: With the batch of 1 in front; no dimension is free.
        transform: How stored samples become this input; None takes them as they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    transform: Transform | None = None

    def board_transform(self) -> InputTransform | None:
        """Returns the transform as the board computes it."""
        if self.transform is None:
            return None
        return InputTransform(dtype=self.dtype, **self.transform.model_dump())


class OutputTensor(FrozenConfig):
    """One output.

    Attributes:
        name: As the model calls it.
        dtype: Element type.
        shape: With the batch in front; -1 where it is known only once the model runs.
        kind: `logits` (a softmax turns them into probabilities), `probabilities`, or `values`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: OutputKind = "values"


class Signature(FrozenConfig):
    """What a model takes and gives.

    Attributes:
        source: The form in which the artifact holds the model.
        model: Its path within the artifact.
        inputs: At least one; names are distinct.
        outputs: At least one; names are distinct. A metric judges the first.
        metric: What accuracy means; None where the model has none.
    """

    source: SourceFormat
    model: str
    inputs: tuple[InputTensor, ...] = Field(min_length=1)
    outputs: tuple[OutputTensor, ...] = Field(min_length=1)
    metric: Metric | None = None

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        for kind, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"two {kind} have the same name: {', '.join(names)}.")
        return self

    @property
    def is_classifier(self) -> bool:
        """Whether top-1 accuracy, calibration and agreement of the top class mean something."""
        return self.metric == "top1"

    def write(self, directory: Path) -> None:
        """Writes `signature.json` into an artifact."""
        text = json.dumps(self.model_dump(mode="json"), indent=1)
        (directory / SIGNATURE_FILE).write_text(text + "\n", encoding="utf-8")


def image_signature(
    input_shape: tuple[int, int, int], num_classes: int, *, source: SourceFormat, model: str
) -> Signature:
    """Returns the signature of the model contract: `image`, uint8, to `logits`, float32."""
    return Signature(
        source=source,
        model=model,
        inputs=(InputTensor(name="image", dtype="uint8", shape=(1, *input_shape)),),
        outputs=(OutputTensor(name="logits", dtype="float32", shape=(1, num_classes), kind="logits"),),
        metric="top1",
    )


def read_signature(directory: Path) -> Signature:
    """Returns the signature in an artifact."""
    values: Any = json.loads((directory / SIGNATURE_FILE).read_text(encoding="utf-8"))
    return Signature.model_validate_json(json.dumps(values), strict=True)

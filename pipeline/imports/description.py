"""What a recipe says about a model that Edgeship did not make: `model.inputs`, `model.outputs`, `model.metric`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.signature import Metric, OutputKind
from pipeline.stages.base import FrozenConfig

PerChannel = float | Annotated[tuple[float, ...], Field(min_length=1)]
Size = Annotated[int, Field(ge=1)]


class InputDescription(FrozenConfig):
    """What the file does not say about one input, or what it is checked against. None is not stated.

    Attributes:
        name: As the model calls it; may be left out where the model has one input.
        shape: With the batch of 1 in front. It fixes the dimensions that the file leaves free.
        dtype: Element type, such as `float32`.
        layout: Of an image input: `NHWC` or `NCHW`.
        scale: What stored values are multiplied with, one number or one for each channel.
        offset: What is added then.
    """

    name: str | None = None
    shape: tuple[Size, ...] | None = None
    dtype: str | None = None
    layout: Literal["NHWC", "NCHW"] | None = None
    scale: PerChannel | None = None
    offset: PerChannel | None = None


class OutputDescription(FrozenConfig):
    """What the file does not say about one output. None is not stated.

    Attributes:
        name: As the model calls it; may be left out where the model has one output.
        kind: `logits`, `probabilities` or `values`. Not stated, an output that ends in a softmax gives
            probabilities, another output of a `top1` model logits, and any other values.
    """

    name: str | None = None
    kind: OutputKind | None = None


class ModelDescription(FrozenConfig):
    """The part of a recipe that describes a model of one's own; empty where the file says everything.

    Attributes:
        inputs: In any order.
        outputs: In any order.
        metric: What accuracy means; None leaves accuracy out. It judges the first output of the file.
    """

    inputs: tuple[InputDescription, ...] = ()
    outputs: tuple[OutputDescription, ...] = ()
    metric: Metric | None = None

    @model_validator(mode="after")
    def _names_tell_them_apart(self) -> Self:
        for kind, described in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [entry.name for entry in described]
            if len(names) > 1 and None in names:
                raise ValueError(f"model.{kind} has {len(names)} entries, so each needs a name.")
            if len(set(names)) != len(names):
                raise ValueError(f"model.{kind} names one twice: {', '.join(map(str, names))}.")
        return self

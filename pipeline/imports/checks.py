"""What a model file holds, brought together with what the recipe says about it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from pipeline.errors import InputError, ModelFileError
from pipeline.imports.description import InputDescription, ModelDescription, OutputDescription
from pipeline.signature import InputTensor, Metric, OutputKind, OutputTensor, Signature, SourceFormat, Transform

Layout = Literal["NHWC", "NCHW"]

IMAGE_CHANNELS = (1, 3)

Said = TypeVar("Said", InputDescription, OutputDescription)

_EXAMPLE_SIZE = 224
_EXAMPLE_SCALE = "model.inputs: [{scale: 0.00784, offset: -1.0}] (1.0 and 0.0 where the model scales inside)"


@dataclass(frozen=True)
class FoundTensor:
    """An input or output as a file describes it.

    Attributes:
        name: That it will have in the normalized model.
        dtype: NumPy's name of the element type, or the format's own where NumPy has none.
        shape: None for a free dimension; None as a whole where not even the rank is fixed.
        known_as: Other names by which the user may know it.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    known_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundOutput(FoundTensor):
    """An output.

    Attributes:
        is_softmax: Whether it comes right out of a softmax.
    """

    is_softmax: bool = False


def resolve_inputs(found: Sequence[FoundTensor], description: ModelDescription) -> tuple[InputTensor, ...]:
    """Returns the inputs, every dimension fixed, in the order of the file.

    Raises:
        ModelFileError: The model has no inputs, or one that can't be fed.
        InputError: The description does not fit them, or leaves open what has to be said.
    """
    if not found:
        raise ModelFileError("The model has no inputs. Expected at least one; export it again with its inputs.")
    said = _matched("inputs", found, description.inputs)
    return tuple(_input(tensor, said.get(tensor.name, InputDescription())) for tensor in found)


def resolve_outputs(found: Sequence[FoundOutput], description: ModelDescription) -> tuple[OutputTensor, ...]:
    """Returns the outputs in the order of the file.

    Raises:
        ModelFileError: The model has no outputs, or one of a type that is no number.
        InputError: The description names one that the model does not have.
    """
    if not found:
        raise ModelFileError("The model has no outputs. Expected at least one; export it again with its outputs.")
    said = _matched("outputs", found, description.outputs)
    outputs = []
    for index, tensor in enumerate(found):
        kind = said.get(tensor.name, OutputDescription()).kind
        shape = tuple(-1 if size is None else size for size in tensor.shape) if tensor.shape is not None else (-1,)
        outputs.append(
            OutputTensor(
                name=tensor.name,
                dtype=_numeric("output", tensor),
                shape=shape,
                kind=kind or _kind(tensor, judged=index == 0, metric=description.metric),
            )
        )
    return tuple(outputs)


def make_signature(
    source: SourceFormat,
    model: str,
    inputs: tuple[InputTensor, ...],
    outputs: Sequence[FoundOutput],
    description: ModelDescription,
) -> Signature:
    """Returns the signature of an imported model.

    Raises:
        ModelFileError: As of `resolve_outputs`.
        InputError: As of `resolve_outputs`, or the metric can't judge the first output.
    """
    resolved = resolve_outputs(outputs, description)
    _check_metric(description.metric, resolved[0])
    return Signature(source=source, model=model, inputs=inputs, outputs=resolved, metric=description.metric)


def check_image_input(signature: Signature, size: tuple[int, int], *, channels: int = 3) -> Signature:
    """Returns the signature of a model that is fed with images, the layout of its input settled.

    Args:
        signature: Of the model.
        size: (height, width) of the images that the data gives.
        channels: Of these images.

    Raises:
        InputError: The model has several inputs, or one that takes no images of this size, or it is not said how
            pixels become what it takes.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise InputError(
            f"The model has {len(signature.inputs)} inputs ({names}), but images feed exactly one. Give data with an "
            f"array for each input, or export a model that takes the image alone."
        )
    (tensor,) = signature.inputs
    layouts = _image_layouts(tensor.shape)
    if not layouts:
        raise InputError(
            f"Input {tensor.name} takes {_text(tensor.shape)}, which is no image: expected (1, height, width, 3) or "
            f"(1, 3, height, width). Give the data that the model takes as arrays, or another model."
        )
    layout = _settled_layout(tensor, layouts)
    found = tensor.shape[1:3] if layout == "NHWC" else tensor.shape[2:4]
    if found != size:
        raise InputError(
            f"Input {tensor.name} takes images of {found[0]}x{found[1]} (height x width), but the data gives "
            f"{size[0]}x{size[1]}. Set data.size: [{found[0]}, {found[1]}], or export the model for the other size."
        )
    taken = tensor.shape[3] if layout == "NHWC" else tensor.shape[1]
    if taken != channels:
        raise InputError(
            f"Input {tensor.name} takes images of {taken} channels, but the data gives {channels}. Export a model that "
            f"takes {channels}, or give the data as arrays of the model's shape."
        )
    if tensor.transform is None and (tensor.dtype.startswith("float") or tensor.dtype == "int8"):
        raise InputError(
            f"Input {tensor.name} takes {tensor.dtype}; say how pixels 0..255 become it: {_EXAMPLE_SCALE}."
        )
    if tensor.transform is None and tensor.dtype == "uint8" and layout == "NHWC":
        return signature
    transform = (tensor.transform or Transform()).model_copy(update={"layout": layout})
    settled = tensor.model_copy(update={"transform": transform})
    return signature.model_copy(update={"inputs": (settled,)})


def distinct_names(names: Sequence[str], kind: str) -> list[str]:
    """Returns the names, those that are empty or occur twice replaced by `<kind>_<index>`, such as `input_1`."""
    return [name if name and list(names).count(name) == 1 else f"{kind}_{index}" for index, name in enumerate(names)]


def shape_text(shape: Sequence[int | None] | None) -> str:
    """Returns a shape as people write it: `(1, ?, ?, 3)`."""
    return "a shape of any rank" if shape is None else _text(["?" if size is None else size for size in shape])


def _text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _matched(kind: Literal["inputs", "outputs"], found: Sequence[FoundTensor], said: Sequence[Said]) -> dict[str, Said]:
    """Returns what is said about each tensor, by the tensor's name."""
    matched: dict[str, Said] = {}
    for entry in said:
        if entry.name is None:
            if len(found) > 1:
                raise InputError(
                    f"The model has {len(found)} {kind} ({_names(found)}), but the entry of model.{kind} has no name. "
                    f"Add the name of the one it describes: model.{kind}: [{{name: {found[0].name}, ...}}]."
                )
            matched[found[0].name] = entry
            continue
        tensor = _named(kind, found, entry.name)
        if tensor.name in matched:
            raise InputError(
                f"model.{kind} describes {tensor.name} twice, the second time as {entry.name}. Do it once."
            )
        matched[tensor.name] = entry
    return matched


def _named(kind: str, found: Sequence[FoundTensor], name: str) -> FoundTensor:
    for tensor in found:
        if tensor.name == name:
            return tensor
    for tensor in found:
        if name in tensor.known_as:
            return tensor
    close = difflib.get_close_matches(name, [known for tensor in found for known in (tensor.name, *tensor.known_as)], 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise InputError(
        f"model.{kind} names {name}, but the model has no such {kind[:-1]}; it has: {_names(found)}.{hint}"
    )


def _names(found: Sequence[FoundTensor]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {shape_text(tensor.shape)}" for tensor in found)


def _input(found: FoundTensor, said: InputDescription) -> InputTensor:
    dtype = _numeric("input", found)
    if said.dtype is not None and said.dtype != dtype:
        raise InputError(
            f"Input {found.name} is said to take {said.dtype}, but in the file it takes {dtype}. Set dtype: {dtype} "
            f"or leave it out, and say with scale and offset how the data becomes it."
        )
    shape = _static_shape(found, said)
    tensor = InputTensor(name=found.name, dtype=dtype, shape=shape, transform=_transform(found, shape, said))
    try:
        tensor.board_transform()
    except ValueError as error:
        raise InputError(f"model.inputs says of {found.name} what can't be computed: {error}.") from error
    return tensor


def _numeric(kind: str, found: FoundTensor) -> str:
    try:
        known = np.dtype(found.dtype)
    except TypeError:
        known = None
    if known is None or known.kind not in "fiub":
        raise ModelFileError(
            f"The {kind} {found.name} has the type {found.dtype}; expected numbers that NumPy has (float16, float32, "
            f"int8, uint8, int32, ..., bool). Export the model without the part that reads or writes {found.dtype}."
        )
    return found.dtype


def _static_shape(found: FoundTensor, said: InputDescription) -> tuple[int, ...]:
    name, stated = found.name, said.shape
    if stated is not None:
        fits = found.shape is None or (
            len(found.shape) == len(stated)
            and all(size in {None, wanted} for size, wanted in zip(found.shape, stated, strict=True))
        )
        if not fits:
            raise InputError(
                f"Input {name} is said to have the shape {_text(stated)}, but in the file it has "
                f"{shape_text(found.shape)}. Only dimensions that are free (?) can be chosen, with the batch in front."
            )
        shape: tuple[int | None, ...] = stated
    elif found.shape is None:
        raise InputError(
            f"Input {name} has no fixed number of dimensions. State its shape with the batch of 1 in front: "
            f"model.inputs: [{{name: {name}, shape: [1, 224, 224, 3]}}]."
        )
    else:
        shape = (1, *found.shape[1:]) if found.shape[:1] == (None,) else found.shape
    if None in shape:
        example = [_EXAMPLE_SIZE if size is None else size for size in shape]
        raise InputError(
            f"Input {name} has the shape {shape_text(found.shape)}, where more than the batch is free, and a board "
            f"needs fixed sizes. State its shape, for instance: model.inputs: [{{name: {name}, shape: {example}}}]."
        )
    fixed = tuple(size for size in shape if size is not None)
    if fixed[:1] != (1,) or 0 in fixed:
        raise InputError(
            f"Input {name} has the shape {_text(fixed)}; expected a batch of 1 in front and no empty dimension. "
            f"Export the model with a batch that is 1 or free."
        )
    return fixed


def _transform(found: FoundTensor, shape: tuple[int, ...], said: InputDescription) -> Transform | None:
    if said.layout is None and said.scale is None and said.offset is None:
        return None
    if said.layout is not None:
        _check_layout(found, shape, said)
    layout = said.layout or "NHWC"
    channels = shape[1] if layout == "NCHW" else shape[-1]
    for field, values in (("scale", said.scale), ("offset", said.offset)):
        if isinstance(values, tuple) and len(values) != channels:
            hint = (
                " Where the channels come first, state layout: NCHW." if said.layout is None and len(shape) == 4 else ""
            )
            raise InputError(
                f"{field} of input {found.name} has {len(values)} numbers, but its shape {_text(shape)} has {channels} "
                f"channels in the layout {layout}. Give one number for each channel, or one for all.{hint}"
            )
    return Transform(
        layout=layout,
        scale=1.0 if said.scale is None else said.scale,
        offset=0.0 if said.offset is None else said.offset,
    )


def _check_layout(found: FoundTensor, shape: tuple[int, ...], said: InputDescription) -> None:
    if len(shape) != 4:
        raise InputError(
            f"The layout of input {found.name} is said to be {said.layout}, but its shape {_text(shape)} has "
            f"{len(shape)} dimensions, and only images of 4 have one. Leave layout out."
        )
    layouts = _image_layouts(shape)
    if len(layouts) == 1 and said.layout not in layouts:
        raise InputError(
            f"The layout of input {found.name} is said to be {said.layout}, but its shape {_text(shape)} is that of "
            f"{layouts[0]}. Set layout: {layouts[0]} or leave it out."
        )
    if found.dtype.startswith("float") and said.scale is None:
        raise InputError(
            f"Input {found.name} takes {found.dtype} and has a layout, but no scale; say how pixels 0..255 become it: "
            f"{_EXAMPLE_SCALE}."
        )


def _image_layouts(shape: tuple[int, ...]) -> list[Layout]:
    """Returns the layouts in which a shape can be one image's."""
    if len(shape) != 4 or shape[0] != 1:
        return []
    places: tuple[tuple[Layout, int], ...] = (("NHWC", 3), ("NCHW", 1))
    return [layout for layout, place in places if shape[place] in IMAGE_CHANNELS]


def _settled_layout(tensor: InputTensor, layouts: Sequence[Layout]) -> Layout:
    if len(layouts) == 1:
        return layouts[0]
    if tensor.transform is None:
        raise InputError(
            f"Input {tensor.name} takes {_text(tensor.shape)}, whose channels may come first or last. Say which: "
            f"model.inputs: [{{layout: NHWC}}] or [{{layout: NCHW}}]."
        )
    return tensor.transform.layout


def _kind(found: FoundOutput, *, judged: bool, metric: Metric | None) -> OutputKind:
    if found.is_softmax:
        return "probabilities"
    return "logits" if judged and metric == "top1" else "values"


def _check_metric(metric: Metric | None, output: OutputTensor) -> None:
    least = {"top1": 2, "auc": 1}.get(metric or "")
    if least is None:
        return
    if len(output.shape) != 2 or output.shape[0] != 1 or output.shape[1] < least:
        raise InputError(
            f"model.metric is {metric}, which judges an output (1, classes), but the first output {output.name} has "
            f"the shape {_text(output.shape)}. Use metric: mse, leave the metric out, or export the model with that "
            f"output first."
        )

"""The networks of `keras.applications`, and how their weights become ours.

Both sides compute the same function: padding, scaling of pixels and the form of the head differ, the layers with
weights correspond one to one. A layer of theirs is matched by its name, kind and shapes; one that is left over
on either side is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.blocks import IMAGENET_DEVIATION, IMAGENET_MEAN, SIGNED_UNIT, Rescaling

if TYPE_CHECKING:
    import keras

HEAD = "logits"
"""The layer that depends on the number of classes."""

FloatArray = npt.NDArray[Any]

_PIXEL_TOLERANCE = 1e-5
"""Of what a black and a white pixel become, which is between -3 and 3."""

_UNSCALED = Rescaling(scale=1.0, offset=0.0)

# From the names of their layers to ours. `{block}` is the block's name here, by its place in the network; of
# several names, the first that the network has is meant.
_Rules = Mapping[str, tuple[str, ...]]

_MOBILENET_V1: _Rules = {
    r"conv1": ("stem_conv",),
    r"conv1_bn": ("stem_conv_bn",),
    r"conv_dw_(?P<block>\d+)": ("{block}_depthwise",),
    r"conv_dw_(?P<block>\d+)_bn": ("{block}_depthwise_bn",),
    r"conv_pw_(?P<block>\d+)": ("{block}_pointwise",),
    r"conv_pw_(?P<block>\d+)_bn": ("{block}_pointwise_bn",),
    r"conv_preds": (HEAD,),
}
_MOBILENET_V2: _Rules = {
    r"Conv1": ("stem_conv",),
    r"bn_Conv1": ("stem_conv_bn",),
    r"(?P<block>block_\d+)_expand": ("{block}_expand",),
    r"(?P<block>block_\d+)_expand_BN": ("{block}_expand_bn",),
    r"(?P<block>expanded_conv|block_\d+)_depthwise": ("{block}_depthwise",),
    r"(?P<block>expanded_conv|block_\d+)_depthwise_BN": ("{block}_depthwise_bn",),
    r"(?P<block>expanded_conv|block_\d+)_project": ("{block}_project",),
    r"(?P<block>expanded_conv|block_\d+)_project_BN": ("{block}_project_bn",),
    r"Conv_1": ("head_conv",),
    r"Conv_1_bn": ("head_conv_bn",),
    r"predictions": (HEAD,),
}
_MOBILENET_V3: _Rules = {
    r"conv": ("stem_conv",),
    r"conv_bn": ("stem_conv_bn",),
    r"(?P<block>expanded_conv(?:_\d+)?)_expand": ("{block}_expand",),
    r"(?P<block>expanded_conv(?:_\d+)?)_expand_bn": ("{block}_expand_bn",),
    r"(?P<block>expanded_conv(?:_\d+)?)_depthwise": ("{block}_depthwise",),
    r"(?P<block>expanded_conv(?:_\d+)?)_depthwise_bn": ("{block}_depthwise_bn",),
    r"(?P<block>expanded_conv(?:_\d+)?)_squeeze_excite_conv": ("{block}_squeeze_reduce",),
    r"(?P<block>expanded_conv(?:_\d+)?)_squeeze_excite_conv_1": ("{block}_squeeze_expand",),
    r"(?P<block>expanded_conv(?:_\d+)?)_project": ("{block}_project",),
    r"(?P<block>expanded_conv(?:_\d+)?)_project_bn": ("{block}_project_bn",),
    r"conv_1": ("head_conv",),
    r"conv_1_bn": ("head_conv_bn",),
    r"conv_2": ("head_dense",),
    r"logits": (HEAD,),
}
_EFFICIENTNET: _Rules = {
    r"stem_conv": ("stem_conv",),
    r"stem_bn": ("stem_conv_bn",),
    r"(?P<block>block\d+[a-z])_expand_conv": ("{block}_expand", "{block}_fused"),
    r"(?P<block>block\d+[a-z])_expand_bn": ("{block}_expand_bn", "{block}_fused_bn"),
    r"(?P<block>block\d+[a-z])_dwconv2?": ("{block}_depthwise",),
    r"(?P<block>block\d+[a-z])_bn": ("{block}_depthwise_bn",),
    r"(?P<block>block\d+[a-z])_se_reduce": ("{block}_squeeze_reduce",),
    r"(?P<block>block\d+[a-z])_se_expand": ("{block}_squeeze_expand",),
    r"(?P<block>block\d+[a-z])_project_conv": ("{block}_project", "{block}_fused"),
    r"(?P<block>block\d+[a-z])_project_bn": ("{block}_project_bn", "{block}_fused_bn"),
    r"top_conv": ("head_conv",),
    r"top_bn": ("head_conv_bn",),
    r"predictions": (HEAD,),
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A network of `keras.applications`.

    Args:
        function: Its name in `keras.applications`.
        rules: From the names of its layers to ours.
        arguments: What the function is called with besides the usual.
        external: What its users have to do to the pixels 0..255 before it.
        widths: For which there are ImageNet weights; the option itself takes others too if there are several.
        resolutions: For which there are ImageNet weights, as sides in pixels.
        has_width: Whether the function takes a width multiplier.
    """

    function: str
    rules: _Rules
    resolutions: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    external: Rescaling = _UNSCALED
    widths: tuple[float, ...] = (1.0,)
    has_width: bool = False


def _mobilenet_v3(function: str, *, minimalistic: bool) -> Reference:
    return Reference(
        function=function,
        rules=_MOBILENET_V3,
        resolutions=(224,),
        arguments={"minimalistic": minimalistic},
        widths=(1.0,) if minimalistic else (0.75, 1.0),
        has_width=True,
    )


REFERENCES: dict[str, Reference] = {
    "mobilenet_v1": Reference(
        function="MobileNet",
        rules=_MOBILENET_V1,
        resolutions=(128, 160, 192, 224),
        external=SIGNED_UNIT,
        widths=(0.25, 0.5, 0.75, 1.0),
        has_width=True,
    ),
    "mobilenet_v2": Reference(
        function="MobileNetV2",
        rules=_MOBILENET_V2,
        resolutions=(96, 128, 160, 192, 224),
        external=SIGNED_UNIT,
        widths=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
        has_width=True,
    ),
    "mobilenet_v3_small": _mobilenet_v3("MobileNetV3Small", minimalistic=False),
    "mobilenet_v3_large": _mobilenet_v3("MobileNetV3Large", minimalistic=False),
    "mobilenet_v3_small_minimalistic": _mobilenet_v3("MobileNetV3Small", minimalistic=True),
    "mobilenet_v3_large_minimalistic": _mobilenet_v3("MobileNetV3Large", minimalistic=True),
    "efficientnet_b0": Reference(function="EfficientNetB0", rules=_EFFICIENTNET, resolutions=(224,)),
    "efficientnet_b1": Reference(function="EfficientNetB1", rules=_EFFICIENTNET, resolutions=(240,)),
    "efficientnet_b2": Reference(function="EfficientNetB2", rules=_EFFICIENTNET, resolutions=(260,)),
    "efficientnet_b3": Reference(function="EfficientNetB3", rules=_EFFICIENTNET, resolutions=(300,)),
    "efficientnet_b4": Reference(function="EfficientNetB4", rules=_EFFICIENTNET, resolutions=(380,)),
    "efficientnet_b5": Reference(function="EfficientNetB5", rules=_EFFICIENTNET, resolutions=(456,)),
    "efficientnet_b6": Reference(function="EfficientNetB6", rules=_EFFICIENTNET, resolutions=(528,)),
    "efficientnet_b7": Reference(function="EfficientNetB7", rules=_EFFICIENTNET, resolutions=(600,)),
    "efficientnet_v2_b0": Reference(function="EfficientNetV2B0", rules=_EFFICIENTNET, resolutions=(224,)),
    "efficientnet_v2_b1": Reference(function="EfficientNetV2B1", rules=_EFFICIENTNET, resolutions=(240,)),
    "efficientnet_v2_b2": Reference(function="EfficientNetV2B2", rules=_EFFICIENTNET, resolutions=(260,)),
    "efficientnet_v2_b3": Reference(function="EfficientNetV2B3", rules=_EFFICIENTNET, resolutions=(300,)),
    "efficientnet_v2_s": Reference(function="EfficientNetV2S", rules=_EFFICIENTNET, resolutions=(384,)),
}
"""The networks of `models.MODELS` that `keras.applications` has too."""


def find_reference(name: str) -> Reference:
    """The counterpart of a network in `keras.applications`.

    Raises:
        ValueError: If there is none.
    """
    if name not in REFERENCES:
        raise ValueError(
            f"keras.applications has no counterpart of {name!r}, only of {', '.join(REFERENCES)}: take one of "
            "these, or weights of the network itself."
        )
    return REFERENCES[name]


def build_reference(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int = 1000,
    width: float = 1.0,
    weights: str | Path | None = None,
) -> keras.Model:
    """Builds the counterpart of a network with `keras.applications`; its output are logits.

    Args:
        name: A key of `REFERENCES`.
        input_shape: `(height, width, 3)` in pixels.
        num_classes: Number of logits.
        width: Multiplier on the number of channels.
        weights: None for random weights, with the statistics of ImageNet's pixels where the network normalizes
            them itself; `imagenet` to fetch them, for 1,000 classes and a resolution of the `Reference`; or the
            path of a file as Keras fetches it.

    Returns:
        A model from pixels, float32 `(batch, height, width, 3)`, in the range that it expects (`Reference.external`)
        to logits `(batch, num_classes)`.

    Raises:
        ValueError: If there is no such network.
        Exception: Whatever Keras raises if weights can't be fetched or loaded.
    """
    import keras

    reference = find_reference(name)
    if width != 1.0 and not reference.has_width:
        raise ValueError(
            f"width is {width:g}, but keras.applications builds {name!r} at width 1.0 only: leave the width out."
        )
    widths = {"alpha": width} if reference.has_width else {}
    model = getattr(keras.applications, reference.function)(
        input_shape=input_shape,
        classes=num_classes,
        weights=str(weights) if isinstance(weights, Path) else weights,
        classifier_activation=None,
        **widths,
        **reference.arguments,
    )
    if weights != "imagenet":
        _set_pixel_statistics(model, is_trained=weights is not None)
    return model


def copy_from_reference(reference: keras.Model, network: keras.Model, name: str, *, head: bool = True) -> int:
    """Copies all weights of a network of `keras.applications` into ours; nothing is changed if they don't fit.

    Args:
        reference: As `build_reference` makes it, or trained further.
        network: As `models.build` makes it, of the same width and depth; image size and early strides may differ.
        name: A key of `REFERENCES`.
        head: Whether the last layer is copied too; if not, the numbers of classes may differ.

    Returns:
        The number of tensors that were copied.

    Raises:
        ValueError: If a layer has no counterpart, or one of another kind or shape, or if the two scale pixels
            differently; the message names the layer.
    """
    found = find_reference(name)
    tensors = _fit_layers(reference, network, found.rules, head=head)
    _check_preprocessing(reference, network, found)
    for layer, arrays in tensors:
        layer.set_weights(arrays)
    return sum(len(arrays) for _, arrays in tensors)


def set_reference_weights(model: keras.Model, tensors: Mapping[str, Sequence[FloatArray]]) -> None:
    """Sets all weights of a network of `keras.applications` by the names of its layers.

    Args:
        model: As `build_reference` makes it.
        tensors: The weights of each layer.

    Raises:
        ValueError: If a layer is missing, left over, or has other shapes.
    """
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    for name, layer in layers.items():
        # Normalizations of pixels are numbered anew in each process.
        arrays = tensors.get(name) or next((tensors[other] for other in tensors if _is_pixels(name, other)), None)
        expected = [tuple(weight.shape) for weight in layer.weights]
        received = None if arrays is None else [np.shape(array) for array in arrays]
        if received != expected:
            raise ValueError(
                f"Layer {name!r} has the shapes {_text(received) if received else 'of no weights'}, expected "
                f"{_text(expected)} as in {model.name!r}."
            )
        layer.set_weights(arrays)
    left_over = [name for name in tensors if name not in layers and not any(_is_pixels(own, name) for own in layers)]
    if left_over:
        raise ValueError(f"Layer {left_over[0]!r} is left over: {model.name!r} has none of this name.")
    _set_pixel_statistics(model, is_trained=True)


def _is_pixels(name: str, other: str) -> bool:
    """Whether both are names that Keras gives to normalizations of pixels."""
    return all(re.fullmatch(r"normalization(_\d+)?", text) for text in (name, other))


def weighted_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that hold weights, in the order of the graph; a normalization of pixels is not one of them."""
    import keras

    return [layer for layer in model.layers if layer.weights and not isinstance(layer, keras.layers.Normalization)]


def _fit_layers(
    reference: keras.Model, network: keras.Model, rules: _Rules, *, head: bool
) -> list[tuple[keras.layers.Layer, list[FloatArray]]]:
    """Our layers, each with the weights that their layer has for it.

    Raises:
        ValueError: If a layer of either side is left over, or two don't fit; the first in their network is named.
    """
    ours = {layer.name: layer for layer in weighted_layers(network)}
    blocks: list[str] = []
    fitted = []
    for layer in weighted_layers(reference):
        names = _our_names(layer.name, rules, blocks)
        present = [name for name in names if name in ours]
        if not head and HEAD in names:
            continue
        if not present:
            wanted = (
                f"the network here has no {' or '.join(map(repr, names))}" if names else "it has no counterpart here"
            )
            raise ValueError(
                f"Layer {layer.name!r} ({type(layer).__name__}) of {reference.name!r} is left over: {wanted}. Expected "
                f"the layers of {network.name!r} as it was built, in particular with the same gates and depth."
            )
        own = ours.pop(present[0])
        fitted.append((own, _fitting_tensors(layer, own)))
    if not head:
        ours.pop(HEAD, None)
    if ours:
        missing = next(iter(ours))
        raise ValueError(
            f"Layer {missing!r} of {network.name!r} gets no weights: {reference.name!r} has no layer for it. Expected "
            "the same architecture, in particular the same gates and depth."
        )
    return fitted


def _our_names(theirs: str, rules: _Rules, blocks: list[str]) -> tuple[str, ...]:
    """What a layer of theirs may be called here; `blocks` collects the names of their blocks in order."""
    for pattern, names in rules.items():
        matched = re.fullmatch(pattern, theirs)
        if matched is None:
            continue
        block = matched.groupdict().get("block")
        if block is None:
            return names
        if block not in blocks:
            blocks.append(block)
        return tuple(name.format(block=f"block_{blocks.index(block):02d}") for name in names)
    return ()


def _fitting_tensors(theirs: keras.layers.Layer, ours: keras.layers.Layer) -> list[FloatArray]:
    """Their weights in the shapes of ours.

    A 1x1 convolution of one pixel is a dense layer: such heads lose two dimensions of their kernels.

    Raises:
        ValueError: If kinds, shapes or the epsilon of a normalization differ.
    """
    kinds = type(theirs).__name__, type(ours).__name__
    arrays = [np.asarray(array) for array in theirs.get_weights()]
    if kinds == ("Conv2D", "Dense") and arrays[0].shape[:2] == (1, 1):
        arrays[0] = arrays[0][0, 0]
    elif kinds[0] != kinds[1]:
        raise ValueError(
            f"Layer {theirs.name!r} is a {kinds[0]}, but {ours.name!r} a {kinds[1]}: expected the same architecture."
        )
    shapes = [array.shape for array in arrays], [tuple(weight.shape) for weight in ours.weights]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Layer {theirs.name!r} has weights of the shapes {_text(shapes[0])}, but {ours.name!r} of "
            f"{_text(shapes[1])}: expected the same width and depth, and for the last layer the same number of classes."
        )
    if kinds[0] == "BatchNormalization" and theirs.epsilon != ours.epsilon:
        raise ValueError(
            f"Layer {theirs.name!r} has the epsilon {theirs.epsilon:g}, but {ours.name!r} {ours.epsilon:g}."
        )
    return arrays


def _text(shapes: Sequence[tuple[int, ...]]) -> str:
    """Shapes for people."""
    return ", ".join(map(str, shapes))


def _check_preprocessing(reference: keras.Model, network: keras.Model, found: Reference) -> None:
    """Compares what happens to a pixel before the first convolution, channel by channel.

    Raises:
        ValueError: If it is not the same.
    """
    import keras

    scale, offset = _per_channel(found.external.scale), _per_channel(found.external.offset)
    for layer in reference.layers:
        if isinstance(layer, keras.layers.Conv2D):
            break
        if isinstance(layer, keras.layers.Rescaling):
            factor, summand = _per_channel(layer.scale), _per_channel(layer.offset)
        elif isinstance(layer, keras.layers.Normalization):
            deviation = np.sqrt(_per_channel(layer.variance))
            factor = 1 / np.maximum(deviation, keras.config.epsilon())
            summand = -_per_channel(layer.mean) * factor
        else:
            continue
        scale, offset = scale * factor, offset * factor + summand
    ours = network.get_layer("rescaling")
    for pixel in (0.0, 255.0):
        received = pixel * scale + offset
        expected = pixel * _per_channel(ours.scale) + _per_channel(ours.offset)
        if not np.allclose(received, expected, rtol=0, atol=_PIXEL_TOLERANCE):
            raise ValueError(
                f"{reference.name!r} makes {np.round(received, 6).tolist()} of a pixel of {pixel:g} before its first "
                f"convolution, but layer 'rescaling' of {network.name!r} makes {np.round(expected, 6).tolist()}: "
                "expected the same, or the weights don't mean the same."
            )


def _per_channel(value: Any) -> FloatArray:
    """A number, or one for each channel, as `(3,)`."""
    import keras

    return np.broadcast_to(np.asarray(keras.ops.convert_to_numpy(value), np.float64).ravel(), (3,))


def _set_pixel_statistics(model: keras.Model, *, is_trained: bool) -> None:
    """Makes a network normalize pixels with the mean and deviation of ImageNet.

    Untrained networks of the first EfficientNet come with mean 0 and variance 1. Files of trained weights hold
    the deviation as the variance: Keras divides by its root once more in a layer that it adds for
    `weights="imagenet"` alone.
    """
    import keras

    for layer in model.layers:
        if not isinstance(layer, keras.layers.Normalization) or not layer.weights:
            continue
        mean, variance, *count = layer.get_weights()
        if not is_trained:
            mean, variance = np.asarray(IMAGENET_MEAN), np.square(IMAGENET_DEVIATION)
        elif np.allclose(variance, IMAGENET_DEVIATION, rtol=1e-3):
            variance = np.square(variance)
        layer.set_weights([mean, variance, *count])
        layer.finalize_state()

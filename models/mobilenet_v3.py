"""MobileNetV3: Searching for MobileNetV3 (Howard et al., ICCV 2019, arXiv:1905.02244).

The minimalistic networks are the authors' own for processors that are slow at the newer operations: 3x3 kernels
only, ReLU for hard swish, no gates (tensorflow/models, research/slim/nets/mobilenet/README.md).

The option `activation` takes the place of hard swish (in the minimalistic networks, of the ReLU that stands
there); the ReLU of the early blocks and of the gates stays. With `squeeze_excite` a minimalistic network gates
the blocks that the full one gates.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from models.blocks import (
    SIGNED_UNIT,
    SqueezeExcite,
    Style,
    activate,
    classifier,
    conv_batch_norm,
    early_strides,
    image_input,
    inverted_residual,
    make_divisible,
    pool,
)
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

_STEM_FILTERS = 16
_SQUEEZE_RATIO = 0.25
_HEAD_EXPANSION = 6
"""From the last block's channels to those of the last convolution."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """A row of the paper's tables.

    Args:
        expanded: Channels of the depthwise convolution at width 1.0; at others it keeps its ratio to the input.
        filters: Output channels at width 1.0.
        kernel_size: Side of the depthwise kernel.
        stride: Step of the depthwise kernel.
        gated: Whether there is a squeeze-and-excite gate.
        early: Whether the nonlinearity is ReLU and not the network's own.
    """

    expanded: int
    filters: int
    kernel_size: int
    stride: int
    gated: bool
    early: bool


def _row(kernel_size: int, expanded: int, filters: int, squeeze: str, nonlinearity: str, stride: int) -> Bottleneck:
    """A row in the order and with the signs of the paper's tables."""
    return Bottleneck(
        kernel_size=kernel_size,
        expanded=expanded,
        filters=filters,
        gated=squeeze == "SE",
        early=nonlinearity == "RE",
        stride=stride,
    )


# Table 1 of the paper: kernel, exp size, #out, SE, NL, s.
_LARGE = (
    _row(3, 16, 16, "-", "RE", 1),
    _row(3, 64, 24, "-", "RE", 2),
    _row(3, 72, 24, "-", "RE", 1),
    _row(5, 72, 40, "SE", "RE", 2),
    _row(5, 120, 40, "SE", "RE", 1),
    _row(5, 120, 40, "SE", "RE", 1),
    _row(3, 240, 80, "-", "HS", 2),
    _row(3, 200, 80, "-", "HS", 1),
    _row(3, 184, 80, "-", "HS", 1),
    _row(3, 184, 80, "-", "HS", 1),
    _row(3, 480, 112, "SE", "HS", 1),
    _row(3, 672, 112, "SE", "HS", 1),
    _row(5, 672, 160, "SE", "HS", 2),
    _row(5, 960, 160, "SE", "HS", 1),
    _row(5, 960, 160, "SE", "HS", 1),
)
_LARGE_HEAD = 1280

# Table 2 of the paper. It also marks a gate at the last convolution, which the authors' code
# (tensorflow/models, research/slim/nets/mobilenet/mobilenet_v3.py) does not have, and neither does this.
_SMALL = (
    _row(3, 16, 16, "SE", "RE", 2),
    _row(3, 72, 24, "-", "RE", 2),
    _row(3, 88, 24, "-", "RE", 1),
    _row(5, 96, 40, "SE", "HS", 2),
    _row(5, 240, 40, "SE", "HS", 1),
    _row(5, 240, 40, "SE", "HS", 1),
    _row(5, 120, 48, "SE", "HS", 1),
    _row(5, 144, 48, "SE", "HS", 1),
    _row(5, 288, 96, "SE", "HS", 2),
    _row(5, 576, 96, "SE", "HS", 1),
    _row(5, 576, 96, "SE", "HS", 1),
)
_SMALL_HEAD = 1024


def _build(
    config: NetworkConfig, *, name: str, rows: tuple[Bottleneck, ...], head_features: int, minimalistic: bool
) -> keras.Model:
    """Builds one network of the family.

    The width multiplier leaves the stem alone and widens the dense layer of the head but never narrows it.

    Args:
        config: What is asked for.
        name: Name of the model.
        rows: The blocks.
        head_features: Width of the dense layer before the logits.
        minimalistic: Whether all kernels are 3x3.
    """
    import keras

    style = Style(activation=config.activation, momentum=config.batch_norm_momentum)
    if minimalistic:
        rows = tuple(dataclasses.replace(row, kernel_size=3) for row in rows)
    stem_stride, first_stride = early_strides(*config.image_size, early_stride=config.early_stride)
    first_shrinking = next(index for index, row in enumerate(rows) if row.stride > 1)

    image, x = image_input(config, SIGNED_UNIT)
    x = conv_batch_norm(x, _STEM_FILTERS, style, kernel_size=3, stride=stem_stride, name="stem_conv")
    inputs = _STEM_FILTERS  # at width 1.0
    for index, row in enumerate(rows):
        expanded = make_divisible(x.shape[-1] * (row.expanded / inputs))
        x = inverted_residual(
            x,
            make_divisible(row.filters * config.width),
            dataclasses.replace(style, activation="relu") if row.early else style,
            expanded=expanded,
            kernel_size=row.kernel_size,
            stride=first_stride if index == first_shrinking else row.stride,
            squeeze=_squeeze(expanded) if config.squeeze_excite and row.gated else None,
            expand=row.expanded != inputs,
            name=f"block_{index:02d}",
        )
        inputs = row.filters
    x = conv_batch_norm(x, make_divisible(x.shape[-1] * _HEAD_EXPANSION), style, name="head_conv")
    x = keras.layers.Dense(make_divisible(head_features * max(1.0, config.width)), name="head_dense")(pool(x))
    x = activate(x, style.activation, name="head_dense")
    return keras.Model(image, classifier(x, config), name=name)


def _squeeze(expanded: int) -> SqueezeExcite:
    """A quarter of the expanded channels, ReLU, hard sigmoid (section 5.3)."""
    return SqueezeExcite(filters=make_divisible(expanded * _SQUEEZE_RATIO), activation="relu", gate="hard_sigmoid")


def _variant(name: str, *, top1: dict[float, float]) -> NetworkSpec:
    """A network of the family; `top1` in percent at 224x224 pixels, by width."""
    large, minimalistic = "large" in name, "minimalistic" in name
    return NetworkSpec(
        name=name,
        family="mobilenet_v3",
        build=partial(
            _build,
            name=name,
            rows=_LARGE if large else _SMALL,
            head_features=_LARGE_HEAD if large else _SMALL_HEAD,
            minimalistic=minimalistic,
        ),
        input_shape=(224, 224, 3),
        dropout=0.2,
        batch_norm_momentum=0.999,  # keras.applications
        activation="relu" if minimalistic else "hard_swish",
        squeeze_excite=not minimalistic,
        has_width=True,
        paper=f"Searching for MobileNetV3, ICCV 2019, arXiv:1905.02244, table {1 if large else 2}"
        + ("; 3x3 kernels, ReLU, no squeeze-and-excite" if minimalistic else ""),
        published=tuple(PublishedResult(width=width, resolution=224, top1=value) for width, value in top1.items()),
        source="tensorflow/models, research/slim/nets/mobilenet/README.md at 0ba83cf",
    )


SMALL = _variant("mobilenet_v3_small", top1={1.0: 67.5, 0.75: 65.4})
LARGE = _variant("mobilenet_v3_large", top1={1.0: 75.2, 0.75: 73.3})
SMALL_MINIMALISTIC = _variant("mobilenet_v3_small_minimalistic", top1={1.0: 61.9})
LARGE_MINIMALISTIC = _variant("mobilenet_v3_large_minimalistic", top1={1.0: 72.3})

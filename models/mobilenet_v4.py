"""MobileNetV4: Universal Models for the Mobile Ecosystem (Qin et al., ECCV 2024, arXiv:2404.10518).

Two blocks make the family. The universal inverted bottleneck (section 3) has an optional depthwise convolution before
its expansion and another between expansion and projection; which of them a block has makes it an inverted bottleneck,
a ConvNext block, a feed-forward network or the paper's extra depthwise block. Mobile multi-query attention (section 4)
has one key and one value for all heads, computed from a map of half the side where the map is large.

Layers are named after their place, beyond the names in `models.blocks`: `block_05_start_depthwise`,
`block_08_attention_bn`, `block_08_query`, `block_08_key_depthwise`, `block_08_key`, `block_08_scores`,
`block_08_softmax`, `block_08_mix`, `block_08_output`, `block_08_layer_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from models.blocks import (
    IMAGENET_STATISTICS,
    SqueezeExcite,
    Style,
    batch_norm,
    classifier,
    conv_batch_norm,
    depthwise_batch_norm,
    early_strides,
    fused_inverted_residual,
    image_input,
    make_divisible,
    pool,
    residual,
    squeeze_excite,
)
from models.spec import Activation, NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

_HEAD_FILTERS = (960, 1280)
_SQUEEZE_RATIO = 0.25
_LAYER_SCALE = 1e-5  # layer_scale_init_value of both blocks in nn_blocks.py.


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution with batch normalization and activation."""

    filters: int
    kernel_size: int
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class FusedBottleneck:
    """A 3x3 convolution that expands the channels, and a linear 1x1 convolution (EfficientNet-EdgeTPU)."""

    filters: int
    stride: int
    expansion: int = 4


@dataclass(frozen=True, kw_only=True)
class UniversalBottleneck:
    """The universal inverted bottleneck; a kernel size of 0 leaves a depthwise convolution out.

    Args:
        start: Side of the depthwise kernel before the expansion; no activation follows it.
        middle: Side of the depthwise kernel between expansion and projection, which carries the stride.
        filters: Output channels.
        expansion: Factor from a block's input channels to the channels in its middle.
        stride: Step of the depthwise kernel in the middle.
    """

    start: int
    middle: int
    filters: int
    expansion: int
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Mobile multi-query attention over all positions of the map.

    Args:
        heads: Number of queries at each position.
        key_dim: Length of a query, a key and a value.
        stride: Step of the 3x3 depthwise convolution before keys and values; without one there is none.
    """

    heads: int
    key_dim: int
    stride: int = 1


Block = Convolution | FusedBottleneck | UniversalBottleneck | Attention


def _universal(filters: int, *kernels_and_expansions: tuple[int, int, int]) -> tuple[UniversalBottleneck, ...]:
    """A stage: (start, middle, expansion) of each block, of which the first has stride 2."""
    return tuple(
        UniversalBottleneck(
            start=start, middle=middle, filters=filters, expansion=expansion, stride=2 if index == 0 else 1
        )
        for index, (start, middle, expansion) in enumerate(kernels_and_expansions)
    )


def _with_attention(blocks: tuple[UniversalBottleneck, ...], attention: Attention, *, last: int) -> tuple[Block, ...]:
    """The stage with attention before each of its `last` blocks."""
    first, rest = blocks[: len(blocks) - last], blocks[len(blocks) - last :]
    return (*first, *(block for universal in rest for block in (attention, universal)))


# The tables of the paper's appendix; MNV4*_BLOCK_SPECS in official/vision/modeling/backbones/mobilenet.py.
_CONV_SMALL: tuple[Block, ...] = (
    Convolution(filters=32, kernel_size=3, stride=2),
    Convolution(filters=32, kernel_size=1),
    Convolution(filters=96, kernel_size=3, stride=2),
    Convolution(filters=64, kernel_size=1),
    *_universal(96, (5, 5, 3), (0, 3, 2), (0, 3, 2), (0, 3, 2), (0, 3, 2), (3, 0, 4)),
    *_universal(128, (3, 3, 6), (5, 5, 4), (0, 5, 4), (0, 5, 3), (0, 3, 4), (0, 3, 4)),
)
_MEDIUM_START: tuple[Block, ...] = (
    FusedBottleneck(filters=48, stride=2),
    *_universal(80, (3, 5, 4), (3, 3, 2)),
)
_CONV_MEDIUM: tuple[Block, ...] = (
    *_MEDIUM_START,
    *_universal(160, (3, 5, 6), (3, 3, 4), (3, 3, 4), (3, 5, 4), (3, 3, 4), (3, 0, 4), (0, 0, 2), (3, 0, 4)),
    *_universal(
        256,
        (5, 5, 6),
        (5, 5, 4),
        (3, 5, 4),
        (3, 5, 4),
        (0, 0, 4),
        (3, 0, 4),
        (3, 5, 2),
        (5, 5, 4),
        (0, 0, 4),
        (0, 0, 4),
        (5, 0, 2),
    ),
)
_LARGE_START: tuple[Block, ...] = (
    FusedBottleneck(filters=48, stride=2),
    *_universal(96, (3, 5, 4), (3, 3, 4)),
)
_LARGE_MIDDLE = _universal(192, (3, 5, 4), *((3, 3, 4),) * 3, (3, 5, 4), *((5, 3, 4),) * 5, (3, 0, 4))
_LARGE_END = _universal(
    512,
    *((5, 5, 4),) * 4,
    (5, 0, 4),
    (5, 3, 4),
    *((5, 0, 4),) * 2,
    (5, 3, 4),
    (5, 5, 4),
    *((5, 0, 4),) * 3,
)
_CONV_LARGE: tuple[Block, ...] = (*_LARGE_START, *_LARGE_MIDDLE, *_LARGE_END)
_HYBRID_MEDIUM: tuple[Block, ...] = (
    *_MEDIUM_START,
    *_with_attention(
        _universal(160, (3, 5, 6), (0, 0, 2), (3, 3, 4), (3, 5, 4), (3, 3, 4), (3, 0, 4), (3, 3, 4), (3, 0, 4)),
        Attention(heads=4, key_dim=64, stride=2),
        last=4,
    ),
    *_with_attention(
        _universal(
            256,
            (5, 5, 6),
            (5, 5, 4),
            (3, 5, 4),
            (3, 5, 4),
            (0, 0, 2),
            (3, 5, 2),
            (0, 0, 2),
            (0, 0, 4),
            (3, 0, 4),
            (5, 5, 4),
            (5, 0, 4),
            (5, 0, 4),
        ),
        Attention(heads=4, key_dim=64),
        last=4,
    ),
)
_HYBRID_LARGE: tuple[Block, ...] = (
    *_LARGE_START,
    *_with_attention(_LARGE_MIDDLE, Attention(heads=8, key_dim=48, stride=2), last=4),
    # One block more than Conv-Large has.
    *_with_attention(
        (*_LARGE_END, UniversalBottleneck(start=5, middle=0, filters=512, expansion=4)),
        Attention(heads=8, key_dim=64),
        last=4,
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A block in its network: what it is called, and what the network's config says of it."""

    name: str
    style: Style
    stride: int
    drop_path: float
    squeezed: bool
    scaled: bool
    width: float


def _layer_scale(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """A factor for each channel, learnt from 1e-5 (arXiv:2103.17239), as the layer `<name>_layer_scale`.

    A depthwise 1x1 convolution, because Keras has no layer of its own for it and a network of Keras' layers loads
    anywhere. `models.folding.fold_for_inference` removes it from a trained network.
    """
    import keras

    return keras.layers.DepthwiseConv2D(
        1,
        use_bias=False,
        data_format="channels_last",
        depthwise_initializer=keras.initializers.Constant(_LAYER_SCALE),
        name=f"{name}_layer_scale",
    )(x)


def _finish(x: keras.KerasTensor, shortcut: keras.KerasTensor, placed: _Placed) -> keras.KerasTensor:
    """Residual, where stride and channels allow it."""
    if placed.stride > 1 or x.shape[-1] != shortcut.shape[-1]:
        return x
    return residual(x, shortcut, drop_path=placed.drop_path, name=placed.name)


def universal_bottleneck(x: keras.KerasTensor, block: UniversalBottleneck, placed: _Placed) -> keras.KerasTensor:
    """The universal inverted bottleneck (figure 4 of the paper).

    Args:
        x: `(batch, height, width, channels)`.
        block: Kernel sizes, channels, expansion.
        placed: Name, style and stride.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    shortcut, style, name = x, placed.style, placed.name
    channels = x.shape[-1]
    if block.start:
        x = depthwise_batch_norm(x, style, kernel_size=block.start, linear=True, name=f"{name}_start_depthwise")
    x = conv_batch_norm(x, make_divisible(channels * block.expansion), style, name=f"{name}_expand")
    if block.middle:
        x = depthwise_batch_norm(
            x, style, kernel_size=block.middle, stride=placed.stride, name=f"{name}_depthwise"
        )  # fmt: skip
    if placed.squeezed:
        squeezed = max(1, int(channels * _SQUEEZE_RATIO))
        gate = SqueezeExcite(filters=squeezed, activation=style.activation, gate="hard_sigmoid")
        x = squeeze_excite(x, gate, name=name)
    x = conv_batch_norm(x, make_divisible(block.filters * placed.width), style, name=f"{name}_project", linear=True)
    if placed.scaled:
        x = _layer_scale(x, name=name)
    return _finish(x, shortcut, placed)


def _keys_or_values(x: keras.KerasTensor, block: Attention, placed: _Placed, *, kind: str) -> keras.KerasTensor:
    """`(batch, height, width, channels)` to `(batch, height / stride, width / stride, key_dim)`."""
    import keras

    if block.stride > 1:
        x = depthwise_batch_norm(
            x, placed.style, stride=block.stride, linear=True, name=f"{placed.name}_{kind}_depthwise"
        )  # fmt: skip
    return keras.layers.Conv2D(
        block.key_dim, 1, use_bias=False, data_format="channels_last", name=f"{placed.name}_{kind}"
    )(x)


def attention(x: keras.KerasTensor, block: Attention, placed: _Placed) -> keras.KerasTensor:
    """Mobile multi-query attention with a residual (section 4).

    As the heads share keys and values, all queries are the rows of one matrix: two products of matrices, without a
    transposition of the large ones. The factor of a dot product is applied to the keys, the smallest of the tensors,
    right after a convolution, into which `models.folding.fold_for_inference` folds it.

    Args:
        x: `(batch, height, width, channels)`.
        block: Heads, length of the keys, stride.
        placed: Name and style.

    Returns:
        The same shape.
    """
    import keras

    shortcut, name = x, placed.name
    _, height, width, channels = x.shape
    x = batch_norm(x, placed.style, name=f"{name}_attention")
    queries = keras.layers.Conv2D(
        block.heads * block.key_dim, 1, use_bias=False, data_format="channels_last", name=f"{name}_query"
    )(x)
    keys = _keys_or_values(x, block, placed, kind="key")
    keys = keras.layers.Rescaling(block.key_dim**-0.5, name=f"{name}_key_scale")(keys)
    values = _keys_or_values(x, block, placed, kind="value")

    queries = keras.layers.Reshape((height * width * block.heads, block.key_dim), name=f"{name}_query_rows")(queries)
    keys = keras.layers.Reshape((-1, block.key_dim), name=f"{name}_key_rows")(keys)
    values = keras.layers.Reshape((-1, block.key_dim), name=f"{name}_value_rows")(values)
    scores = keras.layers.Dot(axes=(2, 2), name=f"{name}_scores")([queries, keys])
    scores = keras.layers.Softmax(name=f"{name}_softmax")(scores)
    mixed = keras.layers.Dot(axes=(2, 1), name=f"{name}_mix")([scores, values])
    mixed = keras.layers.Reshape((height, width, block.heads * block.key_dim), name=f"{name}_mix_map")(mixed)
    x = keras.layers.Conv2D(channels, 1, use_bias=False, data_format="channels_last", name=f"{name}_output")(mixed)
    if placed.scaled:
        x = _layer_scale(x, name=name)
    return _finish(x, shortcut, placed)


def _place(x: keras.KerasTensor, block: Block, placed: _Placed) -> keras.KerasTensor:
    """One block of the table."""
    match block:
        case Convolution():
            return conv_batch_norm(
                x,
                make_divisible(block.filters * placed.width),
                placed.style,
                kernel_size=block.kernel_size,
                stride=placed.stride,
                name=f"{placed.name}_conv",
            )
        case FusedBottleneck():
            return fused_inverted_residual(
                x,
                make_divisible(block.filters * placed.width),
                placed.style,
                expanded=make_divisible(x.shape[-1] * block.expansion),
                kernel_size=3,
                stride=placed.stride,
                name=placed.name,
                drop_path=placed.drop_path,
            )
        case UniversalBottleneck():
            return universal_bottleneck(x, block, placed)
        case Attention():
            return attention(x, block, placed)


def _build(
    config: NetworkConfig, *, name: str, stem_filters: int, blocks: Sequence[Block], epsilon: float
) -> keras.Model:
    """Builds one variant; the last convolution is widened but never narrowed, as in TF-vision's code."""
    import keras

    style = Style(activation=config.activation, momentum=config.batch_norm_momentum, epsilon=epsilon)
    stem_stride, first_stride = early_strides(*config.image_size, early_stride=config.early_stride)
    hybrid = any(isinstance(block, Attention) for block in blocks)

    image, x = image_input(config, IMAGENET_STATISTICS)
    stem = make_divisible(stem_filters * config.width)
    x = conv_batch_norm(x, stem, style, kernel_size=3, stride=stem_stride, name="stem_conv")
    for index, block in enumerate(blocks):
        stride = 1 if isinstance(block, Attention) else block.stride
        placed = _Placed(
            name=f"block_{index:02d}",
            style=style,
            stride=first_stride if index == 0 else stride,  # The first block shrinks the image in every table.
            drop_path=config.drop_path * index / len(blocks),
            squeezed=config.squeeze_excite,
            scaled=hybrid,
            width=config.width,
        )
        x = _place(x, block, placed)
    body, head = _HEAD_FILTERS
    x = conv_batch_norm(x, make_divisible(body * config.width), style, name="body_conv")
    x = pool(x, keepdims=True)
    x = conv_batch_norm(x, make_divisible(head * max(1.0, config.width)), style, name="head_conv")
    x = keras.layers.Flatten(data_format="channels_last", name="head_flatten")(x)
    return keras.Model(image, classifier(x, config), name=name)


def _variant(
    name: str,
    *,
    stem_filters: int,
    blocks: Sequence[Block],
    resolution: int,
    top1: float,
    activation: Activation = "relu",
    dropout: float = 0.2,
    drop_path: float = 0.0,
    momentum: float = 0.997,
    epsilon: float = 1e-3,
) -> NetworkSpec:
    """A variant, with the training settings of official/vision/configs/experiments/image_classification."""
    return NetworkSpec(
        name=name,
        family="mobilenet_v4",
        build=partial(_build, name=name, stem_filters=stem_filters, blocks=tuple(blocks), epsilon=epsilon),
        input_shape=(resolution, resolution, 3),
        dropout=dropout,
        drop_path=drop_path,
        batch_norm_momentum=momentum,
        activation=activation,
        has_width=True,
        paper="MobileNetV4: Universal Models for the Mobile Ecosystem, ECCV 2024, arXiv:2404.10518, the "
        "specifications in the appendix",
        published=(PublishedResult(width=1.0, resolution=resolution, top1=top1),),
        source="arXiv:2404.10518, table 6, without distillation",
    )


CONV_SMALL = _variant(
    "mobilenet_v4_conv_small",
    stem_filters=32,
    blocks=_CONV_SMALL,
    resolution=224,
    top1=73.8,
    dropout=0.3,
    momentum=0.95,
    epsilon=1e-6,
)
CONV_MEDIUM = _variant(
    "mobilenet_v4_conv_medium", stem_filters=32, blocks=_CONV_MEDIUM, resolution=256, top1=79.9, drop_path=0.075
)
CONV_LARGE = _variant(
    "mobilenet_v4_conv_large", stem_filters=24, blocks=_CONV_LARGE, resolution=384, top1=82.9, drop_path=0.2
)
HYBRID_MEDIUM = _variant(
    "mobilenet_v4_hybrid_medium", stem_filters=32, blocks=_HYBRID_MEDIUM, resolution=256, top1=80.7, drop_path=0.075
)
HYBRID_LARGE = _variant(
    "mobilenet_v4_hybrid_large",
    stem_filters=24,
    blocks=_HYBRID_LARGE,
    resolution=384,
    top1=83.4,
    activation="gelu",
    drop_path=0.35,
)

"""What the network families share: rounding of channels, the contract's two ends, convolution blocks, gates.

Convolutions pad with "same" only. At stride 2 that equals the explicit padding of `keras.applications`
(`correct_pad`, then "valid") for even and odd sizes, and saves one operator a block on the board.

Layers are named after their place, so that a report or a list of float layers can name them: `rescaling`,
`stem_conv`, `block_03_expand`, `block_03_expand_bn`, `block_03_expand_relu6`, `block_03_depthwise`,
`block_03_squeeze_reduce`, `block_03_project`, `block_03_drop_path`, `block_03_add`, `head_conv`, `head_pool`,
`head_dropout`, `logits`. A fused block has `block_03_fused` for both `_expand` and `_depthwise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from models.spec import Activation, NetworkConfig

if TYPE_CHECKING:
    import keras

BATCH_NORM_EPSILON = 1e-3
"""The same in the reference implementations of most families here."""

SMALL_IMAGE_BELOW = 96
"""Images with a shorter side keep their first strides at 1 unless asked otherwise: 96 pixels is the smallest
resolution that MobileNetV2's authors report, with a 3x3 last feature map."""

TINY_IMAGE_UP_TO = 48
"""The longest shorter side for which a second stride is removed."""


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """Maps pixels 0..255 to the range that the network takes: `pixel * scale + offset`, per channel or for all."""

    scale: float | tuple[float, float, float]
    offset: float | tuple[float, float, float]


SIGNED_UNIT = Rescaling(scale=1 / 127.5, offset=-1.0)
"""0..255 to -1..1, as the MobileNets take it."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's pixels divided by 255: red, green, blue."""

IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""As `IMAGENET_MEAN`."""

_RED, _GREEN, _BLUE = zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)

IMAGENET_STATISTICS = Rescaling(
    scale=(1 / (255 * _RED[1]), 1 / (255 * _GREEN[1]), 1 / (255 * _BLUE[1])),
    offset=(-_RED[0] / _RED[1], -_GREEN[0] / _GREEN[1], -_BLUE[0] / _BLUE[1]),
)
"""0..255 to mean 0 and deviation 1 over ImageNet, channel by channel, as EfficientNet takes it
(tensorflow/tpu, models/official/efficientnet/main.py, MEAN_RGB and STDDEV_RGB)."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What all blocks of a network share.

    Args:
        activation: After a normalization, unless a block says otherwise.
        momentum: Of the batch normalizations.
        epsilon: Of the batch normalizations.
    """

    activation: Activation
    momentum: float
    epsilon: float = BATCH_NORM_EPSILON


@dataclass(frozen=True, kw_only=True)
class SqueezeExcite:
    """A gate on each channel, computed from the means of all channels (arXiv:1709.01507).

    Args:
        filters: Channels between the two 1x1 convolutions.
        activation: After the first of them.
        gate: After the second.
    """

    filters: int
    activation: Activation
    gate: Literal["sigmoid", "hard_sigmoid"] = "sigmoid"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of inverted residual blocks with the same number of output channels.

    Args:
        expansion: Factor from a block's input channels to the channels between its convolutions.
        filters: Output channels.
        repeats: Number of blocks.
        stride: Stride of the first block; the others have 1.
        kernel_size: Side of the depthwise kernel, or of the fused one.
        squeeze_ratio: Share of a block's input channels that its squeeze keeps, where the network gates channels;
            0 for blocks that never have a gate.
        fused: Whether one convolution takes the place of the expansion and the depthwise convolution.
    """

    expansion: int
    filters: int
    repeats: int
    stride: int
    kernel_size: int = 3
    squeeze_ratio: float = 0.25
    fused: bool = False


def make_divisible(value: float, divisor: int = 8, *, min_value: int | None = None) -> int:
    """Rounds a number of channels to the nearest multiple of `divisor`, never down by more than 10 %.

    The rule of MobileNetV2's code (tensorflow/models, research/slim/nets/mobilenet/mobilenet.py) and, with
    the same result, of EfficientNet's `round_filters`.

    Args:
        value: The wanted number of channels, above 0.
        divisor: What the result is a multiple of.
        min_value: The smallest result, a multiple of `divisor`; `divisor` itself unless given.

    >>> make_divisible(0.35 * 32), make_divisible(1.4 * 24), make_divisible(3)
    (16, 32, 8)
    """
    rounded = max(min_value or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def default_early_stride(height: int, width: int) -> bool:
    """Whether an image of this size in pixels gets the paper's first strides: both sides at least 96."""
    return min(height, width) >= SMALL_IMAGE_BELOW


def early_strides(height: int, width: int, *, early_stride: bool) -> tuple[int, int]:
    """Strides of the stem and of the first stage that shrinks the image in the paper.

    With `early_stride` both are 2, as in the papers, and the last feature map has 1/32 of the image's side.
    Without it, small images keep enough of their detail to be told apart:

    | shorter side | stem | first shrinking stage | last feature map |
    |---|---|---|---|
    | up to 48 pixels | 1 | 1 | 1/8 of the side: 4x4 for 32, 6x6 for 48 |
    | 49 pixels and more | 1 | 2 | 1/16 of the side: 4x4 for 64, 6x6 for 95 |

    So a 32x32 or a 64x64 image costs about what the paper's network costs at 128x128. The first shrinking
    block is block 1 in most families (the first with 24 output channels in MobileNetV2 and in EfficientNet),
    block 0 in MobileNetV3-Small, and the first of the second stage in EfficientNetV2. A block whose stride
    becomes 1 follows the usual rule: it has a residual if its number of channels stays the same.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        early_stride: Whether the strides are the paper's.
    """
    if early_stride:
        return 2, 2
    return (1, 1) if min(height, width) <= TINY_IMAGE_UP_TO else (1, 2)


def activate(x: keras.KerasTensor, kind: Activation | None, *, name: str) -> keras.KerasTensor:
    """The nonlinearity as a layer `<name>_<kind>`; None leaves the tensor linear."""
    import keras

    if kind is None:
        return x
    if kind in ("relu", "relu6"):
        return keras.layers.ReLU(max_value=6.0 if kind == "relu6" else None, name=f"{name}_{kind}")(x)
    return keras.layers.Activation(kind, name=f"{name}_{kind}")(x)


def batch_norm(
    x: keras.KerasTensor, style: Style, *, name: str, activation: Activation | None = None
) -> keras.KerasTensor:
    """Batch normalization `<name>_bn`, then the activation, if one is given."""
    import keras

    x = keras.layers.BatchNormalization(momentum=style.momentum, epsilon=style.epsilon, name=f"{name}_bn")(x)
    return activate(x, activation, name=name)


def conv_batch_norm(
    x: keras.KerasTensor,
    filters: int,
    style: Style,
    *,
    name: str,
    kernel_size: int | tuple[int, int] = 1,
    stride: int = 1,
    linear: bool = False,
) -> keras.KerasTensor:
    """Convolution without bias, batch normalization, the style's activation.

    Args:
        x: `(batch, height, width, channels)`.
        filters: Output channels.
        style: What all blocks share.
        name: Name of the convolution; the other layers' names start with it.
        kernel_size: Side of the kernel, or its height and width.
        stride: Step of the kernel.
        linear: Whether the activation is left out.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    import keras

    x = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding="same",
        data_format="channels_last",
        use_bias=False,
        name=name,
    )(x)
    return batch_norm(x, style, name=name, activation=None if linear else style.activation)


def depthwise_batch_norm(
    x: keras.KerasTensor, style: Style, *, name: str, kernel_size: int = 3, stride: int = 1, linear: bool = False
) -> keras.KerasTensor:
    """Depthwise convolution without bias, batch normalization, activation; arguments as in `conv_batch_norm`."""
    import keras

    x = keras.layers.DepthwiseConv2D(
        kernel_size,
        strides=stride,
        padding="same",
        data_format="channels_last",
        use_bias=False,
        name=name,
    )(x)
    return batch_norm(x, style, name=name, activation=None if linear else style.activation)


def squeeze_excite(x: keras.KerasTensor, config: SqueezeExcite | None, *, name: str) -> keras.KerasTensor:
    """Gates each channel; None leaves the tensor alone.

    Args:
        x: `(batch, height, width, channels)`.
        config: The gate.
        name: Layers are called `<name>_squeeze_pool`, `_squeeze_reduce`, `_squeeze_expand`, `_squeeze_gate`, ....

    Returns:
        The same shape.
    """
    import keras

    if config is None:
        return x
    gate = keras.layers.GlobalAveragePooling2D(data_format="channels_last", keepdims=True, name=f"{name}_squeeze_pool")(
        x
    )
    gate = keras.layers.Conv2D(config.filters, 1, data_format="channels_last", name=f"{name}_squeeze_reduce")(gate)
    gate = activate(gate, config.activation, name=f"{name}_squeeze_reduce")
    gate = keras.layers.Conv2D(x.shape[-1], 1, data_format="channels_last", name=f"{name}_squeeze_expand")(gate)
    gate = keras.layers.Activation(config.gate, name=f"{name}_squeeze_{config.gate}")(gate)
    return keras.layers.Multiply(name=f"{name}_squeeze_gate")([x, gate])


def residual(
    x: keras.KerasTensor, shortcut: keras.KerasTensor, *, name: str, drop_path: float = 0.0
) -> keras.KerasTensor:
    """Adds a block's result to its input; in training the block is skipped for a share `drop_path` of the samples."""
    import keras

    if drop_path:
        x = keras.layers.Dropout(drop_path, noise_shape=(None, *(1,) * (len(x.shape) - 1)), name=f"{name}_drop_path")(x)
    return keras.layers.Add(name=f"{name}_add")([shortcut, x])


def inverted_residual(
    x: keras.KerasTensor,
    filters: int,
    style: Style,
    *,
    expanded: int,
    kernel_size: int,
    stride: int,
    name: str,
    squeeze: SqueezeExcite | None = None,
    drop_path: float = 0.0,
    expand: bool | None = None,
) -> keras.KerasTensor:
    """Inverted residual with a linear bottleneck (MobileNetV2, arXiv:1801.04381, table 1).

    Args:
        x: `(batch, height, width, channels)`.
        filters: Output channels.
        style: What all blocks share.
        expanded: Channels of the depthwise convolution.
        kernel_size: Side of the depthwise kernel.
        stride: Step of the depthwise kernel.
        name: What the layers' names start with.
        squeeze: The gate after the depthwise convolution, if there is one.
        drop_path: See `residual`.
        expand: Whether a 1x1 convolution comes first; None: where `expanded` is not the number of input channels.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    block_input, channels = x, x.shape[-1]
    if expanded != channels if expand is None else expand:
        x = conv_batch_norm(x, expanded, style, name=f"{name}_expand")
    x = depthwise_batch_norm(x, style, kernel_size=kernel_size, stride=stride, name=f"{name}_depthwise")
    x = squeeze_excite(x, squeeze, name=name)
    x = conv_batch_norm(x, filters, style, name=f"{name}_project", linear=True)
    if stride == 1 and channels == filters:
        x = residual(x, block_input, drop_path=drop_path, name=name)
    return x


def fused_inverted_residual(
    x: keras.KerasTensor,
    filters: int,
    style: Style,
    *,
    expanded: int,
    kernel_size: int,
    stride: int,
    name: str,
    squeeze: SqueezeExcite | None = None,
    drop_path: float = 0.0,
) -> keras.KerasTensor:
    """Inverted residual whose first two convolutions are one (EfficientNetV2, arXiv:2104.00298, figure 2).

    Where nothing is expanded, that convolution is the whole block, with its activation.

    Args:
        x: `(batch, height, width, channels)`.
        filters: Output channels.
        style: What all blocks share.
        expanded: Channels between the two convolutions.
        kernel_size: Side of the first kernel.
        stride: Step of the first kernel.
        name: What the layers' names start with.
        squeeze: The gate after the first convolution, if there is one.
        drop_path: See `residual`.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    block_input, channels = x, x.shape[-1]
    single = expanded == channels
    x = conv_batch_norm(
        x, filters if single else expanded, style, kernel_size=kernel_size, stride=stride, name=f"{name}_fused"
    )
    x = squeeze_excite(x, squeeze, name=name)
    if not single:
        x = conv_batch_norm(x, filters, style, name=f"{name}_project", linear=True)
    if stride == 1 and channels == filters:
        x = residual(x, block_input, drop_path=drop_path, name=name)
    return x


def image_input(config: NetworkConfig, rescaling: Rescaling) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The contract's first end: `image`, uint8, and the same scaled to the network's range, float32."""
    import keras

    image = keras.Input(config.input_shape, dtype="uint8", name="image")
    # In float32 under every policy: bfloat16 has no room for 256 levels between -1 and 1.
    return image, keras.layers.Rescaling(
        rescaling.scale, rescaling.offset, dtype="float32", name="rescaling"
    )(image)  # fmt: skip


def classifier(x: keras.KerasTensor, config: NetworkConfig) -> keras.KerasTensor:
    """The contract's other end: dropout, then a dense layer `logits`.

    It keeps Keras' Glorot initialization: that of EfficientNet's code depends on the number of classes alone and
    gives 10 classes ten times the logits that it gives 1,000.

    Args:
        x: `(batch, features)`.
        config: Of the network.

    Returns:
        `(batch, num_classes)`, float32 under every mixed precision policy.
    """
    import keras

    x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    return keras.layers.Dense(config.num_classes, dtype="float32", name="logits")(x)


def pool(x: keras.KerasTensor, *, keepdims: bool = False) -> keras.KerasTensor:
    """Average over the image, as the layer `head_pool`: `(batch, channels)`, or `(batch, 1, 1, channels)`."""
    import keras

    return keras.layers.GlobalAveragePooling2D(data_format="channels_last", keepdims=keepdims, name="head_pool")(x)


def inverted_residual_network(
    config: NetworkConfig,
    stages: Sequence[Stage],
    *,
    name: str,
    rescaling: Rescaling,
    stem_filters: int,
    head_filters: int,
    style: Style | None = None,
) -> keras.Model:
    """A whole network: scaling, stem, stages of inverted residuals, head.

    Args:
        config: Input, classes and training settings. `config.width` and `config.depth` are not applied here: the
            channels and repeats given are those built.
        stages: The body, in order.
        name: Name of the model.
        rescaling: From pixels to the network's range.
        stem_filters: Channels of the first convolution.
        head_filters: Channels of the last convolution.
        style: What all blocks share; None takes it from the config.

    Returns:
        A model from `image`, uint8 `(batch, height, width, 3)`, to `logits`, float32 `(batch, num_classes)`.
    """
    import keras

    style = style or Style(activation=config.activation, momentum=config.batch_norm_momentum)
    stem_stride, _ = early_strides(*config.image_size, early_stride=config.early_stride)

    image, x = image_input(config, rescaling)
    x = conv_batch_norm(x, stem_filters, style, kernel_size=3, stride=stem_stride, name="stem_conv")
    x = _body(x, config, stages, style)
    x = conv_batch_norm(x, head_filters, style, name="head_conv")
    return keras.Model(image, classifier(pool(x), config), name=name)


def _body(x: keras.KerasTensor, config: NetworkConfig, stages: Sequence[Stage], style: Style) -> keras.KerasTensor:
    """The stages of inverted residuals; `(batch, height, width, channels)` in and out."""
    _, first_stage_stride = early_strides(*config.image_size, early_stride=config.early_stride)
    first_shrinking = next(index for index, stage in enumerate(stages) if stage.stride > 1)
    num_blocks = sum(stage.repeats for stage in stages)
    block = 0
    for index, stage in enumerate(stages):
        stage_stride = first_stage_stride if index == first_shrinking else stage.stride
        make_block = fused_inverted_residual if stage.fused else inverted_residual
        for repeat in range(stage.repeats):
            channels = x.shape[-1]
            gated = config.squeeze_excite and stage.squeeze_ratio > 0
            squeezed = max(1, int(channels * stage.squeeze_ratio))
            x = make_block(
                x,
                stage.filters,
                style,
                expanded=stage.expansion * channels,
                kernel_size=stage.kernel_size,
                stride=stage_stride if repeat == 0 else 1,
                squeeze=SqueezeExcite(filters=squeezed, activation=style.activation) if gated else None,
                drop_path=config.drop_path * block / num_blocks,
                name=f"block_{block:02d}",
            )
            block += 1
    return x

"""What the network families share: rounding of channels, the contract's two ends, inverted residuals.

Convolutions pad with "same" only. At stride 2 that equals the explicit padding of `keras.applications`
(`correct_pad`, then "valid") for even and odd sizes, and saves one operator a block on the board.

Layers are named after their place, so that a report or a list of float layers can name them: `rescaling`,
`stem_conv`, `block_03_expand`, `block_03_expand_bn`, `block_03_expand_relu6`, `block_03_depthwise`,
`block_03_project`, `block_03_add`, `head_conv`, `head_pool`, `head_dropout`, `logits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.spec import NetworkConfig

if TYPE_CHECKING:
    import keras

BATCH_NORM_EPSILON = 1e-3
"""The same in the reference implementations of all families here."""

SMALL_IMAGE_BELOW = 96
"""Images with a shorter side keep their first strides at 1 unless asked otherwise: 96 pixels is the smallest
resolution that MobileNetV2's authors report, with a 3x3 last feature map."""

TINY_IMAGE_UP_TO = 48
"""The longest shorter side for which a second stride is removed."""


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """Maps pixels 0..255 to the range that the network takes: `pixel * scale + offset`."""

    scale: float
    offset: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of inverted residual blocks with the same number of output channels.

    Args:
        expansion: Factor from a block's input channels to the channels of its depthwise convolution.
        filters: Output channels.
        repeats: Number of blocks.
        stride: Stride of the first block; the others have 1.
        kernel_size: Side of the depthwise kernel.
    """

    expansion: int
    filters: int
    repeats: int
    stride: int
    kernel_size: int = 3


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
    stage is the one with 24 output channels, from block 1, in MobileNetV2 and in EfficientNet-Lite. A block
    whose stride becomes 1 follows the usual rule: it has a residual if its number of channels stays the same.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        early_stride: Whether the strides are the paper's.
    """
    if early_stride:
        return 2, 2
    return (1, 1) if min(height, width) <= TINY_IMAGE_UP_TO else (1, 2)


def batch_norm(x: keras.KerasTensor, *, momentum: float, name: str, relu6: bool = True) -> keras.KerasTensor:
    """Batch normalization `<name>_bn`, then ReLU6 `<name>_relu6` unless the output is to stay linear."""
    import keras

    x = keras.layers.BatchNormalization(momentum=momentum, epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x) if relu6 else x


def conv_batch_norm(
    x: keras.KerasTensor,
    filters: int,
    *,
    kernel_size: int = 1,
    stride: int = 1,
    momentum: float,
    name: str,
    relu6: bool = True,
) -> keras.KerasTensor:
    """Convolution without bias, batch normalization, ReLU6.

    Args:
        x: `(batch, height, width, channels)`.
        filters: Output channels.
        kernel_size: Side of the kernel.
        stride: Step of the kernel.
        momentum: Momentum of the batch normalization.
        name: Name of the convolution; the other layers' names start with it.
        relu6: Whether an activation follows.

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
    return batch_norm(x, momentum=momentum, name=name, relu6=relu6)


def depthwise_batch_norm(
    x: keras.KerasTensor, *, kernel_size: int, stride: int, momentum: float, name: str
) -> keras.KerasTensor:
    """Depthwise convolution without bias, batch normalization, ReLU6; arguments as in `conv_batch_norm`."""
    import keras

    x = keras.layers.DepthwiseConv2D(
        kernel_size,
        strides=stride,
        padding="same",
        data_format="channels_last",
        use_bias=False,
        name=name,
    )(x)
    return batch_norm(x, momentum=momentum, name=name)


def inverted_residual(
    x: keras.KerasTensor,
    filters: int,
    *,
    expansion: int,
    kernel_size: int,
    stride: int,
    momentum: float,
    name: str,
) -> keras.KerasTensor:
    """Inverted residual with a linear bottleneck (MobileNetV2, arXiv:1801.04381, table 1).

    Args:
        x: `(batch, height, width, channels)`.
        filters: Output channels.
        expansion: Factor from the input channels to the depthwise channels; 1 leaves the expansion out.
        kernel_size: Side of the depthwise kernel.
        stride: Step of the depthwise kernel.
        momentum: Momentum of the batch normalizations.
        name: What the layers' names start with.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    import keras

    block_input, channels = x, x.shape[-1]
    if expansion != 1:
        x = conv_batch_norm(x, expansion * channels, momentum=momentum, name=f"{name}_expand")
    x = depthwise_batch_norm(x, kernel_size=kernel_size, stride=stride, momentum=momentum, name=f"{name}_depthwise")
    x = conv_batch_norm(x, filters, momentum=momentum, name=f"{name}_project", relu6=False)
    if stride == 1 and channels == filters:
        x = keras.layers.Add(name=f"{name}_add")([block_input, x])
    return x


def head(x: keras.KerasTensor, filters: int, *, num_classes: int, dropout: float, momentum: float) -> keras.KerasTensor:
    """Last convolution, average over the image, dropout, logits.

    The classifier keeps Keras' Glorot initialization: that of EfficientNet's code depends on the number of
    classes alone and gives 10 classes ten times the logits that it gives 1,000.

    Returns:
        `(batch, num_classes)`, float32 under every mixed precision policy.
    """
    import keras

    x = conv_batch_norm(x, filters, momentum=momentum, name="head_conv")
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="head_pool")(x)
    x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    return keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)


def inverted_residual_network(
    config: NetworkConfig,
    stages: Sequence[Stage],
    *,
    name: str,
    rescaling: Rescaling,
    stem_filters: int,
    head_filters: int,
) -> keras.Model:
    """A whole network: scaling, stem, stages of inverted residuals, head.

    Args:
        config: Input, classes and training settings. `config.width` is not applied here: the channels given
            are the channels built.
        stages: The body, in order.
        name: Name of the model.
        rescaling: From pixels to the network's range.
        stem_filters: Channels of the first convolution.
        head_filters: Channels of the last convolution.

    Returns:
        A model from `image`, uint8 `(batch, height, width, 3)`, to `logits`, float32 `(batch, num_classes)`.
    """
    import keras

    momentum = config.batch_norm_momentum
    height, width, _ = config.input_shape
    stem_stride, first_stage_stride = early_strides(height, width, early_stride=config.early_stride)
    first_shrinking = next(index for index, stage in enumerate(stages) if stage.stride > 1)

    image = keras.Input(config.input_shape, dtype="uint8", name="image")
    # In float32 under every policy: bfloat16 has no room for 256 levels between -1 and 1.
    x = keras.layers.Rescaling(rescaling.scale, rescaling.offset, dtype="float32", name="rescaling")(image)
    x = conv_batch_norm(x, stem_filters, kernel_size=3, stride=stem_stride, momentum=momentum, name="stem_conv")
    block = 0
    for index, stage in enumerate(stages):
        stage_stride = first_stage_stride if index == first_shrinking else stage.stride
        for repeat in range(stage.repeats):
            x = inverted_residual(
                x,
                stage.filters,
                expansion=stage.expansion,
                kernel_size=stage.kernel_size,
                stride=stage_stride if repeat == 0 else 1,
                momentum=momentum,
                name=f"block_{block:02d}",
            )
            block += 1
    logits = head(x, head_filters, num_classes=config.num_classes, dropout=config.dropout, momentum=momentum)
    return keras.Model(image, logits, name=name)

"""MobileNetV1: Efficient Convolutional Neural Networks for Mobile Vision Applications (arXiv:1704.04861).

Gates, which the paper does not have, sit after each depthwise convolution and keep a quarter of its channels,
as in MnasNet (Tan et al., CVPR 2019, arXiv:1807.11626).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.blocks import (
    SIGNED_UNIT,
    SqueezeExcite,
    Style,
    classifier,
    conv_batch_norm,
    depthwise_batch_norm,
    early_strides,
    image_input,
    make_divisible,
    pool,
    squeeze_excite,
)
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

# Table 1 of the paper: output channels and stride of each depthwise separable block. The table gives the last
# block stride 2, which would not change its size as the table states; all implementations have 1.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)
_STEM_FILTERS = 32
_FIRST_SHRINKING = 1
_SQUEEZE_RATIO = 0.25


def _build(config: NetworkConfig) -> keras.Model:
    """Builds the network; all channels follow the width multiplier (section 3.3), in multiples of 8.

    The published widths 0.25, 0.5, 0.75 and 1.0 give multiples of 8 without rounding.
    """
    import keras

    style = Style(activation=config.activation, momentum=config.batch_norm_momentum)
    stem_stride, first_stride = early_strides(*config.image_size, early_stride=config.early_stride)

    image, x = image_input(config, SIGNED_UNIT)
    stem_filters = make_divisible(_STEM_FILTERS * config.width)
    x = conv_batch_norm(x, stem_filters, style, kernel_size=3, stride=stem_stride, name="stem_conv")
    for index, (filters, paper_stride) in enumerate(_BLOCKS):
        name = f"block_{index:02d}"
        stride = first_stride if index == _FIRST_SHRINKING else paper_stride
        x = depthwise_batch_norm(x, style, stride=stride, name=f"{name}_depthwise")
        if config.squeeze_excite:
            squeezed = max(1, int(x.shape[-1] * _SQUEEZE_RATIO))
            x = squeeze_excite(x, SqueezeExcite(filters=squeezed, activation=style.activation), name=name)
        x = conv_batch_norm(x, make_divisible(filters * config.width), style, name=f"{name}_pointwise")
    return keras.Model(image, classifier(pool(x), config), name="mobilenet_v1")


SPEC = NetworkSpec(
    name="mobilenet_v1",
    family="mobilenet_v1",
    build=_build,
    input_shape=(224, 224, 3),
    dropout=0.001,  # dropout_keep_prob=0.999 in slim's mobilenet_v1.
    batch_norm_momentum=0.99,  # keras.applications
    has_width=True,
    paper="MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017, "
    "arXiv:1704.04861, table 1",
    published=(
        PublishedResult(width=1.0, resolution=224, top1=70.9),
        PublishedResult(width=1.0, resolution=192, top1=70.0),
        PublishedResult(width=1.0, resolution=160, top1=68.0),
        PublishedResult(width=1.0, resolution=128, top1=65.2),
        PublishedResult(width=0.75, resolution=224, top1=68.4),
        PublishedResult(width=0.75, resolution=192, top1=67.2),
        PublishedResult(width=0.75, resolution=160, top1=65.3),
        PublishedResult(width=0.75, resolution=128, top1=62.1),
        PublishedResult(width=0.5, resolution=224, top1=63.3),
        PublishedResult(width=0.5, resolution=192, top1=61.7),
        PublishedResult(width=0.5, resolution=160, top1=59.1),
        PublishedResult(width=0.5, resolution=128, top1=56.3),
        PublishedResult(width=0.25, resolution=224, top1=49.8),
        PublishedResult(width=0.25, resolution=192, top1=47.7),
        PublishedResult(width=0.25, resolution=160, top1=45.5),
        PublishedResult(width=0.25, resolution=128, top1=41.5),
    ),
    source="tensorflow/models, research/slim/nets/mobilenet_v1.md at 02c04f4",
)

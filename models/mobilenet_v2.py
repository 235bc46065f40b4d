"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., CVPR 2018, arXiv:1801.04381).

Gates, which the paper does not have, sit after each depthwise convolution and keep a quarter of the block's
input channels, as in MnasNet (Tan et al., CVPR 2019, arXiv:1807.11626).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from models.blocks import SIGNED_UNIT, Stage, inverted_residual_network, make_divisible
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

# Table 2 of the paper: t, c, n, s.
_STAGES = (
    Stage(expansion=1, filters=16, repeats=1, stride=1),
    Stage(expansion=6, filters=24, repeats=2, stride=2),
    Stage(expansion=6, filters=32, repeats=3, stride=2),
    Stage(expansion=6, filters=64, repeats=4, stride=2),
    Stage(expansion=6, filters=96, repeats=3, stride=1),
    Stage(expansion=6, filters=160, repeats=3, stride=2),
    Stage(expansion=6, filters=320, repeats=1, stride=1),
)
_STEM_FILTERS = 32
_HEAD_FILTERS = 1280


def _build(config: NetworkConfig) -> keras.Model:
    """Builds the network; the head is widened but never narrowed by the width multiplier (section 6.1)."""
    return inverted_residual_network(
        config,
        [dataclasses.replace(stage, filters=make_divisible(stage.filters * config.width)) for stage in _STAGES],
        name="mobilenet_v2",
        rescaling=SIGNED_UNIT,
        stem_filters=make_divisible(_STEM_FILTERS * config.width),
        head_filters=make_divisible(_HEAD_FILTERS * max(1.0, config.width)),
    )


SPEC = NetworkSpec(
    name="mobilenet_v2",
    family="mobilenet_v2",
    build=_build,
    input_shape=(224, 224, 3),
    dropout=0.2,  # dropout_keep_prob=0.8 in slim's training_scope.
    batch_norm_momentum=0.999,  # keras.applications
    has_width=True,
    paper="MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv:1801.04381, table 2",
    published=(
        PublishedResult(width=1.4, resolution=224, top1=75.0),
        PublishedResult(width=1.3, resolution=224, top1=74.4),
        PublishedResult(width=1.0, resolution=224, top1=71.8),
        PublishedResult(width=1.0, resolution=192, top1=70.7),
        PublishedResult(width=1.0, resolution=160, top1=68.8),
        PublishedResult(width=1.0, resolution=128, top1=65.3),
        PublishedResult(width=1.0, resolution=96, top1=60.3),
        PublishedResult(width=0.75, resolution=224, top1=69.8),
        PublishedResult(width=0.75, resolution=192, top1=68.7),
        PublishedResult(width=0.75, resolution=160, top1=66.4),
        PublishedResult(width=0.75, resolution=128, top1=63.2),
        PublishedResult(width=0.75, resolution=96, top1=58.8),
        PublishedResult(width=0.5, resolution=224, top1=65.4),
        PublishedResult(width=0.5, resolution=192, top1=63.9),
        PublishedResult(width=0.5, resolution=160, top1=61.0),
        PublishedResult(width=0.5, resolution=128, top1=57.7),
        PublishedResult(width=0.5, resolution=96, top1=51.2),
        PublishedResult(width=0.35, resolution=224, top1=60.3),
        PublishedResult(width=0.35, resolution=192, top1=58.2),
        PublishedResult(width=0.35, resolution=160, top1=55.7),
        PublishedResult(width=0.35, resolution=128, top1=50.8),
        PublishedResult(width=0.35, resolution=96, top1=45.5),
    ),
    source="tensorflow/models, research/slim/nets/mobilenet/README.md at 0ba83cf",
)

"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, ICML 2019, arXiv:1905.11946).

One network, B0, and a rule that makes it larger: channels times a width coefficient, repeats times a depth
coefficient. `width` and `depth` multiply the variant's own, so that every network between and beyond the eight
published ones can be built: `width=1.15, depth=1.3` of B0 is one.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

from models.blocks import IMAGENET_STATISTICS, Stage, inverted_residual_network, make_divisible
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

STAGES = (
    Stage(expansion=1, filters=16, repeats=1, stride=1, kernel_size=3),
    Stage(expansion=6, filters=24, repeats=2, stride=2, kernel_size=3),
    Stage(expansion=6, filters=40, repeats=2, stride=2, kernel_size=5),
    Stage(expansion=6, filters=80, repeats=3, stride=2, kernel_size=3),
    Stage(expansion=6, filters=112, repeats=3, stride=1, kernel_size=5),
    Stage(expansion=6, filters=192, repeats=4, stride=2, kernel_size=5),
    Stage(expansion=6, filters=320, repeats=1, stride=1, kernel_size=3),
)
"""B0, table 1 of the paper; the squeeze keeps a quarter of a block's input channels."""

STEM_FILTERS = 32
HEAD_FILTERS = 1280


def _build(config: NetworkConfig, *, name: str, width_coefficient: float, depth_coefficient: float) -> keras.Model:
    """Builds B0 or a larger network; stem and head follow the width coefficient, as in the reference code.

    Args:
        config: What is asked for.
        name: Name of the model.
        width_coefficient: The variant's factor on all channels.
        depth_coefficient: The variant's factor on the repeats of each stage.
    """
    width, depth = width_coefficient * config.width, depth_coefficient * config.depth
    return inverted_residual_network(
        config,
        [
            dataclasses.replace(
                stage, filters=make_divisible(stage.filters * width), repeats=math.ceil(stage.repeats * depth)
            )
            for stage in STAGES
        ],
        name=name,
        rescaling=IMAGENET_STATISTICS,
        stem_filters=make_divisible(STEM_FILTERS * width),
        head_filters=make_divisible(HEAD_FILTERS * width),
    )


def _variant(
    name: str,
    *,
    width_coefficient: float,
    depth_coefficient: float,
    resolution: int,
    dropout: float,
    top1: float,
) -> NetworkSpec:
    """A row of the family's table: `efficientnet_params` in the reference code, and the README."""
    return NetworkSpec(
        name=name,
        family="efficientnet",
        build=partial(_build, name=name, width_coefficient=width_coefficient, depth_coefficient=depth_coefficient),
        input_shape=(resolution, resolution, 3),
        dropout=dropout,
        batch_norm_momentum=0.99,
        activation="swish",
        squeeze_excite=True,
        drop_path=0.2,  # survival_prob=0.8
        has_width=True,
        has_depth=True,
        paper="EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, "
        "arXiv:1905.11946, table 1",
        published=(PublishedResult(width=1.0, resolution=resolution, top1=top1),),
        # Trained with AutoAugment, as in the paper's table 2 and as the weights of keras.applications.
        source="tensorflow/tpu, models/official/efficientnet/README.md at 7dc921f, with AutoAugment",
    )


B0 = _variant("efficientnet_b0", width_coefficient=1.0, depth_coefficient=1.0, resolution=224, dropout=0.2, top1=77.1)
B1 = _variant("efficientnet_b1", width_coefficient=1.0, depth_coefficient=1.1, resolution=240, dropout=0.2, top1=79.1)
B2 = _variant("efficientnet_b2", width_coefficient=1.1, depth_coefficient=1.2, resolution=260, dropout=0.3, top1=80.1)
B3 = _variant("efficientnet_b3", width_coefficient=1.2, depth_coefficient=1.4, resolution=300, dropout=0.3, top1=81.6)
B4 = _variant("efficientnet_b4", width_coefficient=1.4, depth_coefficient=1.8, resolution=380, dropout=0.4, top1=82.9)
B5 = _variant("efficientnet_b5", width_coefficient=1.6, depth_coefficient=2.2, resolution=456, dropout=0.4, top1=83.6)
B6 = _variant("efficientnet_b6", width_coefficient=1.8, depth_coefficient=2.6, resolution=528, dropout=0.5, top1=84.0)
B7 = _variant("efficientnet_b7", width_coefficient=2.0, depth_coefficient=3.1, resolution=600, dropout=0.5, top1=84.3)

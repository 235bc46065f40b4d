"""EfficientNet-Lite: EfficientNet (Tan and Le, ICML 2019, arXiv:1905.11946) for boards.

What Lite changes (tensorflow/tpu, models/official/efficientnet/lite): ReLU6 for swish, no
squeeze-and-excite, and a stem, a head, and repeats of the first and the last stage that the larger variants
do not scale.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

from models.blocks import Rescaling, Stage, inverted_residual_network, make_divisible
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

# Table 1 of the paper; _DEFAULT_BLOCKS_ARGS in efficientnet_lite_builder.py.
_STAGES = (
    Stage(expansion=1, filters=16, repeats=1, stride=1, kernel_size=3),
    Stage(expansion=6, filters=24, repeats=2, stride=2, kernel_size=3),
    Stage(expansion=6, filters=40, repeats=2, stride=2, kernel_size=5),
    Stage(expansion=6, filters=80, repeats=3, stride=2, kernel_size=3),
    Stage(expansion=6, filters=112, repeats=3, stride=1, kernel_size=5),
    Stage(expansion=6, filters=192, repeats=4, stride=2, kernel_size=5),
    Stage(expansion=6, filters=320, repeats=1, stride=1, kernel_size=3),
)
_STEM_FILTERS = 32
_HEAD_FILTERS = 1280


def build_variant(
    config: NetworkConfig, *, name: str, width_coefficient: float, depth_coefficient: float
) -> keras.Model:
    """Builds one variant of the family.

    Args:
        config: What is asked for.
        name: Name of the model.
        width_coefficient: Factor on the channels of the stages; fixed by the variant, not chosen by the user.
        depth_coefficient: Factor on the repeats of all stages but the first and the last.
    """
    first, *middle, last = (
        dataclasses.replace(stage, filters=make_divisible(stage.filters * width_coefficient)) for stage in _STAGES
    )
    deepened = [dataclasses.replace(stage, repeats=math.ceil(stage.repeats * depth_coefficient)) for stage in middle]
    return inverted_residual_network(
        config,
        [first, *deepened, last],
        name=name,
        rescaling=Rescaling(scale=1 / 128, offset=-127 / 128),
        stem_filters=_STEM_FILTERS,
        head_filters=_HEAD_FILTERS,
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
    """A row of the family's table: `efficientnet_lite_params` in the reference code, and the README."""
    return NetworkSpec(
        name=name,
        family="efficientnet_lite",
        build=partial(
            build_variant,
            name=name,
            width_coefficient=width_coefficient,
            depth_coefficient=depth_coefficient,
        ),
        input_shape=(resolution, resolution, 3),
        dropout=dropout,
        batch_norm_momentum=0.99,
        paper="EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, "
        "arXiv:1905.11946, table 1; without squeeze-and-excite, with ReLU6",
        published=(PublishedResult(width=1.0, resolution=resolution, top1=top1),),
        source="tensorflow/tpu, models/official/efficientnet/lite/README.md at 7dc921f",
    )


LITE0 = _variant(
    "efficientnet_lite0",
    width_coefficient=1.0,
    depth_coefficient=1.0,
    resolution=224,
    dropout=0.2,
    top1=75.1,
)

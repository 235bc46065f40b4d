"""EfficientNet-Lite: EfficientNet (Tan and Le, ICML 2019, arXiv:1905.11946) for boards.

What Lite changes (tensorflow/tpu, models/official/efficientnet/lite): ReLU6 for swish, no
squeeze-and-excite, and a stem, a head, and repeats of the first and the last stage that the larger variants
do not scale. With the option `squeeze_excite` the gates are EfficientNet's again.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

from models.blocks import Rescaling, inverted_residual_network, make_divisible
from models.efficientnet import HEAD_FILTERS, STAGES, STEM_FILTERS
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras


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
        dataclasses.replace(stage, filters=make_divisible(stage.filters * width_coefficient)) for stage in STAGES
    )
    deepened = [dataclasses.replace(stage, repeats=math.ceil(stage.repeats * depth_coefficient)) for stage in middle]
    return inverted_residual_network(
        config,
        [first, *deepened, last],
        name=name,
        rescaling=Rescaling(scale=1 / 128, offset=-127 / 128),
        stem_filters=STEM_FILTERS,
        head_filters=HEAD_FILTERS,
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
        drop_path=0.2,  # survival_prob=0.8
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
LITE1 = _variant(
    "efficientnet_lite1",
    width_coefficient=1.0,
    depth_coefficient=1.1,
    resolution=240,
    dropout=0.2,
    top1=76.7,
)
LITE2 = _variant(
    "efficientnet_lite2",
    width_coefficient=1.1,
    depth_coefficient=1.2,
    resolution=260,
    dropout=0.3,
    top1=77.6,
)
LITE3 = _variant(
    "efficientnet_lite3",
    width_coefficient=1.2,
    depth_coefficient=1.4,
    resolution=280,
    dropout=0.3,
    top1=79.8,
)
LITE4 = _variant(
    "efficientnet_lite4",
    width_coefficient=1.4,
    depth_coefficient=1.8,
    resolution=300,
    dropout=0.3,
    top1=81.5,
)

"""EfficientNetV2: Smaller Models and Faster Training (Tan and Le, ICML 2021, arXiv:2104.00298).

The first stages have fused blocks, without gates; the later ones have EfficientNet's blocks, with gates, as the
option `squeeze_excite` leaves or removes them. `width` and `depth` multiply the variant's own coefficients.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

from models.blocks import IMAGENET_STATISTICS, Rescaling, Stage, inverted_residual_network
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

# v2_base_block in effnetv2_configs.py.
_BASE_STAGES = (
    Stage(expansion=1, filters=16, repeats=1, stride=1, squeeze_ratio=0.0, fused=True),
    Stage(expansion=4, filters=32, repeats=2, stride=2, squeeze_ratio=0.0, fused=True),
    Stage(expansion=4, filters=48, repeats=2, stride=2, squeeze_ratio=0.0, fused=True),
    Stage(expansion=4, filters=96, repeats=3, stride=2),
    Stage(expansion=6, filters=112, repeats=5, stride=1),
    Stage(expansion=6, filters=192, repeats=8, stride=2),
)
_BASE_STEM_FILTERS = 32

# Table 4 of the paper; v2_s_block in effnetv2_configs.py.
_SMALL_STAGES = (
    Stage(expansion=1, filters=24, repeats=2, stride=1, squeeze_ratio=0.0, fused=True),
    Stage(expansion=4, filters=48, repeats=4, stride=2, squeeze_ratio=0.0, fused=True),
    Stage(expansion=4, filters=64, repeats=4, stride=2, squeeze_ratio=0.0, fused=True),
    Stage(expansion=4, filters=128, repeats=6, stride=2),
    Stage(expansion=6, filters=160, repeats=9, stride=1),
    Stage(expansion=6, filters=256, repeats=15, stride=2),
)
_SMALL_STEM_FILTERS = 24
_HEAD_FILTERS = 1280

_SMALL_RANGE = Rescaling(scale=1 / 128, offset=-1.0)
"""0..255 to -1..0.992 (google/automl, efficientnetv2/preprocessing.py)."""


def _nearest_multiple(channels: float, divisor: int = 8) -> int:
    """Rounds a number of channels; unlike `make_divisible`, it may go down by more than 10 %.

    The rule of effnetv2_model.py (`round_filters`).
    """
    return max(divisor, int(channels + divisor / 2) // divisor * divisor)


def _build(
    config: NetworkConfig,
    *,
    name: str,
    stages: tuple[Stage, ...],
    stem_filters: int,
    rescaling: Rescaling,
    width_coefficient: float,
    depth_coefficient: float,
) -> keras.Model:
    """Builds one variant; stem and head follow the width coefficient.

    Args:
        config: What is asked for.
        name: Name of the model.
        stages: The body before scaling.
        stem_filters: Channels of the first convolution before scaling.
        rescaling: From pixels to the network's range.
        width_coefficient: The variant's factor on all channels.
        depth_coefficient: The variant's factor on the repeats of each stage.
    """
    width, depth = width_coefficient * config.width, depth_coefficient * config.depth
    return inverted_residual_network(
        config,
        [
            dataclasses.replace(
                stage, filters=_nearest_multiple(stage.filters * width), repeats=math.ceil(stage.repeats * depth)
            )
            for stage in stages
        ],
        name=name,
        rescaling=rescaling,
        stem_filters=_nearest_multiple(stem_filters * width),
        head_filters=_nearest_multiple(_HEAD_FILTERS * width),
    )


def _variant(
    name: str,
    *,
    width_coefficient: float = 1.0,
    depth_coefficient: float = 1.0,
    resolution: int,
    dropout: float,
    top1: float,
) -> NetworkSpec:
    """A row of the family's table, at the resolution that the authors evaluate at; they train at a smaller one."""
    small = name == "efficientnet_v2_s"
    return NetworkSpec(
        name=name,
        family="efficientnet_v2",
        build=partial(
            _build,
            name=name,
            stages=_SMALL_STAGES if small else _BASE_STAGES,
            stem_filters=_SMALL_STEM_FILTERS if small else _BASE_STEM_FILTERS,
            rescaling=_SMALL_RANGE if small else IMAGENET_STATISTICS,
            width_coefficient=width_coefficient,
            depth_coefficient=depth_coefficient,
        ),
        input_shape=(resolution, resolution, 3),
        dropout=dropout,
        batch_norm_momentum=0.9,
        activation="swish",
        squeeze_excite=True,
        drop_path=0.2,  # survival_prob=0.8
        has_width=True,
        has_depth=True,
        paper="EfficientNetV2: Smaller Models and Faster Training, ICML 2021, arXiv:2104.00298, "
        + ("table 4" if small else "section 4.1: scaled down from the base network of effnetv2_configs.py"),
        published=(PublishedResult(width=1.0, resolution=resolution, top1=top1),),
        source="google/automl, efficientnetv2/README.md at 6a54c87",
    )


B0 = _variant("efficientnet_v2_b0", resolution=224, dropout=0.2, top1=78.7)
B1 = _variant("efficientnet_v2_b1", depth_coefficient=1.1, resolution=240, dropout=0.2, top1=79.8)
B2 = _variant(
    "efficientnet_v2_b2", width_coefficient=1.1, depth_coefficient=1.2, resolution=260, dropout=0.3, top1=80.5
)
B3 = _variant(
    "efficientnet_v2_b3", width_coefficient=1.2, depth_coefficient=1.4, resolution=300, dropout=0.3, top1=82.1
)
S = _variant("efficientnet_v2_s", resolution=384, dropout=0.2, top1=83.9)

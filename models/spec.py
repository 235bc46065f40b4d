"""What a network family states about itself, and what it is asked to build."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

MIN_RESOLUTION = 32
"""The smallest image side in pixels: the paper's strides divide the image by 32."""


def check_input_shape(input_shape: tuple[int, int, int]) -> None:
    """Refuses what is not `(height, width, 3)` in pixels with both sides of at least `MIN_RESOLUTION`.

    Raises:
        ValueError: If it is refused.
    """
    if len(input_shape) != 3 or input_shape[2] != 3:
        raise ValueError(
            f"input_shape is {input_shape!r}, expected (height, width, 3): networks take RGB images, so repeat "
            "the one channel of a grey image three times."
        )
    if not all(isinstance(size, int) and size >= MIN_RESOLUTION for size in input_shape[:2]):
        raise ValueError(
            f"input_shape is {input_shape!r}, expected a height and a width of at least {MIN_RESOLUTION} whole "
            "pixels; resize smaller images."
        )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything that shapes one network, with nothing left to a default.

    Args:
        input_shape: `(height, width, 3)` in pixels, RGB.
        num_classes: Number of logits.
        width: Multiplier on the number of channels.
        dropout: Share of the pooled features that is dropped in training, in [0, 1).
        early_stride: Whether the first strides are the paper's (see `models.blocks.early_strides`).
        batch_norm_momentum: Share of the moving statistics that one training step keeps, in (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    width: float
    dropout: float
    early_stride: bool
    batch_norm_momentum: float

    def __post_init__(self) -> None:
        check_input_shape(self.input_shape)
        if not (isinstance(self.num_classes, int) and self.num_classes >= 2):
            raise ValueError(f"num_classes is {self.num_classes!r}, expected a whole number of at least 2.")
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"width is {self.width!r}, expected a number above 0, such as 0.35 or 1.0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}, expected a number in [0, 1).")
        if not 0 < self.batch_norm_momentum < 1:
            raise ValueError(
                f"batch_norm_momentum is {self.batch_norm_momentum!r}, expected a number in (0, 1), such as 0.99."
            )


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One row of the table that a family's authors published.

    Args:
        width: Width multiplier.
        resolution: Side of the square input image in pixels.
        top1: Top-1 accuracy on ImageNet's validation set in percent, float weights.
    """

    width: float
    resolution: int
    top1: float


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network that can be built by name.

    Args:
        name: The key in `models.MODELS`.
        family: What networks of the same design are called together.
        build: Makes the network from a config that is already checked.
        resolution: Side of the square input image in pixels that the authors report first.
        dropout: The authors' dropout, used unless the caller gives another.
        batch_norm_momentum: The reference implementation's momentum, used unless the caller gives another.
        has_width: Whether the width multiplier applies.
        paper: Where the design is described, with the number of the table.
        published: What the authors measured.
        source: Where `published` was read.
    """

    name: str
    family: str
    build: Callable[[NetworkConfig], keras.Model]
    resolution: int
    dropout: float
    batch_norm_momentum: float
    has_width: bool
    paper: str
    published: tuple[PublishedResult, ...]
    source: str

    @property
    def top1(self) -> float | None:
        """Published top-1 accuracy in percent at width 1.0 and the default resolution, where there is one."""
        return self.published_top1(1.0, self.resolution)

    def published_top1(self, width: float, resolution: int) -> float | None:
        """Published top-1 accuracy in percent at this width and square resolution, where there is one."""
        for result in self.published:
            if result.width == width and result.resolution == resolution:
                return result.top1
        return None

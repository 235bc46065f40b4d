"""What a network family states about itself, and what it is asked to build."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import keras

MIN_RESOLUTION = 32
"""The smallest image side in pixels: the paper's strides divide the image by 32."""

Activation = Literal["relu", "relu6", "hard_swish", "swish", "gelu"]
"""The nonlinearities that networks are built with."""

InputKind = Literal["image", "features"]
"""`image`: uint8 `(height, width, 3)`, RGB 0..255, scaled inside the network; `features`: float32 arrays of the
network's own shape, such as a spectrogram, taken as they are."""


def check_input_shape(input_shape: tuple[int, ...]) -> None:
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
        input_shape: Without the batch: `(height, width, 3)` in pixels for images, else the shape of the features.
        num_classes: Number of logits; of a network that classifies nothing, what its family says.
        width: Multiplier on the number of channels.
        depth: Multiplier on the number of blocks.
        dropout: Share of the pooled features that is dropped in training, in [0, 1).
        drop_path: Share of the samples for which the last residual block is skipped in training, in [0, 1);
            earlier blocks are skipped less, in proportion (stochastic depth, arXiv:1603.09382).
        activation: The network's principal nonlinearity.
        squeeze_excite: Whether the blocks that have it in the paper, or all where none has, gate their channels.
        early_stride: Whether the first strides are the paper's (see `models.blocks.early_strides`).
        batch_norm_momentum: Share of the moving statistics that one training step keeps, in (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    width: float
    depth: float
    dropout: float
    drop_path: float
    activation: Activation
    squeeze_excite: bool
    early_stride: bool
    batch_norm_momentum: float

    def __post_init__(self) -> None:
        if not (isinstance(self.num_classes, int) and self.num_classes >= 2):
            raise ValueError(f"num_classes is {self.num_classes!r}, expected a whole number of at least 2.")
        for name, value in (("width", self.width), ("depth", self.depth)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}, expected a number above 0, such as 0.5 or 1.0.")
        for name, value in (("dropout", self.dropout), ("drop_path", self.drop_path)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}, expected a number in [0, 1).")
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation is {self.activation!r}, expected one of {', '.join(get_args(Activation))}.")
        if not 0 < self.batch_norm_momentum < 1:
            raise ValueError(
                f"batch_norm_momentum is {self.batch_norm_momentum!r}, expected a number in (0, 1), such as 0.99."
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels, of a network that takes images."""
        height, width, _ = self.input_shape
        return height, width


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One row of the table that a family's authors published.

    Args:
        width: Width multiplier.
        resolution: Side of the square input image in pixels.
        top1: Top-1 accuracy in percent, float weights, on the spec's data set.
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
        input_shape: What the authors report first, without the batch.
        dropout: The authors' dropout, used unless the caller gives another.
        batch_norm_momentum: The reference implementation's momentum, used unless the caller gives another.
        paper: Where the design is described, with the number of the table.
        published: What the authors measured.
        source: Where `published` was read.
        input_kind: What the network takes.
        activation: The paper's principal nonlinearity.
        squeeze_excite: Whether the paper's blocks gate their channels.
        drop_path: The authors' rate of stochastic depth at the last block; None where the paper has none.
        has_width: Whether the width multiplier applies.
        has_depth: Whether the depth multiplier applies.
        has_early_stride: Whether there is a variant for small images.
        fixed: Options that the design leaves no choice in, by name, with the reason.
        dataset: What `published` was measured on.
        num_classes: Of that data set.
    """

    name: str
    family: str
    build: Callable[[NetworkConfig], keras.Model]
    input_shape: tuple[int, ...]
    dropout: float
    batch_norm_momentum: float
    paper: str
    published: tuple[PublishedResult, ...]
    source: str
    input_kind: InputKind = "image"
    activation: Activation = "relu6"
    squeeze_excite: bool = False
    drop_path: float | None = None
    has_width: bool = False
    has_depth: bool = False
    has_early_stride: bool = True
    fixed: Mapping[str, str] = field(default_factory=dict)
    dataset: str = "ImageNet"
    num_classes: int = 1000

    @property
    def resolution(self) -> int:
        """Side of the square image, or the first side of the features, that the authors report first."""
        return self.input_shape[0]

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

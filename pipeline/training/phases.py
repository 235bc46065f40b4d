"""How a training changes on its way: image size and regularization that grow, layers that are freed."""

from __future__ import annotations

from dataclasses import dataclass

from models.spec import MIN_RESOLUTION
from pipeline.training.config import TrainConfig


@dataclass(frozen=True)
class Phase:
    """Epochs that are trained alike.

    Attributes:
        size: (height, width) of the images in pixels.
        strength: Share of the full regularization, 0..1.
        is_frozen: Whether `train.freeze` holds.
    """

    size: tuple[int, int]
    strength: float
    is_frozen: bool


def phase_of(epoch: int, config: TrainConfig, size: tuple[int, int]) -> Phase:
    """Returns how an epoch is trained.

    Args:
        epoch: Which, from 0.
        config: Of the training.
        size: (height, width) of the network that is exported.
    """
    freeze = config.freeze
    is_frozen = freeze is not None and (freeze.epochs is None or epoch < freeze.epochs)
    progressive = config.progressive
    if progressive is None:
        return Phase(size, 1.0, is_frozen)
    stage = min(epoch * progressive.stages // max(1, config.epochs), progressive.stages - 1)
    share = stage / (progressive.stages - 1)
    scale = progressive.start_size + (1 - progressive.start_size) * share
    strength = progressive.start_strength + (1 - progressive.start_strength) * share
    height, width = (side if share == 1 else _rounded(side * scale, side) for side in size)
    return Phase((height, width), strength, is_frozen)


def _rounded(side: float, full: int) -> int:
    """Rounds to a multiple of 32 pixels, of 8 where the full size is small, and keeps to what networks take."""
    multiple = 32 if full >= 160 else 8
    return min(full, max(MIN_RESOLUTION, round(side / multiple) * multiple))

"""The `quantization` section of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.quantization.config import FineTuneConfig
from pipeline.quantization.ranges import RANGE_METHODS, RangeMethod
from pipeline.quantization.remedies import REMEDIES, Remedy
from pipeline.stages.base import FrozenConfig


class CalibrationSetConfig(FrozenConfig):
    """What the integer precisions take their ranges from.

    Attributes:
        calibration_images: How many training images, balanced over the classes.
        seed: Of the draw.
    """

    calibration_images: int = Field(default=200, ge=64)
    seed: int = Field(default=0, ge=0, lt=2**31)


class AccuracyConfig(FrozenConfig):
    """How much accuracy int8 may cost, and what is done about it.

    Attributes:
        max_drop: On the validation images, 0..1 (0.005 is half a point); see `AccuracyDrop.holds`.
        remedies: Which are tried where the drop is larger, in the order of `pipeline.quantization.remedies`.
        training: How the remedy `training` fine-tunes the rounded network.
    """

    max_drop: float = Field(default=0.005, ge=0, le=1)
    remedies: tuple[Remedy, ...] = REMEDIES
    training: FineTuneConfig = FineTuneConfig()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        expected = tuple(remedy for remedy in REMEDIES if remedy in self.remedies)
        if self.remedies != expected or "ranges" not in self.remedies:
            raise ValueError(
                f"quantization.accuracy.remedies is {', '.join(self.remedies) or 'empty'}: begin with ranges, name "
                f"each once, and keep the order {', '.join(REMEDIES)}."
            )
        return self


class QuantizationConfig(CalibrationSetConfig):
    """How networks become int8.

    Attributes:
        ranges: How the ranges of activations are chosen; `auto` takes what leaves the output closest to float.
        search: `device` measures every way to int8 on the first device and takes the fastest; `none` takes the one
            that was fastest where this was made.
        accuracy: The limit that remedies are tried for; None tries none.
        sensitivity: Whether it is measured and written how much int8 hurts each layer.
        draws: How many times the calibration set is drawn to report how far int8 spreads; None draws it once.
        refit_temperature: Whether an int8 file gets a temperature of its own where quantization shifted the confidence;
            with `calibrate.method: temperature` and a validation split.
    """

    ranges: Literal["auto"] | RangeMethod = "auto"
    search: Literal["none", "device"] = "none"
    accuracy: AccuracyConfig | None = None
    sensitivity: bool = False
    draws: int | None = Field(default=None, ge=2, le=20)
    refit_temperature: bool = True

    def calibration_set(self) -> CalibrationSetConfig:
        """Returns what the calibration set is drawn by."""
        return CalibrationSetConfig(calibration_images=self.calibration_images, seed=self.seed)

    def range_methods(self) -> tuple[RangeMethod, ...]:
        """Returns the ways to choose ranges that are compared."""
        return RANGE_METHODS if self.ranges == "auto" else (self.ranges,)

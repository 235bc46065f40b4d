"""The section of a recipe that says what is compiled for its devices."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from devices.compiled import Form
from pipeline.stages.base import FrozenConfig

DEFAULT_STARTS = 10


class CompileConfig(FrozenConfig):
    """What is compiled for each device.

    Attributes:
        forms: What exports become, each for the devices and targets that it suits: `xnnpack_cache` (of LiteRT files),
            `ort` (ONNX Runtime), `openvino_blob` (OpenVINO), `vela` (int8 LiteRT files, for devices with an Ethos-U);
            none compiles nothing.
        starts: How often the compiled form and the model itself are started beside each other; six or more give an
            interval, 0 does not measure.
    """

    forms: tuple[Form, ...] = ()
    starts: int = Field(default=DEFAULT_STARTS, ge=0, le=200)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.forms)) != len(self.forms):
            raise ValueError(f"compile.forms names one twice: {', '.join(self.forms)}.")
        return self

"""The sections of a device profile: core clusters, storage, sensors, budgets."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Frozen(BaseModel):
    """What every section is: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def expand_cpus(value: Any) -> Any:
    """The logical cores of a text such as `0-3` or `0,2-4`; anything else is left to the validation."""
    if not isinstance(value, str):
        return value
    cpus: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if match is None or int(match.group(2) or match.group(1)) < int(match.group(1)):
            raise ValueError("expected logical cores such as 0-3 or 0,2-4")
        cpus += range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1)
    return tuple(cpus)


Cpus = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(expand_cpus), Field(min_length=1)]
"""Logical cores by their numbers in Linux; in YAML a list, or a text such as `0-3`."""


class CoreCluster(Frozen):
    """Cores of one kind.

    Attributes:
        core: The name of the core, such as Cortex-A76.
        cpus: Which logical cores are of this kind.
        max_mhz: Their highest frequency; None where no source tells.
    """

    core: str = Field(min_length=1)
    cpus: Cpus
    max_mhz: PositiveFloat | None = None


class Storage(Frozen):
    """What the system lies on.

    Attributes:
        kind: Such as microSD, eMMC, NVMe.
        size_gb: In 10^9 bytes, where the board comes with it; None where the user chooses.
    """

    kind: str = Field(min_length=1)
    size_gb: PositiveFloat | None = None


SensorKind = Literal[
    "thermal_zone", "hwmon", "cpufreq", "raspberry_pi_firmware", "thermal_throttle", "cooling_device", "rapl", "none"
]

_KINDS: dict[str, tuple[SensorKind, ...]] = {
    "temperature": ("thermal_zone", "hwmon", "none"),
    "frequency": ("cpufreq", "none"),
    "throttling": ("raspberry_pi_firmware", "thermal_throttle", "cooling_device", "none"),
    "energy": ("rapl", "hwmon", "none"),
}
"""By what is sensed, the kinds of sensors that tell it."""


class Sensor(Frozen):
    """How one thing is read on the board.

    Attributes:
        kind: The interface: `thermal_zone` and `cooling_device` (/sys/class/thermal), `hwmon` (/sys/class/hwmon),
            `cpufreq` (/sys/devices/system/cpu), `raspberry_pi_firmware` (get_throttled in sysfs, else vcgencmd),
            `thermal_throttle` (counters of Intel processors), `rapl` (/sys/class/powercap). `none`: not at all.
        path: Which of several; None takes all that there are.
        name: The name of the zone, or of the chip or rail of hwmon, where there are several.
        reason: Why there is none.
    """

    kind: SensorKind
    path: str | None = Field(default=None, pattern=r"^/(sys|proc)/")
    name: str | None = Field(default=None, min_length=1)
    reason: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Sensor:
        if (self.kind == "none") != (self.reason is not None):
            raise ValueError("a sensor of kind 'none' needs a reason, and only such a one has a reason")
        if self.kind == "none" and (self.path is not None or self.name is not None):
            raise ValueError("a sensor of kind 'none' has neither path nor name")
        return self


class Sensors(Frozen):
    """What can be read beside a measurement; None where the board is asked instead."""

    temperature: Sensor | None = None
    frequency: Sensor | None = None
    throttling: Sensor | None = None
    energy: Sensor | None = None

    @model_validator(mode="after")
    def _check(self) -> Sensors:
        for quantity, kinds in _KINDS.items():
            sensor: Sensor | None = getattr(self, quantity)
            if sensor is not None and sensor.kind not in kinds:
                raise ValueError(f"{quantity} has the kind '{sensor.kind}'; expected one of: {', '.join(kinds)}")
        return self


class Budgets(Frozen):
    """What a model on this device must keep to; None sets no limit.

    Attributes:
        latency_p50_ms: The median of single inferences, at most.
        latency_p99_ms: Their 99th percentile, at most.
        peak_memory_mb: Resident memory of the agent's process in MiB, at most.
        size_bytes: Of the model's files, at most.
        energy_mj: Of one inference, in millijoules, at most; a gate where energy is measured.
        accuracy: Of the model as it runs on the device, 0..1, at least.
    """

    latency_p50_ms: PositiveFloat | None = None
    latency_p99_ms: PositiveFloat | None = None
    peak_memory_mb: PositiveFloat | None = None
    size_bytes: PositiveInt | None = None
    energy_mj: PositiveFloat | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1)


class EthosU(Frozen):
    """A neural processor of Arm's Ethos-U series, and what Vela is told of it.

    Attributes:
        accelerator: Its kind and number of multipliers, such as ethos-u65-256.
        system_config: A section of Vela's configuration file: clock, and bandwidth and latency of the memories.
        memory_mode: A section of it: what lies in which memory.
    """

    accelerator: str = Field(pattern=r"^ethos-u\d{2}-\d+$")
    system_config: str = Field(min_length=1)
    memory_mode: str = Field(min_length=1)

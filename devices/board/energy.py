"""The energy that a block of inferences takes, from a counter of energy or from a sensor of power.

RAPL counts the energy of the processor's package. What is told is what the counter went on by, with all that other
programs took.

A monitor in hwmon (INA3221, INA226 and the like) tells the power of one rail. It is read right before the block, when
inferences that are not timed have just run, and right after it, never in between: asking the chip over its bus would
disturb the inferences. What is told is the mean of these two readings times the inferences' own time. So it is the
energy of the whole rail while an inference runs, idle power included, as true as the power was even during the block:
single blocks scatter, and the result is the mean of all.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

from . import hardware
from .kernel import whole_number

Reading = Optional[List[int]]
"""Microjoules of each counter, or one power in microwatts; None where it can't be had."""


class EnergyMeter:
    """The energy of blocks.

    Args:
        root: Of the file system; tests put written trees there.
        wanted: The profile's sensor (`devices.profile_parts.Sensor`): `kind` (`rapl`, `hwmon`, or `none` with a
            `reason`), and `path` or `name` where there are several. None takes what the board has: RAPL's packages,
            else the one power sensor.

    Attributes:
        name: Of the sensor; None where there is none.
        reason: Why there is none, or why the last block has no energy; None where it has.
    """

    def __init__(self, root: str = "", wanted: Optional[Mapping[str, Any]] = None) -> None:
        self._root = root
        self._counts = False
        self._paths: List[str] = []
        self.name: Optional[str] = None
        self.reason = self._choose(hardware.energy_sensors(root), wanted)
        if self.reason is None and self.read() is None:
            self.reason = (
                f"the energy sensor {self.name} can't be read ({self._paths[0]}): only root may on this kernel"
            )
        self._broken = self.reason

    def read(self) -> Reading:
        """The state of the sensor now."""
        values = [whole_number(self._root + path) for path in self._paths]
        if not values or any(value is None for value in values):
            return None
        known = [value for value in values if value is not None]
        if self._counts or len(known) == 1:
            return known
        return [known[0] * known[1]]  # millivolts and milliamperes

    def spent_uj(self, before: Reading, after: Reading, inferring_ns: int) -> Optional[float]:
        """What a block took, in microjoules; None where `reason` says why.

        Args:
            before: The reading right before the block.
            after: The one right after it.
            inferring_ns: How long its inferences took, all together.
        """
        self.reason = self._broken
        if self.reason is not None:
            return None
        if before is None or after is None:
            self.reason = f"the energy sensor {self.name} could not be read at one of the blocks"
            return None
        if not self._counts:
            return (before[0] + after[0]) / 2 * inferring_ns / 1e9
        total = 0
        for begin, end, path in zip(before, after, self._paths):
            limit = whole_number(f"{self._root}{os.path.dirname(path)}/max_energy_range_uj")
            if end < begin and limit is None:
                self.reason = f"the energy counter {path} began anew and does not tell its range"
                return None
            total += end - begin if end >= begin else end - begin + (limit or 0)
        return float(total)

    def _choose(self, there: Sequence[Dict[str, Any]], wanted: Optional[Mapping[str, Any]]) -> Optional[str]:
        """Takes the sensor; returns why there is none."""
        if wanted is not None and wanted["kind"] == "none":
            return f"no energy sensor: {wanted['reason'].rstrip('.')}"
        kind = None if wanted is None else wanted["kind"]
        packages = [each for each in there if each["kind"] == "rapl" and _is_package(each)]
        powers = [each for each in there if each["kind"] == "hwmon"]
        if wanted is not None and (wanted.get("path") or wanted.get("name")):
            candidates = [each for each in there if each["kind"] == kind]
            chosen = [each for each in candidates if _is_meant(each, wanted)]
            if not chosen:
                which = wanted.get("path") or wanted.get("name")
                listed = ", ".join(each["name"] for each in candidates) or "none"
                return f"the board has no energy sensor {which} ({kind}), which its profile names; it has: {listed}"
        else:
            chosen = {"rapl": packages, "hwmon": powers}.get(str(kind), packages or powers)
        if not chosen:
            return "no energy sensor: " + {
                "rapl": "/sys/class/powercap has no RAPL package",
                "hwmon": "/sys/class/hwmon has no power monitor",
            }.get(str(kind), "/sys/class/powercap has no RAPL package, /sys/class/hwmon no power monitor")
        if chosen[0]["kind"] == "hwmon" and len(chosen) > 1:
            listed = ", ".join(each["name"] for each in chosen)
            return f"the board has several power sensors ({listed}); name one in its profile, as sensors.energy.name"
        self._counts = chosen[0]["kind"] == "rapl"
        self._paths = [path for each in chosen for path in each["paths"]]
        self.name = " + ".join(f"RAPL {each['name']}".strip() if self._counts else each["name"] for each in chosen)
        return None


def _is_package(sensor: Mapping[str, Any]) -> bool:
    """Whether a counter of RAPL is that of a package (`intel-rapl:0`), not of a part of one (`intel-rapl:0:1`)."""
    zone: str = os.path.basename(os.path.dirname(sensor["paths"][0]))
    return zone.count(":") == 1


def _is_meant(sensor: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a sensor is the one that a profile names: by its whole name, its chip's or its label's, or by a path."""
    path = wanted.get("path")
    if path and not any(each == path or each.startswith(path.rstrip("/") + "/") for each in sensor["paths"]):
        return False
    chip, _, label = sensor["name"].partition(" ")
    return any(wanted.get("name") == name for name in (None, sensor["name"], chip, label))

"""What the board feels while it works: temperature, frequency, throttling, energy. Files of the kernel.

Every path lies under a root that tests put elsewhere. What the board does not tell is None, or absent from a list.
"""

from __future__ import annotations

import glob
import os
import re
import time
from typing import Any, Dict, List, Optional, Tuple

from .errors import AgentError

_CPUS = "/sys/devices/system/cpu"
_FIRMWARE_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_RAPL = "/sys/class/powercap"

# Raspberry Pi documentation, "vcgencmd get_throttled": the low bits are now, those 16 above it since the start.
_THROTTLED_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}


def sample(root: str = "") -> Dict[str, Any]:
    """The state of the board right now, JSON values only.

    Returns:
        `time_s` of the monotonic clock; `temperature_c`, the highest of `temperatures_c` by zone; `frequency_mhz`
        of each core that tells; `governor` of the first core; `throttle_count` since the start (Intel);
        `throttled`: what limits the board now, `throttled_before`: what did since its start (Raspberry Pi), None
        where the board has no such flags.
    """
    temperatures = _temperatures(root)
    now, before = parse_throttled(_read(root + _FIRMWARE_THROTTLED))
    return {
        "time_s": time.monotonic(),
        "temperature_c": max(temperatures.values()) if temperatures else None,
        "temperatures_c": temperatures,
        "frequency_mhz": _frequencies(root),
        "governor": _read(f"{root}{_CPUS}/cpu0/cpufreq/scaling_governor").strip() or None,
        "throttle_count": _throttle_count(root),
        "throttled": now,
        "throttled_before": before,
    }


def parse_throttled(text: str) -> Tuple[Optional[List[str]], Optional[List[str]]]:
    """What limits a Raspberry Pi now, and what did since its start, from the firmware's hexadecimal flags."""
    match = re.fullmatch(r"(?:0x)?([0-9a-fA-F]+)", text.strip())
    if match is None:
        return None, None
    flags = int(match.group(1), 16)
    now = [name for bit, name in _THROTTLED_BITS.items() if flags >> bit & 1]
    before = [name for bit, name in _THROTTLED_BITS.items() if flags >> (bit + 16) & 1]
    return now, before


def set_governor(governor: str, root: str = "") -> List[Tuple[str, str]]:
    """Sets the governor of all cores.

    Returns:
        The file and the old governor of each, for `restore_governors`.

    Raises:
        AgentError: There is none to set, it is not one of those that the kernel offers, or the right is missing.
    """
    files = sorted(glob.glob(f"{root}{_CPUS}/cpu[0-9]*/cpufreq/scaling_governor"))
    if not files:
        raise AgentError(
            f"the governor can't be set to '{governor}': this kernel offers none ({_CPUS}/cpu0/cpufreq is missing, as "
            "in virtual machines); measure without --governor"
        )
    offered = _read(os.path.join(os.path.dirname(files[0]), "scaling_available_governors")).split()
    if offered and governor not in offered:
        raise AgentError(f"the governor can't be set to '{governor}'; this kernel offers: {', '.join(offered)}")
    done: List[Tuple[str, str]] = []
    try:
        for path in files:
            old = _read(path).strip()
            _write(path, governor)
            done.append((path, old))
    except OSError as error:
        restore_governors(done)
        raise AgentError(
            f"the governor can't be set to '{governor}': {path}: {error.strerror or error}. Only root may: set it by "
            f"hand (echo {governor} | sudo tee {_CPUS}/cpu*/cpufreq/scaling_governor), or measure without --governor"
        ) from error
    return done


def restore_governors(old: List[Tuple[str, str]]) -> None:
    """Puts the governors back that `set_governor` has replaced.

    Raises:
        AgentError: One can't be put back.
    """
    failed = []
    for path, governor in old:
        try:
            _write(path, governor)
        except OSError as error:
            failed.append(f"{path} to '{governor}' ({error.strerror or error})")
    if failed:
        raise AgentError(f"governors could not be put back; set them by hand: {', '.join(failed)}")


class EnergyMeter:
    """The energy that the processor has taken, from the package's RAPL counter.

    It counts the whole package: what other programs take is in it.

    Args:
        root: Of the file system.
    """

    def __init__(self, root: str = "") -> None:
        self.reason: Optional[str] = None
        self._paths = []
        for zone in sorted(glob.glob(f"{root}{_RAPL}/intel-rapl:[0-9]*")):
            if ":" not in os.path.basename(zone).split(":", 1)[1]:  # a package, not a part of one
                self._paths.append(os.path.join(zone, "energy_uj"))
        self._ranges = [_number(_read(os.path.join(os.path.dirname(path), "max_energy_range_uj")), 1)
                        for path in self._paths]  # fmt: skip
        if not self._paths:
            self.reason = f"no energy sensor: {_RAPL} has no RAPL package"
        elif self.read_uj() is None:
            self.reason = f"the energy counter {self._paths[0]} can't be read: only root may on this kernel"

    def read_uj(self) -> Optional[List[int]]:
        """The counters of all packages in microjoules; None where one can't be read."""
        values = [_number(_read(path), 1) for path in self._paths]
        if not values or any(value is None for value in values):
            return None
        return [int(value) for value in values if value is not None]

    def spent_uj(self, before: Optional[List[int]], after: Optional[List[int]]) -> Optional[int]:
        """What was spent between two readings, in microjoules; a counter that began anew is taken into account."""
        if before is None or after is None:
            return None
        total = 0
        for begin, end, limit in zip(before, after, self._ranges):
            total += end - begin if end >= begin else end - begin + int(limit or 0)
        return total if total >= 0 else None


def _temperatures(root: str) -> Dict[str, float]:
    """Degrees Celsius by the type of the zone; the sensors of the processor where there are no zones."""
    found: Dict[str, float] = {}
    for zone in sorted(glob.glob(f"{root}/sys/class/thermal/thermal_zone*")):
        value = _number(_read(os.path.join(zone, "temp")), 1000)
        if value is not None and -40 < value < 200:  # some zones give nonsense while they sleep
            found.setdefault(_read(os.path.join(zone, "type")).strip() or os.path.basename(zone), value)
    if found:
        return found
    for path in sorted(glob.glob(f"{root}/sys/class/hwmon/hwmon*/temp*_input")):
        name = _read(os.path.join(os.path.dirname(path), "name")).strip()
        value = _number(_read(path), 1000)
        if name in {"coretemp", "k10temp", "cpu_thermal", "zenpower"} and value is not None:
            found.setdefault(f"{name} {os.path.basename(path)[:-6]}", value)
    return found


def _frequencies(root: str) -> List[float]:
    """MHz of each core, in their order; empty where no core tells."""
    paths = glob.glob(f"{root}{_CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq")
    paths.sort(key=lambda path: int(re.findall(r"/cpu(\d+)/", path)[-1]))
    values = [_number(_read(path), 1000) for path in paths]
    if not values:
        return [float(text) for text in re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", _read(root + "/proc/cpuinfo"), re.M)]
    return [value for value in values if value is not None]


def _throttle_count(root: str) -> Optional[int]:
    value = _number(_read(f"{root}{_CPUS}/cpu0/thermal_throttle/core_throttle_count"), 1)
    return None if value is None else int(value)


def _number(text: str, divisor: int) -> Optional[float]:
    """A whole number of the kernel, divided; None where the text is none."""
    text = text.strip()
    return int(text) / divisor if re.fullmatch(r"-?\d+", text) else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as stream:
        stream.write(text)

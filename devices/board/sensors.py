"""What the board feels while it works: temperature, frequency, throttling. What it does not tell is None, or absent."""

from __future__ import annotations

import time
from typing import Any, Dict

from . import hardware


def sample(root: str = "") -> Dict[str, Any]:
    """The state of the board right now, JSON values only.

    Args:
        root: Of the file system; tests put written trees there.

    Returns:
        `time_s` of the monotonic clock; `temperature_c`, the highest of `temperatures_c`, those of the processor by
        zone; `frequency_mhz` of each core that tells; `governor` of the first core; `throttle_count` since the start
        (Intel); `throttled`: what limits the board now, `throttled_before`: what did since its start (Raspberry Pi),
        None where the board has no such flags.
    """
    temperatures = hardware.processor_temperatures_c(root)
    flags = hardware.throttling(root)
    return {
        "time_s": time.monotonic(),
        "temperature_c": max(temperatures.values()) if temperatures else None,
        "temperatures_c": temperatures,
        "frequency_mhz": hardware.frequencies_mhz(root),
        "governor": hardware.governor(root),
        "throttle_count": hardware.throttle_count(root),
        "throttled": None if flags is None else flags["now"],
        "throttled_before": None if flags is None else flags["since_start"],
    }

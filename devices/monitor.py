"""What happens to a device while it is measured: its sensors, its governor, and what to warn of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from devices.errors import DeviceError
from devices.latency import percentile
from devices.records import DeviceSample
from devices.transports import Agent
from devices.wording import counted

_TIMEOUT_S = 60.0
BUSY_SHARE = 0.25
_SLOWDOWN_RATIO = 1.1
_LEAST_BLOCKS = 5
"""Quarters of fewer blocks say nothing about a trend."""


class Monitor:
    """Reads the sensors of a device from time to time, through an agent that holds no model.

    Args:
        observer: The agent.
        every_s: Seconds from one reading to the next.
        clock_s: What time is read from.
    """

    def __init__(self, observer: Agent, *, every_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._observer, self._every_s, self._clock_s = observer, every_s, clock_s
        self._begin = clock_s()
        self._next = self._begin
        self._gone = False
        self.samples: list[DeviceSample] = []
        self.governor: str | None = None

    def look(self, *, now: bool = False) -> DeviceSample | None:
        """Reads the sensors where it is time; None where it is not, or where the observer is gone."""
        moment = self._clock_s()
        if self._gone or (moment < self._next and not now):
            return None
        self._next = moment + self._every_s
        try:
            answer = self._observer.request("sample", timeout_s=_TIMEOUT_S)
        except DeviceError:  # the numbers are good without it; that it is gone is told at the end
            self._gone = True
            return None
        self.governor = answer["governor"]
        sample = DeviceSample(
            seconds=round(moment - self._begin, 3),
            temperature_c=answer["temperature_c"],
            frequency_mhz=tuple(answer["frequency_mhz"]),
            throttle_count=answer["throttle_count"],
            throttled=None if answer["throttled"] is None else tuple(answer["throttled"]),
        )
        self.samples.append(sample)
        return sample

    def warnings(self) -> list[str]:
        """What limited the device meanwhile, by its own flags."""
        limits = sorted({limit for sample in self.samples for limit in sample.throttled or ()})
        return [f"the device says that it was limited meanwhile: {', '.join(limits)}"] if limits else []


@contextlib.contextmanager
def governor(observer: Agent, name: str | None) -> Iterator[None]:
    """Sets the governor of a device, and puts the old one back at the end; None leaves it as it is.

    Raises:
        DeviceError: It can't be set, or can't be put back.
    """
    if name is None:
        yield
        return
    observer.request("set_governor", {"governor": name}, timeout_s=_TIMEOUT_S)
    try:
        yield
    finally:
        observer.request("restore_governor", timeout_s=_TIMEOUT_S)


def warnings_before(facts: dict[str, Any]) -> list[str]:
    """What makes the numbers worse than the device from the start."""
    warnings = []
    busy = facts["cpu_busy_share"]
    if busy is not None and busy > BUSY_SHARE:
        warnings.append(f"the device is busy: other programs use {busy:.0%} of its cores; latencies will be too long")
    if facts["governor"] == "powersave":
        warnings.append("the CPU's governor is 'powersave'; latencies will be too long")
    return warnings


def warnings_after(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What happened to the device meanwhile."""
    if not after:
        return ["the device did not tell its facts after the measurement"]
    warnings = []
    counts = before["throttle_count"], after["throttle_count"]
    if None not in counts and counts[1] > counts[0]:
        warnings.append(
            f"the CPU was slowed down for heat {counted(counts[1] - counts[0], 'time')} during the measurement"
        )
    return warnings


def slowdown(case_id: str, blocks_ns: list[list[int]]) -> list[str]:
    """A warning where the last quarter of a case's blocks is much slower than the first."""
    quarter = len(blocks_ns) // 4
    if quarter < _LEAST_BLOCKS:
        return []
    first, last = (
        percentile([latency for block in blocks for latency in block], 50)
        for blocks in (blocks_ns[:quarter], blocks_ns[-quarter:])
    )
    if last <= _SLOWDOWN_RATIO * first:
        return []
    message = (
        f"{case_id}: slowed down by {last / first - 1:.0%} meanwhile (heat, or another program); "
        "measure again on a cool and quiet device"
    )
    return [message]

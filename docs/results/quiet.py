"""Tells when a shared machine is quiet, for `cross_checks.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

Found = TypeVar("Found")

REPEATS = 25
LIMIT = 1.08
PATIENCE_S = 180.0
CALIBRATION_S = 10.0


class Quiet:
    """Has a piece of work that is always the same, and watches how long it takes.

    Load of this machine shows in `/proc/stat`; that of its neighbours on the same processor does not, and moves
    latencies by 20 to 40 % for seconds at a time. The work reads 8 MiB and computes in the caches, half and half. The
    machine is taken for quiet while that takes at most `LIMIT` of the shortest that was ever seen. What counts is told
    by this work alone, never by what was measured.

    This process and those that it starts keep to one core from then on: the work feels what they feel.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._large, self._small = random.random(1 << 21, np.float32), random.random(1 << 15, np.float32)
        self.set_aside = 0
        self.counted = 0
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        self._least_ns = float("inf")
        end = time.monotonic() + CALIBRATION_S
        while time.monotonic() < end:
            self.is_quiet()

    def is_quiet(self) -> bool:
        """Does the work, in some 15 ms."""
        times = []
        for _ in range(REPEATS):
            begin = time.perf_counter_ns()
            self._large.sum()
            np.sin(self._small)
            times.append(time.perf_counter_ns() - begin)
        found = float(np.median(times))
        self._least_ns = min(self._least_ns, found)
        return found <= LIMIT * self._least_ns

    def measured(self, measure: Callable[[], Found]) -> Found:
        """What it returns, from a time when the machine was quiet before and after; until then it is called again.

        Raises:
            TimeoutError: There was no such time.
        """
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if not self.is_quiet():
                continue
            value = measure()
            if self.is_quiet():
                self.counted += 1
                return value
            self.set_aside += 1
        raise TimeoutError(f"the machine was not quiet for {PATIENCE_S:g} s: measure again at another time")

"""From single latencies to the numbers that are reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

_RESAMPLES = 1000


class LatencySummary(BaseModel):
    """Latencies of one case in milliseconds.

    Attributes:
        p50: The median. This and the other percentiles are as of `percentile`.
        p90: The 90th percentile.
        p99: The 99th percentile; of less than 100 latencies it says little more than `max`.
        min: The shortest.
        max: The longest.
        mean: The average, which one stall can ruin.
        std: The standard deviation (of the population).
        count: How many latencies there are.
        p50_interval: A 95 % bootstrap interval of the median.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p90: float
    p99: float
    min: float
    max: float
    mean: float
    std: float
    count: int
    p50_interval: tuple[float, float]


def percentile(values: ArrayLike, percent: float) -> float:
    """The percentile with linear interpolation between the two nearest of the sorted values.

    The sorted values stand at 0 %, 100 / (n - 1) %, ... 100 %: definition 7 of Hyndman and Fan, "Sample quantiles in
    statistical packages" (1996), and the default of numpy.

    Raises:
        ValueError: There are no values, or `percent` is not between 0 and 100.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0:
        raise ValueError("a percentile of no values")
    return float(np.percentile(data, percent, method="linear"))


def summarize(blocks_ns: Sequence[Sequence[int]], *, seed: int) -> LatencySummary:
    """The summary of latencies that were taken in blocks.

    Args:
        blocks_ns: Latencies in nanoseconds, those taken in one go in one block.
        seed: For the bootstrap.
    """
    latencies_ms = np.concatenate([np.asarray(block, np.float64) for block in blocks_ns]) / 1e6
    p50, p90, p99 = (percentile(latencies_ms, percent) for percent in (50, 90, 99))
    return LatencySummary(
        p50=p50,
        p90=p90,
        p99=p99,
        min=float(latencies_ms.min()),
        max=float(latencies_ms.max()),
        mean=float(latencies_ms.mean()),
        std=float(latencies_ms.std()),
        count=latencies_ms.size,
        p50_interval=median_interval([np.asarray(block, np.float64) / 1e6 for block in blocks_ns], seed=seed),
    )


def median_interval(blocks: Sequence[ArrayLike], *, seed: int) -> tuple[float, float]:
    """A 95 % percentile-bootstrap interval of the median, drawing whole blocks.

    Latencies that follow each other share the state of the machine; drawing them one by one would make the
    interval far too narrow.

    Args:
        blocks: At least one block of at least one value.
        seed: Of the draws.
    """
    arrays = [np.asarray(block, np.float64) for block in blocks]
    values = np.concatenate(arrays)
    owners = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    generator = np.random.default_rng(seed)
    medians = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        times_drawn = np.bincount(generator.integers(0, len(arrays), len(arrays)), minlength=len(arrays))
        ends = np.cumsum(times_drawn[owners])
        middle = (ends[-1] - 1) / 2
        low, high = np.searchsorted(ends, (np.floor(middle), np.ceil(middle)), side="right")
        medians[index] = (values[low] + values[high]) / 2
    return percentile(medians, 2.5), percentile(medians, 97.5)

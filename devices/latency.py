"""From single latencies to the numbers that are reported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

PERCENTILES: Mapping[str, float] = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}
"""By the name of the field, in percent."""

_RESAMPLES = 1000
_LEAST_RESAMPLES = 200
_RESAMPLED_VALUES = 40_000_000
"""With very many latencies fewer draws are made: so many values in all."""

Interval = tuple[float, float]


class LatencySummary(BaseModel):
    """Latencies of one case in milliseconds.

    Attributes:
        p50: The median. This and the other percentiles are as of `percentile`.
        p90: The 90th percentile. This and those above are None where there are too few latencies, see
            `count_for`; results of older versions have p90 and p99 of any count.
        p99: The 99th percentile.
        min: The shortest.
        max: The longest.
        mean: The average, which one stall can ruin.
        std: The standard deviation (of the population).
        count: How many latencies there are.
        p50_interval: A 95 % bootstrap interval of the median; those of the other percentiles are alike.
        p90_interval: None where there is no percentile, and in results of older versions.
        p95: The 95th percentile.
        p95_interval: As of p90.
        p99_interval: As of p90.
        p99_9: The 99.9th percentile.
        p99_9_interval: As of p90.
        missing: By name of the percentile, why it is None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p90: float | None
    p99: float | None
    min: float
    max: float
    mean: float
    std: float
    count: int
    p50_interval: Interval
    p90_interval: Interval | None = None
    p95: float | None = None
    p95_interval: Interval | None = None
    p99_interval: Interval | None = None
    p99_9: float | None = None
    p99_9_interval: Interval | None = None
    missing: dict[str, str] = {}


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


def count_for(percent: float) -> int:
    """How many latencies a percentile above the median needs: so many that their longest bounds it from above.

    All n of them lie below the percentile q with the probability q^n; where that is more than 2.5 %, no 95 % interval
    has an upper end within what was measured (Conover, "Practical Nonparametric Statistics", 3.2). That is 6 for the
    median, 36 for p90, 72 for p95, 368 for p99 and 3,688 for p99.9.
    """
    return math.ceil(math.log(0.025) / math.log(percent / 100))


def summarize(blocks_ns: Sequence[Sequence[int]], *, seed: int) -> LatencySummary:
    """The summary of latencies that were taken in blocks.

    Args:
        blocks_ns: Latencies in nanoseconds, those taken in one go in one block, in the order of time.
        seed: For the bootstrap.
    """
    blocks = [np.asarray(block, np.float64) / 1e6 for block in blocks_ns]
    latencies_ms = np.concatenate(blocks)
    carried = {name: percent for name, percent in PERCENTILES.items() if latencies_ms.size >= count_for(percent)}
    asked = {"p50": PERCENTILES["p50"], **carried}
    intervals = percentile_intervals(blocks, list(asked.values()), seed=seed)
    found: dict[str, float | Interval | None] = {"p90": None, "p99": None}
    for (name, percent), interval in zip(asked.items(), intervals, strict=True):
        found[name] = percentile(latencies_ms, percent)
        found[f"{name}_interval"] = interval
    return LatencySummary.model_validate(
        {
            **found,
            "min": float(latencies_ms.min()),
            "max": float(latencies_ms.max()),
            "mean": float(latencies_ms.mean()),
            "std": float(latencies_ms.std()),
            "count": latencies_ms.size,
            "missing": {
                name: f"{latencies_ms.size} latencies; {count_for(percent)} are needed"
                for name, percent in PERCENTILES.items()
                if name not in asked
            },
        }
    )


def median_interval(blocks: Sequence[ArrayLike], *, seed: int) -> Interval:
    """A 95 % interval of the median, see `percentile_intervals`."""
    return percentile_intervals(blocks, [50.0], seed=seed)[0]


def percentile_intervals(
    blocks: Sequence[ArrayLike], percents: Sequence[float], *, seed: int, resamples: int = _RESAMPLES
) -> list[Interval]:
    """95 % percentile-bootstrap intervals, drawing whole blocks, and where the machine drifts, runs of them.

    Latencies that follow each other share the state of the machine; drawing them one by one would make the
    interval far too narrow. Where blocks that follow each other share it too, runs of as many as do are drawn
    (Kuensch, "The jackknife and the bootstrap for general stationary observations", 1989), around the end.

    Args:
        blocks: At least one block of at least one value, in the order of time.
        percents: Which.
        seed: Of the draws.
        resamples: How many draws, at most.
    """
    arrays = [np.asarray(block, np.float64) for block in blocks]
    values = np.concatenate(arrays)
    owners = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    run = run_length([float(np.median(array)) for array in arrays])
    generator = np.random.default_rng(seed)
    resamples = min(resamples, max(_LEAST_RESAMPLES, _RESAMPLED_VALUES // len(values)))
    found = np.empty((resamples, len(percents)))
    for index in range(resamples):
        times_drawn = np.bincount(_draw_runs(generator, len(arrays), run), minlength=len(arrays))
        ends = np.cumsum(times_drawn[owners])
        for column, percent in enumerate(percents):
            position = percent / 100 * (ends[-1] - 1)
            low, high = np.searchsorted(ends, (np.floor(position), np.ceil(position)), side="right")
            found[index, column] = values[low] + (position - np.floor(position)) * (values[high] - values[low])
    return [(percentile(column, 2.5), percentile(column, 97.5)) for column in found.T]


def _draw_runs(generator: np.random.Generator, count: int, run: int) -> NDArray[np.int64]:
    """As many indices as there are, in runs that begin anywhere and go on at the start after the end."""
    begins = generator.integers(0, count, -(-count // run))
    return ((begins[:, np.newaxis] + np.arange(run)) % count).reshape(-1)[:count]


def run_length(levels: Sequence[float]) -> int:
    """How many neighbours share the state of the machine: twice their excess autocorrelation time, plus one.

    The autocorrelations of the ranks are summed up in pairs for as long as these are positive (Geyer, "Practical Markov
    chain Monte Carlo", 1992); ranks, so that one stall does not hide a drift.

    Args:
        levels: Of each block, in the order of time.

    Returns:
        1 where they are independent; at most a fifth of them.
    """
    count = len(levels)
    if count < 10:
        return 1
    ranks = np.argsort(np.argsort(np.asarray(levels, np.float64), kind="stable"), kind="stable").astype(np.float64)
    ranks -= ranks.mean()
    variance = float(ranks @ ranks)
    excess = 0.0
    for lag in range(1, count // 2, 2):
        pair = float(ranks[lag:] @ ranks[:-lag] + ranks[lag + 1 :] @ ranks[: -lag - 1]) / variance
        if pair <= 2 / math.sqrt(count):  # within what independent levels give by chance
            break
        excess += 2 * pair
    return min(1 + math.ceil(excess), count // 5)


def relative_half_width(interval: Interval | None) -> float:
    """Half the width of an interval to its middle; infinite where there is none."""
    if interval is None or sum(interval) <= 0:
        return math.inf
    return (interval[1] - interval[0]) / (interval[0] + interval[1])

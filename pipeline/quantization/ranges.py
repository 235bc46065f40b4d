"""Ranges of activations: what a float network's tensors take on calibration samples, and where an 8-bit grid is laid.

A tensor is observed twice: once for its bounds in each sample, once for a histogram between the overall bounds. All
methods then work on the observation alone, so that they can be compared without running the network again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, StageError

RangeMethod = Literal["min_max", "moving_average", "samples", "percentile", "entropy", "mse"]
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)

Range = tuple[float, float]
"""Lowest and highest value that the integers stand for; zero lies within."""

Activations = Callable[[], Iterator[Mapping[str, npt.NDArray[Any]]]]
"""Runs the network over the calibration samples anew with every call, and yields the tensors of each by name."""

BINS = 2048
LEVELS = 256
PERCENTILE = 99.99
SAMPLES_PERCENTILE = 95.0
_MOST_VALUES = 65_536
"""Of one tensor and sample that go into the histogram; of larger tensors every n-th value does. Bounds are exact."""

_FRACTIONS = np.linspace(0.2, 1.0, 81)
"""Of the observed bounds that `entropy` and `mse` try."""


@dataclass(frozen=True)
class Observation:
    """What a tensor took on.

    Attributes:
        lows: Lowest value in each sample.
        highs: Highest value in each sample.
        counts: (BINS,) how many of the values fell between `low` and `high`, in bins of equal width.
    """

    lows: npt.NDArray[np.float64]
    highs: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def low(self) -> float:
        """The lowest value of all samples."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """The highest value of all samples."""
        return float(self.highs.max())

    def centers(self) -> npt.NDArray[np.float64]:
        """Returns the middle of each bin."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        middle: npt.NDArray[np.float64] = (edges[:-1] + edges[1:]) / 2
        return middle


def observe(activations: Activations) -> dict[str, Observation]:
    """Runs the network twice over the samples and returns what each tensor took on.

    Raises:
        DataError: There are no samples.
        StageError: A tensor is NaN or infinite.
    """
    bounds: dict[str, list[tuple[float, float]]] = {}
    for number, tensors in enumerate(activations()):
        for name, values in tensors.items():
            low, high = float(values.min()), float(values.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise StageError(
                    f"The tensor {name} is NaN or infinite in calibration sample {number}: the network overflows. "
                    f"Train it anew with a lower rate, or leave int8 out of export.precisions."
                )
            bounds.setdefault(name, []).append((low, high))
    if not bounds:
        raise DataError("There are no calibration samples to take ranges from: give at least one.")
    found = {name: np.asarray(pairs, np.float64) for name, pairs in bounds.items()}
    counts = {name: np.zeros(BINS, np.int64) for name in found}
    for tensors in activations():
        for name, values in tensors.items():
            counts[name] += _histogram(values, float(found[name][:, 0].min()), float(found[name][:, 1].max()))
    return {name: Observation(pairs[:, 0], pairs[:, 1], counts[name]) for name, pairs in found.items()}


def estimate(observation: Observation, method: RangeMethod) -> Range:
    """Returns the range of a tensor.

    | method | range |
    |---|---|
    | `min_max` | lowest and highest value of all samples |
    | `moving_average` | means over the samples of each one's lowest and highest value (Jacob et al. 2018, section 3.1, with equal weights, so that the order of the samples is of no weight) |
    | `samples` | the 95th percentile over the samples of each one's highest value, and the 5th of its lowest: what most samples stay within (ours) |
    | `percentile` | the middle 99.99 % of the values (Wu et al. 2020, section 3.1) |
    | `entropy` | least Kullback-Leibler divergence of the quantized from the float histogram (Migacz 2017) |
    | `mse` | least squared error of rounding and clipping (Nagel et al. 2021, section 2.4) |

    Args:
        observation: Of the tensor.
        method: How.

    Returns:
        Lowest and highest value, zero among them; they differ.
    """  # noqa: E501 (a table)
    low, high = _METHODS[method](observation)
    # Float rounding must not lead beyond what was seen.
    low, high = max(low, observation.low), min(high, observation.high)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high > low else (0.0, 1.0)


def quantized(values: npt.NDArray[np.float64], bounds: Range) -> npt.NDArray[np.float64]:
    """Returns values rounded to the 256 levels of a range, whose zero is exact.

    Args:
        values: Of any shape.
        bounds: Lowest and highest value; zero lies within.
    """
    low, high = bounds
    scale = (high - low) / (LEVELS - 1)
    zero = round(-low / scale)
    steps = np.clip(np.rint(values / scale) + zero, 0, LEVELS - 1) - zero
    rounded: npt.NDArray[np.float64] = steps * scale
    return rounded


def squared_error(observation: Observation, bounds: Range) -> float:
    """Returns the mean squared difference that a range makes to the observed values."""
    centers = observation.centers()
    errors = (centers - quantized(centers, bounds)) ** 2
    return float((errors * observation.counts).sum() / observation.counts.sum())


def _histogram(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.int64]:
    flat = np.asarray(values).reshape(-1)
    flat = flat[:: -(-flat.size // _MOST_VALUES)].astype(np.float64)
    if high <= low:
        counts = np.zeros(BINS, np.int64)
        counts[BINS // 2] = flat.size
        return counts
    places = np.minimum(((flat - low) * (BINS / (high - low))).astype(np.int64), BINS - 1)
    return np.bincount(places, minlength=BINS).astype(np.int64)


def _min_max(observation: Observation) -> Range:
    return observation.low, observation.high


def _moving_average(observation: Observation) -> Range:
    return float(observation.lows.mean()), float(observation.highs.mean())


def _samples(observation: Observation) -> Range:
    """Returns what most samples stay within.

    A sample that drives a network far out does so with many values in every layer. Percentiles of values don't leave
    it out, and the least squared error takes its side; among samples it is one.
    """
    outside = 100 - SAMPLES_PERCENTILE
    return float(np.percentile(observation.lows, outside)), float(np.percentile(observation.highs, 100 - outside))


def _percentile(observation: Observation) -> Range:
    outside = (1 - PERCENTILE / 100) / 2
    cumulated = np.concatenate([[0.0], np.cumsum(observation.counts) / observation.counts.sum()])
    edges = np.linspace(observation.low, observation.high, BINS + 1)
    # Empty bins make steps; the first edge that reaches the share, seen from the middle, bounds the values.
    low = edges[np.searchsorted(cumulated, outside, side="right") - 1]
    high = edges[np.searchsorted(cumulated, 1 - outside, side="left")]
    return float(low), float(high)


def _scaled(observation: Observation) -> list[Range]:
    low, high = min(observation.low, 0.0), max(observation.high, 0.0)
    return [(low * fraction, high * fraction) for fraction in _FRACTIONS]


def _entropy(observation: Observation) -> Range:
    if observation.high <= observation.low:
        return _min_max(observation)
    counts = _without_zeros(observation)
    if not counts.any():
        return _min_max(observation)
    divergences = [_divergence(observation.centers(), counts, bounds) for bounds in _scaled(observation)]
    return _scaled(observation)[int(np.argmin(divergences))]


def _without_zeros(observation: Observation) -> npt.NDArray[np.float64]:
    """Returns the counts without the zeros that a rectifier gives.

    The grid has an exact zero. Counted, half of all values in one bin would make every grid bad whose levels are wider
    than that bin, and so any range but a tiny one.
    """
    counts = observation.counts.astype(np.float64)
    if observation.low <= 0 <= observation.high:
        place = min(int((0 - observation.low) * BINS / (observation.high - observation.low)), BINS - 1)
        beside = [counts[other] for other in (place - 1, place + 1) if 0 <= other < BINS]
        counts[place] = min(counts[place], sum(beside) / len(beside))
    return counts


def _divergence(centers: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], bounds: Range) -> float:
    """Returns the Kullback-Leibler divergence of the histogram after quantization from the one before.

    Before: bins beyond the range are counted in the outermost ones within it. After: the counts within each level are
    spread evenly over those of its bins that are not empty, as in Migacz 2017; what was clipped is missing there, so
    that clipping costs.
    """
    inside = (centers >= bounds[0]) & (centers <= bounds[1])
    if not inside.any() or not counts[inside].any():
        return float("inf")
    first, last = np.flatnonzero(inside)[[0, -1]]
    before = counts[first : last + 1].copy()
    kept = before.copy()
    before[0] += counts[:first].sum()
    before[-1] += counts[last + 1 :].sum()
    scale = (bounds[1] - bounds[0]) / (LEVELS - 1)
    levels = np.rint((centers[first : last + 1] - bounds[0]) / scale).astype(np.int64)
    filled = before > 0
    sums = np.bincount(levels, weights=kept, minlength=LEVELS)
    sizes = np.bincount(levels, weights=filled, minlength=LEVELS)
    after = np.where(filled, (sums / np.maximum(sizes, 1))[levels], 0.0)
    if not after.any():
        return float("inf")
    before, after = before / before.sum(), after / after.sum()
    floor = 1e-12  # bins that only hold what was clipped
    return float((before[filled] * np.log(before[filled] / np.maximum(after[filled], floor))).sum())


def _mse(observation: Observation) -> Range:
    """Returns the range of least squared error: first both ends shrink together, then each by itself, twice."""
    if observation.high <= observation.low:
        return _min_max(observation)
    best = min(_scaled(observation), key=lambda bounds: squared_error(observation, bounds))
    low, high = min(observation.low, 0.0), max(observation.high, 0.0)
    for _ in range(2):
        best = min(
            ((low * fraction, best[1]) for fraction in _FRACTIONS if low * fraction < best[1]),
            key=lambda bounds: squared_error(observation, bounds),
            default=best,
        )
        best = min(
            ((best[0], high * fraction) for fraction in _FRACTIONS if high * fraction > best[0]),
            key=lambda bounds: squared_error(observation, bounds),
            default=best,
        )
    return best


_METHODS: dict[RangeMethod, Callable[[Observation], Range]] = {
    "min_max": _min_max,
    "moving_average": _moving_average,
    "samples": _samples,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.latency import (
    count_for,
    median_interval,
    percentile,
    percentile_intervals,
    relative_half_width,
    run_length,
    summarize,
)

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)
PERCENT = st.floats(0, 100)


@settings(deadline=None)
@given(VALUES, PERCENT)
def test_percentile_interpolates_between_sorted_values(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    position = percent / 100 * (len(values) - 1)
    below = min(int(position), len(values) - 2) if len(values) > 1 else 0
    above = min(below + 1, len(values) - 1)
    expected = ordered[below] + (ordered[above] - ordered[below]) * (position - below)
    assert percentile(values, percent) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(VALUES, PERCENT, PERCENT)
def test_percentile_grows_and_stays_within_the_values(values: list[float], one: float, other: float) -> None:
    low, high = sorted((percentile(values, min(one, other)), percentile(values, max(one, other))))
    assert min(values) <= low * (1 + 1e-12)
    assert high <= max(values) * (1 + 1e-12)
    assert percentile(values, min(one, other)) <= percentile(values, max(one, other)) * (1 + 1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60), st.randoms(use_true_random=False))
def test_percentile_does_not_depend_on_order_and_scales(values: list[float], order: object) -> None:
    shuffled = list(values)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert percentile(shuffled, 90) == percentile(values, 90)
    assert percentile([4 * value for value in values], 90) == pytest.approx(4 * percentile(values, 90))


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (50, 2.5), (90, 3.7), (100, 4.0)], ids=["p0", "p50", "p90", "p100"]
)
def test_percentile_of_four_values(percent: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == pytest.approx(expected)


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_summary_is_in_milliseconds() -> None:
    summary = summarize([[1_000_000, 2_000_000], [3_000_000, 4_000_000]], seed=0)
    assert (summary.min, summary.p50, summary.max, summary.mean, summary.count) == (1.0, 2.5, 4.0, 2.5, 4)
    assert summary.std == pytest.approx(np.std([1, 2, 3, 4]))
    assert summary.p50_interval[0] <= summary.p50 <= summary.p50_interval[1]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.floats(0.1, 100), min_size=1, max_size=8), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_interval_lies_within_the_values_and_repeats(blocks: list[list[float]], seed: int) -> None:
    low, high = median_interval(blocks, seed=seed)
    values = [value for block in blocks for value in block]
    assert min(values) * (1 - 1e-12) <= low <= high <= max(values) * (1 + 1e-12)
    assert median_interval(blocks, seed=seed) == (low, high)


def test_weighted_median_of_the_bootstrap_is_the_median_of_the_drawn_values() -> None:
    # Two blocks: of every draw of two, the median is known, so the ends of the interval are.
    assert median_interval([[1.0, 2.0, 9.0], [5.0]], seed=0) == (2.0, 5.0)


def test_interval_covers_the_true_median_where_blocks_share_a_level() -> None:
    generator = np.random.default_rng(0)
    covered = narrow = 0
    for seed in range(60):
        levels = generator.normal(10, 1, (40, 1))
        blocks = levels + generator.normal(0, 0.1, (40, 10))
        low, high = median_interval(list(blocks), seed=seed)
        covered += low <= 10 <= high
        low, high = median_interval(list(blocks.reshape(-1, 1)), seed=seed)
        narrow += low <= 10 <= high
    assert covered >= 52
    assert narrow < covered  # drawing the latencies one by one would promise too much


@pytest.mark.parametrize(("percent", "count"), [(50, 6), (90, 36), (95, 72), (99, 368), (99.9, 3688)], ids=str)
def test_how_many_latencies_a_percentile_needs(percent: float, count: int) -> None:
    assert count_for(percent) == count
    assert (percent / 100) ** count <= 0.025 < (percent / 100) ** (count - 1)


def drifting(generator: np.random.Generator, count: int, memory: float) -> np.ndarray:
    """Blocks of ten latencies whose level wanders about 10, each remembering a share of the one before."""
    levels, level = [], generator.normal(0, 1)
    for _ in range(count):
        level = memory * level + generator.normal(0, (1 - memory**2) ** 0.5)
        levels.append(10 + level)
    return np.asarray(levels)[:, np.newaxis] + generator.normal(0, 0.1, (count, 10))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 100), max_size=60))
def test_runs_are_at_least_one_and_at_most_a_fifth(levels: list[float]) -> None:
    run = run_length(levels)
    assert 1 <= run <= max(1, len(levels) // 5)
    assert run_length([3 * level + 1 for level in levels]) >= 1


def test_runs_are_longer_where_blocks_share_the_state_of_the_machine() -> None:
    generator = np.random.default_rng(0)
    runs = {
        memory: [run_length([float(np.median(block)) for block in drifting(generator, 200, memory)]) for _ in range(20)]
        for memory in (0.0, 0.9)
    }
    assert np.median(runs[0.0]) == 1
    assert np.median(runs[0.9]) > 8  # the time after which 0.9^n has fallen to a fraction


def test_intervals_are_wider_under_a_load_that_drifts() -> None:
    generator = np.random.default_rng(1)
    covered = narrow = 0
    for seed in range(40):
        blocks = drifting(generator, 400, 0.9)
        low, high = percentile_intervals(list(blocks), [50.0], seed=seed, resamples=200)[0]
        covered += low <= 10 <= high
        generator.shuffle(blocks)  # hides the order, and with it the drift
        low, high = percentile_intervals(list(blocks), [50.0], seed=seed, resamples=200)[0]
        narrow += low <= 10 <= high
    assert covered >= 28
    assert narrow <= covered - 10


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.floats(0.1, 100), min_size=1, max_size=8), min_size=1, max_size=12))
def test_intervals_of_higher_percentiles_lie_higher(blocks: list[list[float]]) -> None:
    found = percentile_intervals(blocks, [50.0, 90.0, 99.0], seed=0, resamples=50)
    for (low, high), (next_low, next_high) in itertools.pairwise(found):
        assert low <= next_low * (1 + 1e-9)
        assert high <= next_high * (1 + 1e-9)


def test_relative_half_width() -> None:
    assert relative_half_width((0.99, 1.01)) == pytest.approx(0.01)
    assert relative_half_width(None) == math.inf
    assert relative_half_width((0.0, 0.0)) == math.inf

"""The verdict on two models: exact intervals, and simulated measurements under a load that drifts."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.comparison import (
    LEAST_SESSIONS,
    compare,
    compare_recorded,
    rank_sum_interval,
    session_ratio,
    signed_rank_interval,
)
from devices.latency import relative_half_width

VALUES = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


class Load(NamedTuple):
    """What disturbs a simulated measurement.

    Attributes:
        drift: Standard deviation of the steps of a slow wave of load, in logarithms.
        stalls: Share of blocks that another process holds up.
        process: Standard deviation of what a process keeps from its start, in logarithms.
        jitter: Of single blocks.
    """

    id: str
    drift: float
    stalls: float
    process: float
    jitter: float


LOADS = [
    Load("quiet", drift=0.0, stalls=0.0, process=0.003, jitter=0.01),
    Load("drifting", drift=0.1, stalls=0.05, process=0.008, jitter=0.02),
    Load("another process", drift=0.05, stalls=0.4, process=0.008, jitter=0.03),
]


def simulate(load: Load, ratio: float, generator: np.random.Generator, *, sessions: int = 10) -> list[float]:
    """The ratios of the sessions of two cases, 30 rounds each, in an order that is drawn anew in each round."""
    found = []
    level = 0.0
    for _ in range(sessions):
        luck = {name: generator.normal(0, load.process) for name in "ab"}
        rounds = []
        for _ in range(30):
            blocks: dict[str, list[int]] = {}
            for name in generator.permutation(["a", "b"]):
                level = 0.95 * level + generator.normal(0, load.drift)
                stall = generator.exponential(0.8) if generator.random() < load.stalls else 0.0
                logarithm = math.log(ratio) * (name == "b") + luck[name] + level + stall
                base = 2e6 * math.exp(logarithm + generator.normal(0, load.jitter))
                blocks[name] = [int(base * math.exp(each)) for each in generator.normal(0, 0.02, 5)]
            rounds.append(blocks)
        value = session_ratio(rounds, "b", "a")
        assert value is not None
        found.append(value)
    return found


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.id)
def test_copies_of_one_file_are_told_apart_in_at_most_5_of_100_trials(load: Load) -> None:
    generator = np.random.default_rng(1)
    verdicts = [compare("b", "a", simulate(load, 1.0, generator)).verdict for _ in range(100)]
    assert sum(verdict != "can't tell" for verdict in verdicts) <= 5


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.id)
def test_adding_sessions_until_the_ratio_is_precise_invents_no_differences(load: Load) -> None:
    """The rule of `benchmark_and_compare`: looking at the interval's width after each session."""
    generator, wrong = np.random.default_rng(4), 0
    for _ in range(100):
        ratios = simulate(load, 1.0, generator, sessions=24)
        looks = (compare("b", "a", ratios[:number]) for number in range(10, 25))
        found = next((look for look in looks if relative_half_width(look.interval) <= 0.01), compare("b", "a", ratios))
        wrong += found.verdict != "can't tell"
    assert wrong <= 5


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.id)
@pytest.mark.parametrize(("ratio", "word"), [(1.05, "slower"), (1 / 1.05, "faster")])
def test_a_difference_of_5_percent_is_found(load: Load, ratio: float, word: str) -> None:
    generator = np.random.default_rng(2)
    found = [compare("b", "a", simulate(load, ratio, generator, sessions=20)) for _ in range(20)]
    assert sum(each.verdict == word for each in found) >= 19
    assert float(np.median([each.ratio for each in found])) == pytest.approx(ratio, rel=0.01)


def test_rounds_alone_would_invent_differences() -> None:
    """Within one session the rounds all agree on what luck the two processes had; that is no difference of files."""
    load, generator = Load("luck", drift=0.0, stalls=0.0, process=0.01, jitter=0.01), np.random.default_rng(3)
    wrong = 0
    for _ in range(40):
        luck = generator.normal(0, load.process * math.sqrt(2))
        rounds = luck + generator.normal(0, load.jitter, 100)
        _, interval = signed_rank_interval(rounds, confidence=0.99)
        assert interval is not None
        wrong += not interval[0] <= 0 <= interval[1]
    assert wrong > 20


def test_a_session_takes_rounds_that_have_both() -> None:
    rounds = [{"a": [10, 11, 12], "b": [22]}, {"a": [10]}, {"b": [10]}, {"a": [10], "b": [20]}, {"a": [5], "b": [15]}]
    assert session_ratio(rounds, "b", "a") == pytest.approx(2)
    assert session_ratio(rounds[1:3], "b", "a") is None


def test_a_load_that_hits_both_blocks_of_a_round_cancels() -> None:
    rounds = [{"a": [100 * level], "b": [105 * level]} for level in (1, 7, 3, 50, 2)]
    assert session_ratio(rounds, "b", "a") == pytest.approx(1.05)


def test_too_few_sessions_give_no_verdict() -> None:
    few = compare("b", "a", [2.0] * (LEAST_SESSIONS - 1))
    assert (few.verdict, few.interval) == ("can't tell", None)
    assert few.reason == "7 sessions are too few for an interval of 99%"
    assert few.sentence() == "b beside a: can't tell: 7 sessions are too few for an interval of 99%"
    enough = compare("b", "a", [2.0] * LEAST_SESSIONS)
    assert enough.verdict == "slower"
    assert enough.sentence() == "b is slower than a: 2.000 times as long (99% interval 2.000 to 2.000, 8 sessions)"
    assert compare("b", "a", [0.5] * LEAST_SESSIONS).verdict == "faster"


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 2), min_size=8, max_size=16))
def test_swapping_the_two_inverts_the_ratio(ratios: list[float]) -> None:
    one = compare("b", "a", ratios)
    other = compare("a", "b", [1 / ratio for ratio in ratios])
    assert one.interval is not None
    assert other.interval is not None
    assert one.ratio * other.ratio == pytest.approx(1)
    assert one.interval[0] * other.interval[1] == pytest.approx(1)
    assert one.interval[0] <= one.ratio * (1 + 1e-12)
    assert one.ratio <= one.interval[1] * (1 + 1e-12)


@pytest.mark.parametrize("size", [6, 8])
def test_the_signed_rank_interval_keeps_its_confidence_over_all_signs(size: int) -> None:
    """Of every pattern of signs, all equally likely where nothing differs, at most 5 % exclude zero."""
    magnitudes = np.random.default_rng(size).uniform(1, 2, size)
    excluded = 0
    for signs in itertools.product((-1, 1), repeat=size):
        _, interval = signed_rank_interval(magnitudes * signs, confidence=0.95)
        assert interval is not None
        excluded += not interval[0] <= 0 <= interval[1]
    assert 0 < excluded / 2**size <= 0.05


def test_the_rank_sum_interval_keeps_its_confidence_over_all_orders() -> None:
    values = np.random.default_rng(0).normal(size=10)
    excluded = total = 0
    for chosen in itertools.combinations(range(10), 5):
        rest = [index for index in range(10) if index not in chosen]
        _, interval = rank_sum_interval(values[list(chosen)], values[rest], confidence=0.95)
        assert interval is not None
        excluded += not interval[0] <= 0 <= interval[1]
        total += 1
    assert 0 < excluded / total <= 0.05


@settings(deadline=None)
@given(VALUES, st.floats(-5, 5))
def test_intervals_move_with_the_values(values: list[float], shift: float) -> None:
    center, interval = signed_rank_interval(values, confidence=0.9)
    moved, moved_interval = signed_rank_interval([value + shift for value in values], confidence=0.9)
    assert moved == pytest.approx(center + shift, abs=1e-9)
    assert (interval is None) == (moved_interval is None) == (len(values) < 5)
    if interval and moved_interval:
        assert moved_interval == pytest.approx((interval[0] + shift, interval[1] + shift), abs=1e-9)


def test_recorded_results_need_sessions_on_both_sides() -> None:
    old = [2.00, 2.02, 1.99, 2.01, 2.03, 1.98, 2.00, 2.02]
    slower = compare_recorded("m", "m before", [1.05 * value for value in old], old, allowance=0.03)
    assert slower.verdict == "slower"
    assert slower.ratio == pytest.approx(1.05, rel=0.005)
    assert compare_recorded("m", "m before", old[::-1], old, allowance=0.0).verdict == "can't tell"
    assert compare_recorded("m", "m", [1.05 * value for value in old], old, allowance=0.1).verdict == "can't tell"
    alone = compare_recorded("m", "m before", [4.0], old, allowance=0.0)
    assert alone.verdict == "can't tell"
    assert "measure with --sessions 8" in str(alone.reason)

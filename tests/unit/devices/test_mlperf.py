"""MLPerf's rules without LoadGen: early stopping, the agent's loop, what a try deviates in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.board.mlperf import early_stopping, few_probability, least_count, overlatency_count, run_scenario
from devices.measurement import BenchmarkSettings, Case
from devices.mlperf import MlperfSettings, measure_by_rules, why_not_loadgen
from devices.profile import load_profile


@given(count=st.integers(1, 400), most=st.integers(0, 400), percentile=st.sampled_from([0.5, 0.9, 0.99]))
def test_the_probability_is_the_binomial_sum(count: int, most: int, percentile: float) -> None:
    tail = 1 - percentile
    exact = math.fsum(
        math.comb(count, index) * tail**index * percentile ** (count - index) for index in range(min(most, count) + 1)
    )
    assert few_probability(count, most, percentile) == pytest.approx(exact, rel=1e-9, abs=1e-80)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(64, 1_000_000), percentile=st.sampled_from([0.9, 0.99]))
def test_as_many_queries_are_discarded_as_the_confidence_allows(count: int, percentile: float) -> None:
    found = overlatency_count(count, percentile)
    if found is None:
        assert count < least_count(percentile)
        return
    assert few_probability(count, found, percentile) < 0.01 <= few_probability(count, found + 1, percentile)
    spread = math.sqrt(count * percentile * (1 - percentile))
    assert count * (1 - percentile) - 3 * spread - 2 < found < count * (1 - percentile)


class Estimate(NamedTuple):
    """What MLPerf's own table says ("Early Stopping Criterion"; LoadGen prints the same)."""

    count: int
    percentile: float
    discarded: int | None


ESTIMATES = [
    Estimate(63, 0.9, None), Estimate(64, 0.9, 0), Estimate(636, 0.9, 45), Estimate(661, 0.99, None),
    Estimate(662, 0.99, 0),
]  # fmt: skip


@pytest.mark.parametrize("known", ESTIMATES, ids=str)
def test_estimates(known: Estimate) -> None:
    latencies = list(range(known.count))
    np.random.default_rng(0).shuffle(latencies)
    found = early_stopping(latencies, known.percentile)
    assert found["discarded"] == known.discarded
    assert found["estimate_ns"] == (None if known.discarded is None else known.count - 1 - known.discarded)
    assert found["needed"] == (64 if known.percentile == 0.9 else 662)


class Clock:
    """Every inference takes what it is told; reading the time takes none."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.asked: list[int] = []

    def read(self) -> int:
        return self.now_ns

    def infer(self, index: int) -> None:
        self.asked.append(index)
        self.now_ns += 2_000_000 if index % 10 else 5_000_000


def run(clock: Clock, scenario: str, *, seconds: float, count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    params = {"scenario": scenario, "min_duration_s": seconds, "min_query_count": count, "expected_latency_ns": 2e6}
    return run_scenario(params, clock.infer, clock.read, events.append), events


def test_the_single_stream_ends_with_count_and_time() -> None:
    by_time, events = run(Clock(), "single_stream", seconds=2.0, count=10)
    assert by_time["query_count"] == 871, "the last one is issued once two seconds are over"
    assert by_time["duration_s"] >= 2.0
    assert by_time["early_stopping"][0]["discarded"] == 65
    assert (by_time["early_stopping"][0]["estimate_ns"], by_time["max_ns"]) == (5_000_000, 5_000_000)
    assert by_time["percentiles_ns"]["50.00"] == 2_000_000
    assert by_time["samples_per_s"] == pytest.approx(1000 / 2.3, rel=0.01)
    assert (by_time["valid"], len(events)) == (True, 4)
    by_count, _ = run(Clock(), "single_stream", seconds=0.0, count=500)
    assert by_count["query_count"] == 500
    few, _ = run(Clock(), "single_stream", seconds=0.0, count=20)
    assert (few["valid"], few["reasons"]) == (False, ["20 queries, but early stopping needs 64"])
    assert few["early_stopping"][0]["estimate_ns"] is None


def test_offline_is_one_query_of_many_samples() -> None:
    clock = Clock()
    found, _ = run(clock, "offline", seconds=2.0, count=100)
    assert (found["query_count"], found["sample_count"]) == (1, 1100)
    assert clock.asked == list(range(1100))
    assert found["max_ns"] == found["duration_s"] * 1e9 == clock.now_ns
    assert found["samples_per_s"] == pytest.approx(1100 / found["duration_s"])
    assert found["valid"]

    class Fast(Clock):
        def infer(self, index: int) -> None:
            self.now_ns += 1_000_000 + 0 * index

    short, _ = run(Fast(), "offline", seconds=2.0, count=100)
    assert short["reasons"] == ["it took 1.1 s, less than the minimum duration"]


def test_what_a_try_deviates_in() -> None:
    assert MlperfSettings().deviations("offline") == ()
    assert MlperfSettings(min_duration_s=600, min_count=24_576).deviations("single_stream") == ()
    short = MlperfSettings(min_duration_s=10, min_count=1000)
    assert short.deviations("single_stream") == ("10 s instead of 600 s",)
    assert short.deviations("offline") == ("10 s instead of 600 s", "1,000 instead of 24,576 samples")


def test_boards_apply_the_rules_themselves(tmp_path: Path) -> None:
    with (tmp_path / "m.fake").open("wb") as stream:
        np.savez(stream, weights=np.zeros((12, 3), np.float32), bias=np.zeros(3, np.float32), behaviour="ok")
    cases = [Case(id="m", runtime="fake", path=str(tmp_path / "m.fake"))]
    cases.append(Case(id="gone", runtime="fake", path=str(tmp_path / "gone.fake")))
    messages: list[dict[str, Any]] = []
    found = measure_by_rules(
        load_profile("fake"), cases, MlperfSettings(min_duration_s=3, min_count=100),
        BenchmarkSettings(warm_up_time_s=0), log_dir=tmp_path / "logs", tell=messages.append,
    )  # fmt: skip
    single, offline = found.cases[0].runs
    assert {run.generator for run in (single, offline)} == {"edgeship"}
    assert single.generator_reason is not None
    assert "has no wheel for boards" in single.generator_reason
    assert single.p90_ms is not None
    assert 0.5 < single.p90_ms * offline.samples_per_s / 1000 < 3
    assert (single.valid, offline.valid, single.conforms, single.logs) == (True, True, False, None)
    assert not (tmp_path / "logs").exists()
    assert found.cases[1].case.error is not None
    assert found.cases[1].runs == ()
    assert {"message": "m: single stream"} in messages
    other = load_profile("local").model_copy(update={"python": "/usr/bin/another"})
    assert "not installed for the Python of local" in str(why_not_loadgen(other))

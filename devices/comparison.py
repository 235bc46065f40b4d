"""Which of two models is faster: a ratio, its interval, and a verdict that a reader can rely on.

Within a *session* each model lives in one process, and in every round each runs one block, in an order that is drawn
anew. The ratio of two blocks of one round has the load of the machine in common, and by the drawn order what is left
of it is as likely to favour the one as the other, however the load changes. But a process keeps what it got at its
start: where its memory lies, which pages it shares. Two processes of one file differ by that, in every round alike, so
rounds alone would find differences that are not there (Mytkowicz et al., "Producing wrong data without doing anything
obviously wrong!", 2009). Therefore all processes are started anew several times, and the interval is taken over these
sessions, of which each gives one number: the median of its rounds' ratios.

Intervals are Hodges and Lehmann's ("Estimates of location based on rank tests", 1963): exact for any distribution that
is symmetric, without an assumption on its tails.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from devices.wording import counted

Verdict = Literal["faster", "slower", "can't tell"]

CONFIDENCE = 0.99
"""Of a comparison: a difference is claimed to others, so a false one shall be rare."""
LEAST_SESSIONS = 8
"""Fewer can't give an interval of 99 %: 2 / 2^7 is more than 1 %."""
RECORDED_CONFIDENCE = 0.95


class Comparison(BaseModel):
    """One case beside another.

    Attributes:
        case: Its id.
        baseline: The id of the one that it is compared with.
        ratio: How many times as long as the baseline it takes; 1.05 is 5 % slower.
        interval: Of the ratio; None where there are too few sessions.
        confidence: Of the interval, 0..1.
        verdict: "faster" or "slower" than the baseline, where the interval excludes 1.
        sessions: How often all processes were started anew.
        session_ratios: Of each.
        reason: Why there is no interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    baseline: str
    ratio: float
    interval: tuple[float, float] | None
    confidence: float
    verdict: Verdict
    sessions: int
    session_ratios: tuple[float, ...] = ()
    reason: str | None = None

    def sentence(self) -> str:
        """For people: "b is slower than a: 1.052 times as long (99 % interval 1.041 to 1.063, 10 sessions)"."""
        if self.interval is None:
            return f"{self.case} beside {self.baseline}: can't tell: {self.reason}"
        low, high = self.interval
        numbers = (
            f"{self.ratio:.3f} times as long ({self.confidence:.0%} interval {low:.3f} to {high:.3f}, "
            f"{counted(self.sessions, 'session')})"
        )
        if self.verdict == "can't tell":
            return f"{self.case} beside {self.baseline}: can't tell: {numbers}"
        return f"{self.case} is {self.verdict} than {self.baseline}: {numbers}"


Session = Sequence[Mapping[str, Sequence[int]]]
"""The rounds of a session; in each the latencies in nanoseconds of every case by its id."""


def session_ratio(session: Session, case: str, baseline: str) -> float | None:
    """The median over the rounds of the ratio of the block's medians; None where no round has both."""
    ratios = [
        float(np.median(blocks[case]) / np.median(blocks[baseline]))
        for blocks in session
        if blocks.get(case) and blocks.get(baseline)
    ]
    return math.exp(float(np.median(np.log(ratios)))) if ratios else None


def compare(case: str, baseline: str, session_ratios: Sequence[float], *, confidence: float = CONFIDENCE) -> Comparison:
    """The verdict on two cases that were measured side by side.

    Args:
        case: Its id.
        baseline: The id of the other.
        session_ratios: The case's latency to the baseline's, one number for each session.
        confidence: Of the interval.
    """
    logs = np.log(np.asarray(session_ratios, np.float64))
    center, interval = signed_rank_interval(logs, confidence=confidence)
    reason = (
        None
        if interval
        else f"{counted(len(logs), 'session is', 'sessions are')} too few for an interval of {confidence:.0%}"
    )
    return Comparison(
        case=case,
        baseline=baseline,
        ratio=math.exp(center),
        interval=interval and (math.exp(interval[0]), math.exp(interval[1])),
        confidence=confidence,
        verdict=_verdict(interval),
        sessions=len(logs),
        session_ratios=tuple(session_ratios),
        reason=reason,
    )


def compare_recorded(
    case: str, baseline: str, latencies_ms: Sequence[float], baseline_ms: Sequence[float], *, allowance: float
) -> Comparison:
    """The verdict on two results that were measured at different times, from the medians of their sessions.

    Sessions of one run share the state of the machine, and nothing that it did between two runs can be taken out: so
    the interval is widened by what two runs of one file may differ.

    Args:
        case: What is compared, for people.
        baseline: With what.
        latencies_ms: Of each session.
        baseline_ms: The same of the other.
        allowance: For the difference of two runs; 0.03 is 3 % to both sides.
    """
    new, old = (np.log(np.asarray(values, np.float64)) for values in (latencies_ms, baseline_ms))
    center, interval = rank_sum_interval(new, old, confidence=RECORDED_CONFIDENCE)
    if interval is not None:
        interval = interval[0] - math.log1p(allowance), interval[1] + math.log1p(allowance)
    sessions = min(len(new), len(old))
    return Comparison(
        case=case,
        baseline=baseline,
        ratio=math.exp(center),
        interval=interval and (math.exp(interval[0]), math.exp(interval[1])),
        confidence=RECORDED_CONFIDENCE,
        verdict=_verdict(interval),
        sessions=sessions,
        reason=None
        if interval
        else f"{counted(sessions, 'session is', 'sessions are')} too few for an interval; measure with --sessions 8",
    )


def _verdict(interval: tuple[float, float] | None) -> Verdict:
    """By the interval of the logarithm of the ratio."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "can't tell"
    return "slower" if interval[0] > 0 else "faster"


def signed_rank_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float
) -> tuple[float, tuple[float, float] | None]:
    """The centre of a symmetric distribution and its interval, by the averages of all pairs of values.

    Args:
        values: At least one.
        confidence: The interval's, at least.

    Returns:
        The median of the averages; and the interval, None where there are too few values for one.
    """
    data = np.asarray(values, np.float64)
    rows, columns = np.triu_indices(len(data))
    averages = np.sort((data[rows] + data[columns]) / 2)
    cut = _cut(_signed_rank_counts(len(data)), confidence)
    interval = None if cut is None else (float(averages[cut]), float(averages[-1 - cut]))
    return float(np.median(averages)), interval


def rank_sum_interval(
    values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray, *, confidence: float
) -> tuple[float, tuple[float, float] | None]:
    """By how much `values` lie above `others`, and its interval, by the differences of all pairs.

    Args:
        values: At least one.
        others: At least one.
        confidence: The interval's, at least.

    Returns:
        The median of the differences; and the interval, None where there are too few values for one.
    """
    first, second = np.asarray(values, np.float64), np.asarray(others, np.float64)
    differences = np.sort((first[:, np.newaxis] - second[np.newaxis]).reshape(-1))
    cut = _cut(_rank_sum_counts(len(first), len(second)), confidence)
    interval = None if cut is None else (float(differences[cut]), float(differences[-1 - cut]))
    return float(np.median(differences)), interval


def _cut(counts: tuple[int, ...], confidence: float) -> int | None:
    """How many of the sorted averages lie outside on each side; None where even none would be too many.

    Args:
        counts: In how many of all equally likely cases the statistic has each value, from 0 on.
        confidence: 0..1.
    """
    allowed, total, below, cut = (1 - confidence) / 2, sum(counts), 0, None
    for value, count in enumerate(counts):
        below += count
        if below > allowed * total:
            break
        cut = value
    return cut


@functools.cache
def _signed_rank_counts(size: int) -> tuple[int, ...]:
    """How many subsets of 1..size have each sum."""
    counts = [1]
    for rank in range(1, size + 1):
        grown = counts + [0] * rank
        for value, count in enumerate(counts):
            grown[value + rank] += count
        counts = grown
    return tuple(counts)


@functools.cache
def _rank_sum_counts(first: int, second: int) -> tuple[int, ...]:
    """In how many orders of two samples a value of the first lies below one of the second in so many pairs."""
    if first == 0 or second == 0:
        return (1,)
    counts = [0] * (first * second + 1)
    for shift, part in ((second, _rank_sum_counts(first - 1, second)), (0, _rank_sum_counts(first, second - 1))):
        for value, count in enumerate(part):
            counts[value + shift] += count
    return tuple(counts)

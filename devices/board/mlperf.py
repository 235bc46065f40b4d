"""MLPerf's single-stream and offline scenarios where LoadGen has no wheel: its loop, its numbers, its early stopping.

Early stopping (MLPerf Inference, "Early Stopping Criterion"): of n queries, so many of the longest are discarded that
the longest of the rest is still an upper bound of the percentile with a confidence of 99 %. If a query were longer than
the bound with the probability 1 - percentile, it would be unlikely (1 %) that t of n or fewer are. That sum of binomial
probabilities is the regularized incomplete beta function of LoadGen's own code; a test holds the two together.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Optional, Sequence

CONFIDENCE = 0.99
PERCENTILE = 0.9
"""Of the single-stream scenario."""
TAIL_PERCENTILE = 0.99
"""LoadGen tells it as well, for an estimate of multi-stream."""
PLACES = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)
OFFLINE_SLACK = 1.1
"""So many times as many samples as the minimum duration would need: LoadGen's own."""

_PROGRESS_EVERY_NS = 500_000_000
_FAR_OUT = 20.0
"""Standard deviations below the mean, where a binomial probability is between e^-200 and e^-400."""

Emit = Callable[[Dict[str, Any]], None]


def few_probability(count: int, most: int, percentile: float) -> float:
    """The probability that of `count` queries at most `most` are longer than the percentile."""
    tail = 1.0 - percentile
    spread = math.sqrt(count * percentile * tail)
    first = max(0, math.floor(count * tail - _FAR_OUT * spread))
    if most < first:
        return 0.0
    term = math.exp(
        math.lgamma(count + 1)
        - math.lgamma(first + 1)
        - math.lgamma(count - first + 1)
        + first * math.log(tail)
        + (count - first) * math.log(percentile)
    )
    total, odds = term, tail / percentile
    for index in range(first, min(most, count)):
        term *= (count - index) / (index + 1) * odds
        total += term
    return min(1.0, total)


def least_count(percentile: float, *, confidence: float = CONFIDENCE) -> int:
    """How many queries early stopping needs: 64 for the 90th percentile, 662 for the 99th."""
    low, high = 1, 2
    while few_probability(high, 1, percentile) >= 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if few_probability(middle, 1, percentile) < 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def overlatency_count(count: int, percentile: float, *, confidence: float = CONFIDENCE) -> Optional[int]:
    """How many of `count` queries may at most be as long as the estimate; None where there are too few of them.

    The estimate is the latency at that place from the end; those behind it are discarded.
    """
    if few_probability(count, 1, percentile) >= 1 - confidence:
        return None
    low, high = 1, count  # the first holds, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        if few_probability(count, middle, percentile) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def early_stopping(latencies_ns: Sequence[int], percentile: float) -> Dict[str, Any]:
    """The estimate of a percentile.

    Returns:
        `percentile`; `needed`, queries at least; `discarded`, the longest ones; `estimate_ns`; the last two are None
        where there are too few queries.
    """
    found = overlatency_count(len(latencies_ns), percentile)
    return {
        "percentile": percentile,
        "needed": least_count(percentile),
        "discarded": None if found is None else found - 1,
        "estimate_ns": None if found is None else int(sorted(latencies_ns)[-found]),
    }


def run_scenario(params: Dict[str, Any], infer: Callable[[int], None], clock_ns: Callable[[], int], emit: Emit) -> Any:
    """Runs a scenario as LoadGen would.

    Args:
        params: `scenario` (single_stream or offline), `min_duration_s`, `min_query_count` (offline: samples of the
            one query), and `expected_latency_ns` of an inference, by which offline chooses how many samples it takes.
        infer: Runs one inference of the prepared input of that number.
        clock_ns: The time in nanoseconds.
        emit: Takes `{"queries": 120, "seconds": 1.5}` from time to time.

    Returns:
        `generator`, `query_count`, `sample_count`, `duration_s`, `samples_per_s`, `early_stopping` (for 90 % and
        99 %; none offline), `min_ns`, `mean_ns`, `max_ns`, `percentiles_ns` by the percentile's text, `valid`, and
        `reasons` where it is not.
    """
    offline = params["scenario"] == "offline"
    needed = int(params["min_query_count"])
    min_duration_ns = float(params["min_duration_s"]) * 1e9
    if offline:
        needed = max(needed, math.ceil(OFFLINE_SLACK * min_duration_ns / float(params["expected_latency_ns"])))
    latencies: List[int] = []
    begin = said = clock_ns()
    while True:
        issued = clock_ns()
        infer(len(latencies))
        done = clock_ns()
        latencies.append(done - (begin if offline else issued))  # offline all samples are issued at the start
        if done - said >= _PROGRESS_EVERY_NS:
            said = done
            emit({"queries": len(latencies), "seconds": (done - begin) / 1e9})
        if len(latencies) >= needed and (offline or issued - begin >= min_duration_ns):
            break
    lasted_ns = done - begin if offline else issued - begin
    stopping = [] if offline else [early_stopping(latencies, each) for each in (PERCENTILE, TAIL_PERCENTILE)]
    reasons = []
    if lasted_ns < min_duration_ns:
        reasons.append(f"it took {lasted_ns / 1e9:.1f} s, less than the minimum duration")
    if stopping and stopping[0]["estimate_ns"] is None:
        reasons.append(f"{len(latencies)} queries, but early stopping needs {stopping[0]['needed']}")
    return {
        "generator": "edgeship",
        "query_count": 1 if offline else len(latencies),
        "sample_count": len(latencies),
        "duration_s": lasted_ns / 1e9,
        "samples_per_s": len(latencies) * 1e9 / (lasted_ns if offline else sum(latencies)),
        "early_stopping": stopping,
        **summary(latencies),
        "valid": not reasons,
        "reasons": reasons,
    }


def summary(latencies_ns: Sequence[int]) -> Dict[str, Any]:
    """Shortest, mean, longest and percentiles as LoadGen takes them: the value at that share of the sorted ones."""
    ordered = sorted(latencies_ns)
    return {
        "min_ns": ordered[0],
        "mean_ns": sum(ordered) // len(ordered),
        "max_ns": ordered[-1],
        "percentiles_ns": {f"{100 * place:.2f}": ordered[int(len(ordered) * place)] for place in PLACES},
    }

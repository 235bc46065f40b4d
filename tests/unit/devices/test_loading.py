"""What is said of a compiled form's starts beside those of the model itself."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest

from devices.loading import LEAST_PAIRS, compare_starts, summarize_starts

TIMES = {"import_ms": 100.0, "load_ms": 40.0, "first_inference_ms": 5.0, "latency_ms": 2.0}


def row(plain: dict[str, float], compiled: dict[str, float]) -> dict[str, dict[str, float]]:
    found = {}
    for name, changes in (("plain", plain), ("compiled", compiled)):
        times = {**TIMES, **changes}
        start = times["import_ms"] + times["load_ms"] + times["first_inference_ms"]
        found[name] = {**times, "start_ms": start}
    return found


class Finding(NamedTuple):
    """Times of the compiled form beside `TIMES`, and what is said."""

    id: str
    compiled: dict[str, float]
    expected: tuple[str, ...]
    unsaid: tuple[str, ...] = ()
    pairs: int = 12


SAVED = r"Saves \d+\.\d ms of loading \("
FINDINGS = [
    Finding("faster", {"load_ms": 10.0}, (SAVED,), ("nothing", "later")),
    Finding("slower", {"load_ms": 60.0}, ("Saves nothing of loading: it takes longer",)),
    Finding("the same", {}, ("Saves nothing of loading that can be told",), ("later",)),
    Finding(
        "a longer import eats it",
        {"load_ms": 10.0, "import_ms": 160.0},
        (SAVED, "Saves nothing of a whole start, import to first answer: it takes longer"),
    ),
    Finding(
        "slower ever after", {"load_ms": 10.0, "latency_ms": 4.8}, (r"But each later inference takes 2\.4\d times",)
    ),
    Finding("faster ever after", {"latency_ms": 1.0}, (r"Each later inference takes 0\.5\d times",), ("But",)),
    Finding("too few", {"load_ms": 1.0}, (rf"too few to tell.* {LEAST_PAIRS} give an interval",), ("Saves",), 5),
    Finding("just enough", {"load_ms": 1.0}, (SAVED,), pairs=LEAST_PAIRS),
]


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.id)
def test_the_verdict_names_what_is_gained(finding: Finding) -> None:
    noise, rows = np.random.default_rng(0), []
    for _ in range(finding.pairs):
        busy = noise.uniform(1, 1.5)  # the machine at that moment, for both
        own = [{name: busy * value * noise.uniform(0.99, 1.01) for name, value in {**TIMES, **changes}.items()}
               for changes in ({}, finding.compiled)]  # fmt: skip
        rows.append(row(own[0], own[1]))

    verdict = summarize_starts(rows).verdict

    for pattern in finding.expected:
        assert re.search(pattern, verdict), verdict
    for part in finding.unsaid:
        assert part not in verdict


def test_medians_and_ratios() -> None:
    rows = [row({}, {"load_ms": load}) for load in (10.0, 10.0, 10.0, 20.0, 10.0, 10.0, 10.0, 10.0)]

    found = summarize_starts(rows, label="simulated")

    assert (found.label, found.starts) == ("simulated", 8)
    assert (found.plain.load_ms, found.compiled.load_ms) == (40.0, 10.0)
    assert (found.plain.start_ms, found.compiled.start_ms) == (145.0, 115.0)
    assert found.ratios["load_ms"].ratio == pytest.approx(0.25, rel=0.05)
    assert found.ratios["load_ms"].verdict == "faster"
    assert found.ratios["latency_ms"].verdict == "can't tell"
    assert found.ratios["load_ms"].confidence == 0.95


def test_forms_take_turns_in_a_drawn_order_and_the_first_pair_does_not_count() -> None:
    started: list[str] = []

    def start(name: str) -> dict[str, float]:
        started.append(name)
        return {**TIMES, "load_ms": 1000.0 if len(started) <= 2 else 40.0}

    found = compare_starts(lambda: start("plain"), lambda: start("compiled"), pairs=10, seed=1)

    turns = [tuple(started[index : index + 2]) for index in range(0, len(started), 2)]
    assert len(turns) == 11
    assert set(turns) == {("plain", "compiled"), ("compiled", "plain")}
    assert (found.plain.load_ms, found.compiled.load_ms, found.starts) == (40.0, 40.0, 10)
    assert found.ratios["load_ms"].interval == pytest.approx((1.0, 1.0))

"""What a start costs: importing the runtime, loading the model, the first inference; of two forms of one model.

Every start is a process of its own, and the two take turns, in an order that is drawn anew for each pair. So what slows
the machine for a while slows both, and each pair gives one ratio. The file systems' caches are warm after the first
pair, which does not count: a first start after the board's own start reads the files from its storage besides.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt

from devices.comparison import Comparison, compare
from devices.profile_parts import Frozen

CONFIDENCE = 0.95
LEAST_PAIRS = 6
"""Fewer can't give an interval of 95 %: 2 / 2^5 is more than 5 %."""
QUANTITIES = ("load_ms", "first_inference_ms", "start_ms", "latency_ms")

Start = Callable[[], Mapping[str, float]]
"""Starts a process with one form of the model and gives the times of `import_ms`, `load_ms`, `first_inference_ms` and
`latency_ms`."""


class Form(Frozen):
    """Medians of one form of a model over all starts.

    Attributes:
        import_ms: Importing the runtime. LiteRT takes a cache of weights through other modules, which take longer.
        load_ms: From the file to a model that is ready, without the import.
        first_inference_ms: The first inference.
        start_ms: All three together: from a fresh process to the first answer.
        latency_ms: The median of later inferences.
    """

    import_ms: NonNegativeFloat
    load_ms: NonNegativeFloat
    first_inference_ms: NonNegativeFloat
    start_ms: NonNegativeFloat
    latency_ms: NonNegativeFloat


class Loading(Frozen):
    """A compiled form of a model beside the plain one, measured.

    Attributes:
        label: measured or simulated, as the device's latencies are.
        starts: Of each form.
        plain: The model itself.
        compiled: The compiled form.
        ratios: Of the compiled form to the plain one, by a name of `QUANTITIES`, with their intervals.
        verdict: In words: what it saves at a start, or that it saves nothing.
    """

    label: str
    starts: PositiveInt
    plain: Form
    compiled: Form
    ratios: dict[str, Comparison]
    verdict: str


def compare_starts(plain: Start, compiled: Start, *, pairs: int, seed: int = 0, label: str = "measured") -> Loading:
    """Starts both forms in turns.

    Args:
        plain: Starts the model itself.
        compiled: Starts the compiled form.
        pairs: How often each; one more pair, in front, does not count.
        seed: Of the order.
        label: Of the times.
    """
    order = random.Random(seed)
    rows: list[dict[str, dict[str, float]]] = []
    for _ in range(pairs + 1):
        turn = [("plain", plain), ("compiled", compiled)]
        order.shuffle(turn)
        rows.append({name: _with_total(start()) for name, start in turn})
    return summarize_starts(rows[1:], label=label)


def summarize_starts(rows: Sequence[Mapping[str, Mapping[str, float]]], *, label: str = "measured") -> Loading:
    """Medians, ratios and the verdict on pairs of starts.

    Args:
        rows: Of each pair the times of `plain` and of `compiled`.
        label: Of the times.
    """
    medians = {
        form: Form(**{name: statistics.median(row[form][name] for row in rows) for name in Form.model_fields})
        for form in ("plain", "compiled")
    }
    ratios = {
        name: compare(
            "compiled", "plain", [row["compiled"][name] / row["plain"][name] for row in rows], confidence=CONFIDENCE
        )
        for name in QUANTITIES
    }
    return Loading(
        label=label,
        starts=len(rows),
        plain=medians["plain"],
        compiled=medians["compiled"],
        ratios=ratios,
        verdict=_verdict(rows, medians, ratios),
    )


def _with_total(times: Mapping[str, float]) -> dict[str, float]:
    start = times["import_ms"] + times["load_ms"] + times["first_inference_ms"]
    return {**{name: float(value) for name, value in times.items()}, "start_ms": start}


def _verdict(
    rows: Sequence[Mapping[str, Mapping[str, float]]], medians: Mapping[str, Form], ratios: Mapping[str, Comparison]
) -> str:
    """What a user gains; a difference only where the interval of its ratio excludes one."""
    load, start, latency = ratios["load_ms"], ratios["start_ms"], ratios["latency_ms"]
    if load.interval is None:
        return f"{len(rows)} starts are too few to tell what it saves; {LEAST_PAIRS} give an interval."
    plain, compiled = medians["plain"], medians["compiled"]
    said = [_part("loading", load, plain.load_ms, compiled.load_ms)]
    if start.verdict != load.verdict:
        said.append(_part("a whole start, import to first answer", start, plain.start_ms, compiled.start_ms))
    if latency.verdict != "can't tell":
        joint = "But each" if latency.verdict == "slower" else "Each"
        said.append(f"{joint} later inference takes {latency.ratio:.2f} times as long.")
    return " ".join(said)


def _part(what: str, ratio: Comparison, before: float, after: float) -> str:
    """What is gained in one part of a start."""
    times = f"{before:.1f} -> {after:.1f} ms"
    if ratio.verdict == "faster":
        return f"Saves {before - after:.1f} ms of {what} ({times})."
    if ratio.verdict == "slower":
        return f"Saves nothing of {what}: it takes longer ({times})."
    return f"Saves nothing of {what} that can be told ({times})."


def times_of(imported: Mapping[str, Any], loaded: Mapping[str, Any], latencies_ns: Sequence[int]) -> dict[str, float]:
    """The times of one start, from the agent's answers to `import_runtime`, `load` and `measure`."""
    return {
        "import_ms": imported["import_ms"],
        "load_ms": loaded["load_ms"],
        "first_inference_ms": loaded["first_inference_ms"],
        "latency_ms": statistics.median(latencies_ns) / 1e6,
    }

"""What the options of `edgeship bench` ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from devices.measurement import BenchmarkSettings
from pipeline.errors import InputError

COMPARED_MIN_TIME_S = 15.0
"""Of each model over all sessions of a comparison: some thirty rounds in each of ten."""


class BenchOptions(BaseModel):
    """What the command line asks for.

    Attributes:
        threads: Of one inference, each a case of its own; none takes the profile's.
        cores: See `BenchmarkSettings`.
        governor: See `BenchmarkSettings`.
        min_count: Timed inferences.
        min_time_s: Seconds of them; None takes the default.
        max_time_s: None takes the default.
        precision: Half of p90's interval, or of the ratio's, to it; 0 does not ask for any.
        sessions: None takes the default.
        compare: Whether each model is compared with the first.
        sustained_s: Seconds of work without a pause; None measures in rounds.
        seed: Of the order.
        rules: "mlperf" measures by these rules; `asked_count` and `min_time_s` are then for shorter tries.
        asked_count: What `min_count` was set to; None where it was not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: tuple[int, ...] = ()
    cores: str | None = None
    governor: str | None = None
    min_count: int = 400
    min_time_s: float | None = None
    max_time_s: float | None = None
    precision: float = 0.01
    sessions: int | None = None
    compare: bool = False
    sustained_s: float | None = None
    seed: int = 0
    rules: Literal["mlperf"] | None = None
    asked_count: int | None = None

    def settings(self) -> BenchmarkSettings:
        """These as the measuring code takes them."""
        min_time_s = self.min_time_s
        if min_time_s is None or self.rules is not None:
            min_time_s = COMPARED_MIN_TIME_S if self.compare else 1.0
        sessions = self.sessions or (10 if self.compare else 1)
        return BenchmarkSettings(
            min_count=self.min_count,
            min_time_s=min_time_s,
            max_time_s=self.max_time_s or max(60.0, 2 * min_time_s),
            precision=self.precision or None,
            sessions=sessions,
            cores=self.cores,
            governor=self.governor,
            runtime_memory=True,
            seed=self.seed,
        )


def bench_options(**asked: Any) -> BenchOptions:
    """What the options of the command line ask for.

    Raises:
        InputError: One has another form, or two do not go together.
    """
    seconds = parse_seconds(asked["sustained"])
    if seconds is not None and asked["compare"]:
        raise InputError("--sustained runs one model after another, --compare side by side: give one of them.")
    min_time, max_time = asked["min_time"], asked["max_time"]
    if max_time is not None and max_time < (min_time or 0):
        raise InputError(f"--max-time ({max_time:g}) is shorter than --min-time ({min_time:g}).")
    _check_rules(asked)
    same = ("cores", "governor", "sessions", "compare", "seed", "rules")
    return BenchOptions(
        **{name: asked[name] for name in same},
        threads=parse_threads(asked["threads"]),
        min_time_s=min_time,
        max_time_s=max_time,
        min_count=asked["min_count"] or 400,
        asked_count=asked["min_count"],
        precision=(1.0 if asked["precision"] is None else asked["precision"]) / 100,
        sustained_s=seconds,
    )


_NOT_BY_RULES = {
    "compare": "--compare",
    "sustained": "--sustained",
    "max_time": "--max-time",
    "precision": "--precision",
    "sessions": "--sessions",
    "image": "--image",
    "profiled": "--profile",
}


def _check_rules(asked: Mapping[str, Any]) -> None:
    """Refuses what a measurement by the rules does not have."""
    if asked["rules"] is None:
        return
    given = {name for name in _NOT_BY_RULES if asked.get(name) is not None and asked.get(name) is not False}
    refused = [option for name, option in _NOT_BY_RULES.items() if name in given]
    if refused:
        raise InputError(
            f"--rules {asked['rules']} measures by its own rules, without {', '.join(refused)}. Leave that out; "
            f"--min-time and --min-count make shorter tries, which do not conform to the rules."
        )


def parse_threads(text: str | None) -> tuple[int, ...]:
    """The numbers of `1,2,4`; none where nothing is given.

    Raises:
        InputError: It is something else.
    """
    if text is None:
        return ()
    numbers = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,3}", number) and 1 <= int(number) <= 256 for number in numbers):
        raise InputError(f"--threads is {text}; expected a number from 1 to 256, or several between commas: 1,2,4.")
    if len({int(number) for number in numbers}) != len(numbers):
        raise InputError(f"--threads is {text}, which names a number twice. Name each once.")
    return tuple(int(number) for number in numbers)


def parse_seconds(text: str | None) -> float | None:
    """The seconds of `30m`, `90s`, `1.5h` or `90`.

    Raises:
        InputError: It is something else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)] if match else 0.0
    if seconds <= 0:
        raise InputError(f"--sustained is {text}; expected a time such as 30m, 90s or 1h.")
    return seconds

"""Walks the remedies for a drop of accuracy in a stated order until one of them holds.

| remedy | what changes | source |
|---|---|---|
| `ranges` | where the 8-bit grids of the activations lie | `pipeline.quantization.ranges` |
| `bias` | weights equalized over layers, biases corrected by the mean error | Nagel et al. 2019 |
| `mixed` | the most sensitive layers stay in float, one after another | `pipeline.quantization.sensitivity` |
| `rounding` | weights are rounded up or down as the layers' outputs want it | Nagel et al. 2020 (AdaRound) |
| `training` | the network learns to live with the grids | Jacob et al. 2018 |

A remedy holds where the drop on the validation images is within the limit. What the images can tell is said beside it
(`AccuracyDrop.verdict`): a few hundred don't settle half a point.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.quantization.comparison import AccuracyDrop
from pipeline.quantization.ranges import RANGE_METHODS, Range, RangeMethod
from pipeline.quantization.sensitivity import LayerSensitivity, measure_sensitivity
from pipeline.quantization.static import Observed, compare_range_methods

Remedy = Literal["ranges", "bias", "mixed", "rounding", "training"]

Judge = Callable[[Path], AccuracyDrop]
"""Compares an int8 file with float on the validation images."""

Tell = Callable[[str], None]

SENSITIVITY_SAMPLES = 16
MOST_FLOAT_SHARE = 0.25
"""Of the layers that `mixed` leaves in float: with more, int8 has lost its point."""


@dataclass(frozen=True)
class Variant:
    """A network whose weights a remedy has changed.

    Attributes:
        observed: Lowered and observed anew.
        ranges: What training learned; None chooses them.
    """

    observed: Observed
    ranges: Mapping[str, Range] | None = None


@dataclass(frozen=True)
class Attempt:
    """One int8 file and what it is worth.

    Attributes:
        remedy: The last that was added.
        scheme: Of the quantizer.
        range_method: How ranges were chosen; None where training learned them.
        float_layers: What stayed in float.
        drop: On the validation images.
        holds: Whether the drop is within the limit.
        path: The file.
        seconds: It took to make and to judge it.
    """

    remedy: Remedy
    scheme: str
    range_method: RangeMethod | None
    float_layers: tuple[str, ...]
    drop: AccuracyDrop
    holds: bool
    path: Path
    seconds: float


@dataclass
class Outcome:
    """What the walk came to.

    Attributes:
        attempts: In the order in which they were made.
        chosen: The first that holds; where none does, the one with the smallest drop.
        sensitivity: Of the layers, where `mixed` was tried.
        range_ratios: Of each scheme, and each with a remedy's weights (`scheme+remedy`), the signal-to-noise ratio in
            decibels by each way to choose ranges.
    """

    attempts: list[Attempt]
    chosen: Attempt
    sensitivity: tuple[LayerSensitivity, ...] = ()
    range_ratios: dict[str, dict[RangeMethod, float]] = field(default_factory=dict)


def walk(
    candidates: Sequence[Observed],
    variants: Mapping[Remedy, Callable[[], Variant]],
    judge: Judge,
    *,
    max_drop: float,
    directory: Path,
    tell: Tell,
) -> Outcome:
    """Tries remedy after remedy until one holds.

    Args:
        candidates: The unchanged network in each scheme, the fastest first. Later remedies take the first one.
        variants: Make the network for `bias`, `rounding` and `training`; those that are missing are left out.
        judge: Compares a file with float.
        max_drop: The limit, 0..1.
        directory: Gets the files, one for each attempt.
        tell: Takes a sentence for each attempt.
    """
    steps = _Walk(judge, max_drop, directory, tell)
    for observed in candidates:
        if steps.try_ranges("ranges", observed).holds:
            return steps.outcome()
    base = candidates[0]
    if "bias" in variants:
        variant = variants["bias"]()
        if steps.try_variant("bias", variant).holds:
            return steps.outcome()
        base = variant.observed if steps.best().remedy == "bias" else base
    if steps.try_mixed(base):
        return steps.outcome()
    for remedy in ("rounding", "training"):
        if remedy in variants and steps.try_variant(remedy, variants[remedy]()).holds:
            break
    return steps.outcome()


class _Walk:
    def __init__(self, judge: Judge, max_drop: float, directory: Path, tell: Tell) -> None:
        self._judge, self._max_drop, self._directory, self._tell = judge, max_drop, directory, tell
        self._attempts: list[Attempt] = []
        self._sensitivity: tuple[LayerSensitivity, ...] = ()
        self._ratios: dict[str, dict[RangeMethod, float]] = {}
        self._methods: dict[Path, RangeMethod] = {}

    def outcome(self) -> Outcome:
        holding = [attempt for attempt in self._attempts if attempt.holds]
        return Outcome(self._attempts, holding[0] if holding else self.best(), self._sensitivity, self._ratios)

    def best(self) -> Attempt:
        """Returns the attempt with the smallest drop, the earliest of equal ones."""
        return min(self._attempts, key=lambda attempt: attempt.drop.drop)

    def try_ranges(self, remedy: Remedy, observed: Observed) -> Attempt:
        started = time.monotonic()
        ratios = compare_range_methods(observed, RANGE_METHODS, self._directory)
        self._ratios[observed.scheme if remedy == "ranges" else f"{observed.scheme}+{remedy}"] = ratios
        method = self._methods[observed.path] = next(iter(ratios))
        return self._attempt(remedy, observed, observed.ranges(method), method=method, started=started)

    def try_variant(self, remedy: Remedy, variant: Variant) -> Attempt:
        if variant.ranges is None:
            return self.try_ranges(remedy, variant.observed)
        return self._attempt(remedy, variant.observed, variant.ranges, method=None, started=time.monotonic())

    def try_mixed(self, observed: Observed) -> bool:
        """Leaves layer after layer in float, the most sensitive first; returns whether that came to hold.

        Args:
            observed: Whose ranges were tried before.
        """
        method = self._methods[observed.path]
        ranges = observed.ranges(method)
        scratch = self._directory / "sensitivity"
        scratch.mkdir(exist_ok=True)
        self._sensitivity = measure_sensitivity(
            observed.quantizer,
            observed.path,
            scheme=observed.scheme,
            ranges=ranges,
            samples=observed.samples[:SENSITIVITY_SAMPLES],
            output=observed.output,
            scratch=scratch,
        )
        shutil.rmtree(scratch)
        ordered = sorted(
            self._sensitivity, key=lambda layer: float("inf") if layer.alone_db is None else layer.alone_db
        )
        most = max(1, int(MOST_FLOAT_SHARE * len(ordered)))
        for count in range(1, most + 1):
            layers = tuple(layer.layer for layer in ordered[:count])
            started = time.monotonic()
            if self._attempt("mixed", observed, ranges, method=method, layers=layers, started=started).holds:
                return True
        return False

    def _attempt(
        self,
        remedy: Remedy,
        observed: Observed,
        ranges: Mapping[str, Range],
        *,
        method: RangeMethod | None,
        started: float,
        layers: tuple[str, ...] = (),
    ) -> Attempt:
        path = self._directory / f"attempt-{len(self._attempts)}{observed.path.suffix}"
        observed.quantize(ranges, path, float_layers=layers)
        drop = self._judge(path)
        holds = drop.drop <= self._max_drop + 1e-12
        seconds = time.monotonic() - started
        attempt = Attempt(remedy, observed.scheme, method, layers, drop, holds, path, seconds)
        self._attempts.append(attempt)
        self._tell(f"{_words(attempt)}: {drop.sentence(self._max_drop)}")
        return attempt


def _words(attempt: Attempt) -> str:
    words = [attempt.remedy, attempt.scheme]
    if attempt.range_method is not None:
        words.append(f"ranges by {attempt.range_method}")
    if attempt.float_layers:
        count = len(attempt.float_layers)
        words.append(f"{count} layer{'s' if count > 1 else ''} in float, the last is {attempt.float_layers[-1]}")
    return ", ".join(words)

"""Remedies for a drop of accuracy, tried one after another until one holds.

| remedy | what changes | source |
|---|---|---|
| `ranges` | where the 8-bit grids of the activations lie | `pipeline.quantization.ranges` |
| `bias` | weights equalized over layers, biases corrected by the mean error | Nagel et al. 2019 |
| `mixed` | the most sensitive layers stay in float, one after another | `pipeline.quantization.sensitivity` |
| `rounding` | weights are rounded up or down as the layers' outputs want it | Nagel et al. 2020 (AdaRound) |
| `training` | the network learns to live with the grids | Jacob et al. 2018 |

`bias`, `rounding` and `training` change the network's weights, once for all runtimes; here they are networks like any
other. A remedy holds where the drop on the validation images that float expects is within the limit, and the one that
was counted is not proved to be beyond it (`AccuracyDrop.holds`): a few thousand images don't settle half a point by
counting, nor do 1,000 tell one point from none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.quantization.comparison import AccuracyDrop
from pipeline.quantization.ranges import RANGE_METHODS, Range, RangeMethod
from pipeline.quantization.sensitivity import LayerSensitivity, most_sensitive_first, sensitivity_of, short_name
from pipeline.quantization.static import Observed, compare_range_methods

Remedy = Literal["ranges", "bias", "mixed", "rounding", "training"]
REMEDIES: tuple[Remedy, ...] = get_args(Remedy)

Judge = Callable[[Path], AccuracyDrop]
"""Compares an int8 file with float on the validation images."""

Tell = Callable[[str], None]

MOST_FLOAT_SHARE = 0.25
"""Of the layers that `mixed` leaves in float: with more, int8 has lost its point."""


@dataclass(frozen=True)
class Attempt:
    """One int8 file and what it is worth.

    Attributes:
        remedy: Which is tried.
        scheme: Of the quantizer.
        range_method: How ranges were chosen; None where training learned them.
        range_ratios: By each way to choose ranges that was compared, the output's signal-to-noise ratio in decibels.
        float_layers: What stayed in float.
        drop: On the validation images.
        holds: Whether the drop is within the limit (`AccuracyDrop.holds`).
        path: The file.
        seconds: It took to make and to judge it.
    """

    remedy: Remedy
    scheme: str
    range_method: RangeMethod | None
    range_ratios: Mapping[RangeMethod, float]
    float_layers: tuple[str, ...]
    drop: AccuracyDrop
    holds: bool
    path: Path
    seconds: float

    def words(self) -> str:
        """Returns what was tried."""
        words = [self.remedy, self.scheme]
        if self.range_method is not None:
            words.append(f"ranges by {self.range_method}")
        if self.float_layers:
            count, last = len(self.float_layers), short_name(self.float_layers[-1])
            words.append(f"{count} layer{'s' if count > 1 else ''} in float, the last is {last}")
        return ", ".join(words)


@dataclass(frozen=True)
class Trial:
    """What attempts have in common.

    Attributes:
        judge: Compares a file with float.
        max_drop: The limit, 0..1.
        directory: Gets the files, one for each attempt.
        tell: Takes a sentence for each attempt.
    """

    judge: Judge
    max_drop: float
    directory: Path
    tell: Tell

    def attempt(
        self,
        remedy: Remedy,
        observed: Observed,
        ranges: Mapping[str, Range],
        *,
        method: RangeMethod | None = None,
        ratios: Mapping[RangeMethod, float] | None = None,
        float_layers: tuple[str, ...] = (),
    ) -> Attempt:
        """Quantizes and judges."""
        started = time.monotonic()
        number = len(list(self.directory.glob(f"attempt-*{observed.path.suffix}")))
        path = self.directory / f"attempt-{number}{observed.path.suffix}"
        observed.quantize(ranges, path, float_layers=float_layers)
        drop = self.judge(path)
        made = Attempt(
            remedy=remedy,
            scheme=observed.scheme,
            range_method=method,
            range_ratios=ratios or {},
            float_layers=float_layers,
            drop=drop,
            holds=drop.holds(self.max_drop),
            path=path,
            seconds=time.monotonic() - started,
        )
        expected = "" if drop.expected is None else f" By float's own probabilities it is {100 * drop.expected:.2f}."
        self.tell(f"{made.words()}: {drop.sentence(self.max_drop)}{expected}")
        return made


def best_attempt(attempts: Sequence[Attempt]) -> Attempt:
    """Returns the first that holds; where none does, the one with the smallest drop.

    Args:
        attempts: At least one, in the order in which they were made.
    """
    return next((each for each in attempts if each.holds), min(attempts, key=lambda each: each.drop.estimate))


def try_ranges(
    trial: Trial, remedy: Remedy, observed: Observed, methods: Sequence[RangeMethod] = RANGE_METHODS
) -> Attempt:
    """Quantizes with the ranges that leave the output closest to float.

    Args:
        trial: What attempts share.
        remedy: By which the weights came to be what they are; `ranges` for the network as it is.
        observed: The network in one scheme.
        methods: Ways to choose ranges that are compared.
    """
    ratios = compare_range_methods(observed, methods, trial.directory) if len(methods) > 1 else {}
    method = next(iter(ratios), methods[0])
    return trial.attempt(remedy, observed, observed.ranges(method), method=method, ratios=ratios)


def try_mixed(
    trial: Trial, observed: Observed, method: RangeMethod, layers: tuple[LayerSensitivity, ...] = ()
) -> tuple[list[Attempt], tuple[LayerSensitivity, ...]]:
    """Leaves layer after layer in float, the most sensitive first, until that holds or a quarter of them is.

    Args:
        trial: What attempts share.
        observed: The network in one scheme.
        method: How its ranges are chosen.
        layers: How sensitive each is, where that is known already.

    Returns:
        The attempts, and how sensitive each layer is.
    """
    ranges = observed.ranges(method)
    layers = layers or sensitivity_of(observed, method, trial.directory)
    ordered = most_sensitive_first(layers)
    attempts: list[Attempt] = []
    for count in range(1, max(1, int(MOST_FLOAT_SHARE * len(ordered))) + 1):
        left = tuple(layer.layer for layer in ordered[:count])
        attempts.append(trial.attempt("mixed", observed, ranges, method=method, float_layers=left))
        if attempts[-1].holds:
            break
    return attempts, layers

"""Whether int8 is worse than float on the same images, and what the sample can tell.

Both models answer the same images, so only those on which they differ say anything: `lost`, right in float and wrong
in int8, and `won`, the other way round.

| question | answer | source |
|---|---|---|
| is there a drop at all | exact McNemar test, and its mid-p form, which is less conservative | McNemar 1947; Fagerland, Lydersen and Laake 2013 |
| how large is it | score interval of a difference of paired proportions | Tango 1998 |
| the same by resampling | percentile bootstrap over images | Efron and Tibshirani 1993, chapter 13 |
| what is it, with less noise | mean of what the float network gives up by its own probabilities | ours |
| how many images would do | score test of a margin, from the observed discordance | Nam 1997; of a margin of zero it is Connor's (1987) |

The score interval is the one that verdicts use: it holds 95 % also with few discordant images, where the bootstrap
gets too short, and with none, where the bootstrap is a single point.

A count of images is a coarse measure: 600 of 10,000 answers that change by chance move the drop by a quarter of a point
either way. A network whose confidence is calibrated says more. Where float gives its own answer a probability of 0.41
and the answer of int8 0.38, the change costs 0.03 of an image on average, whichever of them is right
(`expected_drop`). In the 24 rows of `docs/results/quantization.md` the two differ on the test images as chance would
have it, and the standard error of the expected one is a fifth to a tenth.
"""  # noqa: E501 (a table row)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from devices.board.confidence import ConfidenceMap
from pipeline.calibration.measures import Predictions, calibration_change
from pipeline.calibration.methods import fit_temperature
from pipeline.metrics import Z_95, Labels, Logits, log_softmax

Verdict = Literal["held", "broken", "unclear"]

DRAWS = 10_000
POWER = 0.8
_Z_POWER = 0.8416212335729143
"""The 80 % quantile of the normal distribution."""


@dataclass(frozen=True)
class AccuracyDrop:
    """Accuracies of float and int8 on the same images.

    Attributes:
        count: Images.
        float_accuracy: 0..1.
        int8_accuracy: 0..1.
        lost: Images that float has right and int8 has wrong.
        won: Images that float has wrong and int8 has right.
        drop: Accuracy of float less that of int8, -1..1.
        interval: 95 % score interval of the drop.
        bootstrap_interval: 95 % percentile bootstrap interval of the drop.
        p_value: Exact two-sided McNemar test of no drop and no gain.
        mid_p_value: Its mid-p form.
        expected: What the drop is on average by the probabilities of float, 0..1; None where it was not asked for.
    """

    count: int
    float_accuracy: float
    int8_accuracy: float
    lost: int
    won: int
    drop: float
    interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]
    p_value: float
    mid_p_value: float
    expected: float | None = None

    @property
    def estimate(self) -> float:
        """The best guess at the drop: the expected one, whose error is a tenth, or else the one that was counted."""
        return self.drop if self.expected is None else self.expected

    def holds(self, max_drop: float) -> bool:
        """Whether int8 is taken to keep to a limit.

        Args:
            max_drop: The largest drop allowed, 0..1.

        Returns:
            Whether the estimate is within the limit, and the count does not prove otherwise.
        """
        return self.estimate <= max_drop + 1e-12 and self.verdict(max_drop) != "broken"

    def verdict(self, max_drop: float) -> Verdict:
        """Says whether the drop is within a limit.

        Args:
            max_drop: The largest drop allowed, 0..1.

        Returns:
            `held` where all of the interval is within the limit, `broken` where none is, else `unclear`: the sample is
            too small to tell.
        """
        low, high = self.interval
        if high <= max_drop:
            return "held"
        return "broken" if low > max_drop else "unclear"

    def images_needed(self, max_drop: float) -> int | None:
        """Returns how many images would settle a limit, given that drop and discordance are those observed.

        With so many, the 95 % interval leaves out the limit with a probability of 0.8 (Nam 1997, from the variances
        of the score test at the limit and at the observed drop). It is an estimate from an estimate: where the drop is
        near the limit, it is large and uncertain.

        Args:
            max_drop: The largest drop allowed, 0..1.

        Returns:
            None where the observed drop is the limit itself, which no sample settles.
        """
        distance = max_drop - self.drop
        if abs(distance) < 1e-12:
            return None
        share_lost, share_won = self.lost / self.count, self.won / self.count
        at_limit = _score_variance(share_lost, share_won, max_drop)
        at_drop = share_lost + share_won - self.drop**2
        root = (Z_95 * math.sqrt(at_limit) + _Z_POWER * math.sqrt(max(at_drop, 0.0))) / distance
        return max(1, math.ceil(root**2 - 1e-9))

    def summary(self) -> str:
        """Returns the numbers as one sentence."""
        images = f"{self.count:,} image{'s' if self.count != 1 else ''}"
        low, high = self.interval
        return (
            f"On {images} float is right in {100 * self.float_accuracy:.2f} % and int8 in "
            f"{100 * self.int8_accuracy:.2f} %: {_points(self.drop)} ({_range(low, high)}; "
            f"{self.lost:,} lost, {self.won:,} won, McNemar p = {self.p_value:.2g})."
        )

    def sentence(self, max_drop: float) -> str:
        """Returns the verdict on a limit as one sentence."""
        low, high = self.interval
        found, limit = f"{_points(self.drop)} ({_range(low, high)})", f"{100 * max_drop:.2f} points"
        match self.verdict(max_drop):
            case "held":
                return f"The accuracy holds: {found} is within the limit of {limit}."
            case "broken":
                return f"The accuracy does not hold: {found} is beyond the limit of {limit}."
            case "unclear":
                needed = self.images_needed(max_drop)
                advice = "no number of images would settle a drop that is the limit itself"
                if needed is not None:
                    # The estimate has an error of its own and may lie below what was not enough.
                    advice = f"at this discordance about {max(needed, self.count + 1):,} would do"
                return (
                    f"The sample is too small to tell: {found} is neither within the limit of {limit} nor beyond it "
                    f"on {self.count:,} images; {advice}."
                )


@dataclass(frozen=True)
class ConfidenceChange:
    """Calibration errors (ECE, 15 bins) of float and int8 on the same images.

    Attributes:
        float_ece: 0..1.
        int8_ece: 0..1.
        change: ECE of int8 less that of float; above zero int8 is worse.
        interval: 95 % basic bootstrap interval of the change, over resamples that are the same for both.
    """

    float_ece: float
    int8_ece: float
    change: float
    interval: tuple[float, float]

    def verdict(self, max_change: float) -> Verdict:
        """Says whether the change is within a limit, as `AccuracyDrop.verdict` does."""
        low, high = self.interval
        if high <= max_change:
            return "held"
        return "broken" if low > max_change else "unclear"

    def sentence(self, max_change: float) -> str:
        """Returns the verdict on a limit as one sentence."""
        low, high = self.interval
        found = (
            f"the calibration error goes from {100 * self.float_ece:.2f} to {100 * self.int8_ece:.2f} points "
            f"(change {100 * self.change:+.2f}, 95 % interval {100 * low:.2f} to {100 * high:.2f})"
        )
        limit = f"{100 * max_change:.2f} points"
        match self.verdict(max_change):
            case "held":
                return f"The confidence holds: {found}, within the limit of {limit}."
            case "broken":
                return f"The confidence does not hold: {found}, beyond the limit of {limit}."
            case "unclear":
                return f"The sample is too small to tell whether {found} keeps to the limit of {limit}."


def compare_accuracy(
    float_correct: npt.NDArray[np.bool_], int8_correct: npt.NDArray[np.bool_], *, seed: int = 0
) -> AccuracyDrop:
    """Compares the answers of float and int8 to the same images.

    Args:
        float_correct: Whether float has each image right, bool `(images,)`.
        int8_correct: The same of int8, in the same order.
        seed: Of the bootstrap.

    Raises:
        ValueError: There is no image, or the arrays are not of truth values, one for each image.

    Example:
        >>> compare_accuracy(np.array([True, True]), np.array([True, False])).drop
        0.5
    """
    first, second = np.asarray(float_correct), np.asarray(int8_correct)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"Answers are {first.shape} in float and {second.shape} in int8; expected one for each image, at least one."
        )
    if first.dtype != np.bool_ or second.dtype != np.bool_:
        raise ValueError(f"Answers are {first.dtype} and {second.dtype}; expected bool, whether each image is right.")
    count = first.size
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    p_value, mid_p_value = mcnemar(lost, won)
    return AccuracyDrop(
        count=count,
        float_accuracy=int(first.sum()) / count,
        int8_accuracy=int(second.sum()) / count,
        lost=lost,
        won=won,
        drop=(lost - won) / count,
        interval=score_interval(lost, won, count),
        bootstrap_interval=bootstrap_interval(lost, won, count, seed=seed),
        p_value=p_value,
        mid_p_value=mid_p_value,
    )


def expected_drop(float_logits: Logits, int8_answers: npt.NDArray[np.integer[Any]], labels: Labels) -> float:
    """Returns the drop of accuracy that a float network itself expects of other answers, 0..1.

    It is the mean over the images of the probability of float's answer less that of the other one. The probabilities
    are those at the temperature that fits the labels best, so that a network that is too sure does not exaggerate.
    What they can't know is what int8 gets right where float is sure and wrong.

    Args:
        float_logits: `(images, classes)`, finite.
        int8_answers: The class for each image, `(images,)`.
        labels: `(images,)`.

    Raises:
        ValueError: There is no image, or not one answer and one label for each.

    Example:
        >>> logits = np.log(np.array([[0.6, 0.4]] * 10, np.float32))
        >>> round(expected_drop(logits, np.array([1] * 5 + [0] * 5), np.array([0] * 6 + [1] * 4)), 3)
        0.1
    """
    count = len(float_logits)
    if not count or int8_answers.shape != (count,) or labels.shape != (count,):
        raise ValueError(
            f"Logits are {float_logits.shape}, answers {int8_answers.shape} and labels {labels.shape}; expected one "
            f"answer and one label for each image, at least one."
        )
    temperature = fit_temperature(float_logits, labels)
    probabilities = np.exp(log_softmax(np.asarray(float_logits / temperature)))
    rows = np.arange(count)
    return float((probabilities.max(axis=1) - probabilities[rows, int8_answers]).mean())


def compare_confidence(
    float_logits: Logits,
    int8_logits: Logits,
    labels: Labels,
    confidence_map: ConfidenceMap | None = None,
    *,
    seed: int = 0,
) -> ConfidenceChange:
    """Compares the calibration of float and int8 on the same images.

    Args:
        float_logits: `(images, classes)`, finite.
        int8_logits: The same.
        labels: `(images,)`.
        confidence_map: What follows the softmax of both, if anything.
        seed: Of the resamples.

    Raises:
        ValueError: There is no image, or not one label for each.
    """
    if float_logits.shape != int8_logits.shape:
        raise ValueError(
            f"Logits are {float_logits.shape} in float and {int8_logits.shape} in int8; expected the same."
        )
    found = calibration_change(int8_logits, float_logits, labels, confidence_map, seed=seed)
    reference = Predictions(float_logits, labels, confidence_map).whole()["ece"]
    low, high = found["ece_change_interval"]
    return ConfidenceChange(reference, reference + found["ece_change"], found["ece_change"], (low, high))


def mcnemar(lost: int, won: int) -> tuple[float, float]:
    """Returns the exact two-sided p-value of McNemar's test, and its mid-p form.

    Under the hypothesis of no difference each discordant image is lost or won like the toss of a coin. The mid-p form
    counts what was observed by half (Fagerland, Lydersen and Laake 2013).
    """
    from scipy.stats import binom

    discordant, fewer = lost + won, min(lost, won)
    if not discordant:
        return 1.0, 1.0
    observed = float(binom.pmf(fewer, discordant, 0.5))
    tail = float(binom.cdf(fewer, discordant, 0.5))
    # With as many lost as won both tails hold the middle: the sum is 1 and the mid-p value 1 less half the middle.
    mid = 1 - observed / 2 if lost == won else 2 * tail - observed
    return min(1.0, 2 * tail), min(1.0, mid)


def score_interval(lost: int, won: int, count: int) -> tuple[float, float]:
    """Returns the 95 % score interval of the drop (Tango 1998).

    Its ends are the drops that the score test of paired proportions just does not refuse; with no discordant image
    they are those of Wilson's interval of a share of none.
    """
    from scipy.optimize import brentq

    share_lost, share_won = lost / count, won / count
    drop = share_lost - share_won

    def statistic(assumed: float) -> float:
        variance = _score_variance(share_lost, share_won, assumed)
        return (drop - assumed) * math.sqrt(count) / math.sqrt(variance) if variance > 0 else 0.0

    ends = []
    for end in (-1.0, 1.0):
        # The statistic falls from the drop outwards. At the end itself the variance vanishes.
        edge = end * (1 - 1e-12)
        if abs(drop) == 1.0 and drop == end:
            ends.append(end)
            continue
        ends.append(float(brentq(lambda assumed, end=end: statistic(assumed) + end * Z_95, drop, edge, xtol=1e-12)))
    return ends[0], ends[1]


def _score_variance(share_lost: float, share_won: float, drop: float) -> float:
    """Returns the variance of `lost - won` for one image where the drop is known.

    The share of won images is then the most likely one under that drop (Tango 1998).
    """
    linear = (2.0 - share_lost + share_won) * drop - share_lost - share_won
    constant = -share_won * drop * (1.0 - drop)
    won = (math.sqrt(max(linear**2 - 8.0 * constant, 0.0)) - linear) / 4.0
    return max(2.0 * won + drop * (1.0 - drop), 0.0)


def bootstrap_interval(lost: int, won: int, count: int, *, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the drop over `DRAWS` resamples of the images.

    Drawing images with replacement draws how many are lost and won from a multinomial distribution.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.multinomial(count, [lost / count, won / count, (count - lost - won) / count], DRAWS)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / count, [2.5, 97.5])
    return float(low), float(high)


def _points(drop: float) -> str:
    return f"a {'drop' if drop >= 0 else 'gain'} of {abs(100 * drop):.2f} points"


def _range(low: float, high: float) -> str:
    return f"95 % interval of the drop {100 * low:.2f} to {100 * high:.2f}"

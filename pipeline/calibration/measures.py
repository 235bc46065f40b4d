"""Measures of calibration, with bootstrap intervals.

| measure | what it is | source |
|---|---|---|
| `ece` | expected calibration error of the top class, 15 bins of equal width | Guo et al. 2017, equation 3 |
| `mce` | the largest gap of a bin that holds an image | Guo et al. 2017, equation 5 |
| `adaptive_ece` | the same as `ece` over 15 bins of equally many images | Nixon et al. 2019, section 3.3 |
| `classwise_ece` | the mean over classes of the calibration error of each one's probability, bins of equal width | Kull et al. 2019, equation 2; Nixon et al. 2019 |
| `nll` | mean negative log-likelihood, nats | |
| `brier` | mean squared distance from the one-hot label, 0..2 | Brier 1950 |

Each is a function of sums over the images in a bin, so a resample of the images only weighs the sums: logits are read
once. Images of equal confidence share a bin of `adaptive_ece`, and bins stay those of the whole sample in resamples.
"""  # noqa: E501 (a table row)

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from devices.board.confidence import ConfidenceMap
from pipeline.calibration.probabilities import log_probabilities
from pipeline.metrics import CALIBRATION_BINS, Labels, Logits, accuracy_interval

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.floating[Any]]

MEASURES = ("ece", "mce", "adaptive_ece", "classwise_ece", "nll", "brier")
RESAMPLES = 1000

_ROWS = 2048
"""Images whose probabilities are computed at a time."""
_TOGETHER = 64
"""Resamples that are weighed at a time."""


def bin_of(confidence: Floats, bins: int) -> npt.NDArray[np.int64]:
    """Returns the bin of equal width that each confidence lies in; 1 lies in the last one."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


class Predictions:
    """What the measures need to know of each image.

    Args:
        logits: `(images, classes)`, finite.
        labels: `(images,)`.
        confidence_map: What follows the softmax, if anything.
        bins: Of all calibration errors.

    Attributes:
        confidence: Of the top class, float64 `(images,)`.
        correct: Whether the top class is the label, bool `(images,)`.

    Raises:
        ValueError: There is no image, or the labels are not one class for each.
    """

    def __init__(
        self,
        logits: Logits,
        labels: Labels,
        confidence_map: ConfidenceMap | None = None,
        *,
        bins: int = CALIBRATION_BINS,
    ) -> None:
        count, classes = logits.shape
        if not count or labels.shape != (count,):
            raise ValueError(f"Logits are {logits.shape}, labels {labels.shape}; expected a label for each image.")
        self.bins, self.count, self.classes = bins, count, classes
        self.correct = logits.argmax(axis=1) == labels
        self.confidence = np.empty(count)
        nll, brier = np.empty(count), np.empty(count)
        # Of the class-wise error: what each class is off for each image, and the same of the few probabilities that
        # lie above the first bin; what lies in the first bin is the difference.
        self._off = np.empty((count, classes), np.float32)
        above: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]] = []
        for start in range(0, count, _ROWS):
            part = slice(start, start + _ROWS)
            own = labels[part]
            rows = np.arange(len(own))
            logarithms = log_probabilities(logits[part], confidence_map)
            nll[part] = -logarithms[rows, own]
            values = np.exp(logarithms)
            self.confidence[part] = values[rows, logits[part].argmax(axis=1)]
            which = bin_of(values, bins)
            np.negative(values, out=values)
            values[rows, own] += 1.0
            brier[part] = (values**2).sum(axis=1)
            self._off[part] = values
            image, klass = np.nonzero(which)
            above.append((klass * bins + which[image, klass], image + start, values[image, klass]))
        self._above = _sparse(above, (classes * bins, count))
        gap = self.correct - self.confidence
        order = np.searchsorted(np.sort(self.confidence), self.confidence, side="left")
        self.width_bin, self.mass_bin = bin_of(self.confidence, bins), order * bins // count
        self._columns = np.concatenate(
            [
                _spread(gap, self.width_bin, bins),
                _spread(np.ones(count), self.width_bin, bins),
                _spread(gap, self.mass_bin, bins),
                np.stack([nll, brier], axis=1),
            ],
            axis=1,
        )

    def measured(self, weights: Floats) -> dict[str, npt.NDArray[np.float64]]:
        """Returns each of `MEASURES`, `(resamples,)`.

        Args:
            weights: `(resamples, images)`: how often each image is counted, `images` in all.
        """
        return self._measured(self._sums(weights))

    def measured_with_noise(
        self, weights: Floats
    ) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
        """Returns `measured`, and the calibration errors that the resampling alone makes.

        The latter are those of the sums less what they are in the whole sample: what a perfectly calibrated model with
        gaps as noisy as these would be found to have.
        """
        sums = self._sums(weights)
        return self._measured(sums), self._measured(sums.less(self._whole))

    def whole(self) -> dict[str, float]:
        """Returns each of `MEASURES` on the images themselves."""
        return {name: float(values[0]) for name, values in self._measured(self._whole).items()}

    @functools.cached_property
    def _whole(self) -> _Sums:
        return self._sums(np.ones((1, self.count)))

    def _sums(self, weights: Floats) -> _Sums:
        bins = self.bins
        gaps, held, adaptive, others = np.split(weights @ self._columns, [bins, 2 * bins, 3 * bins], axis=1)
        # Of 1,000 classes these are most of the work; single precision is enough for sums this short.
        turned = np.ascontiguousarray(weights.T, np.float32)
        above = self._above @ turned
        first = self._off.T @ turned - above.reshape(self.classes, bins, -1).sum(axis=1)
        return _Sums(gaps / np.maximum(held, 1.0), gaps, adaptive, first, above, others)

    def _measured(self, sums: _Sums) -> dict[str, npt.NDArray[np.float64]]:
        classwise = np.abs(sums.first).sum(axis=0, dtype=np.float64) + np.abs(sums.above).sum(axis=0, dtype=np.float64)
        return {
            "ece": np.abs(sums.gaps).sum(axis=1) / self.count,
            "mce": np.abs(sums.mean_gaps).max(axis=1),
            "adaptive_ece": np.abs(sums.adaptive).sum(axis=1) / self.count,
            "classwise_ece": classwise / (self.count * self.classes),
            "nll": sums.others[:, 0] / self.count,
            "brier": sums.others[:, 1] / self.count,
        }


@dataclass(frozen=True)
class _Sums:
    """Sums over the images of each bin, a row a resample (a column in `first` and `above`).

    Attributes:
        mean_gaps: Accuracy less confidence of each bin of equal width, 0 in an empty one.
        gaps: The same, summed.
        adaptive: Over bins of equally many images, summed.
        first: Of each class, over its first bin, `(classes, resamples)`.
        above: Of each class, over its other bins, `(classes * bins, resamples)`.
        others: Negative log-likelihood and Brier score, summed.
    """

    mean_gaps: Floats
    gaps: Floats
    adaptive: Floats
    first: Floats
    above: Floats
    others: Floats

    def less(self, centre: _Sums) -> _Sums:
        fields = (field.name for field in dataclasses.fields(self))
        return _Sums(*(getattr(self, name) - getattr(centre, name) for name in fields))


def _spread(values: Floats, which: npt.NDArray[np.int64], bins: int) -> npt.NDArray[np.float64]:
    """Returns `(images, bins)` with each value in the column of its bin."""
    spread = np.zeros((len(values), bins))
    spread[np.arange(len(values)), which] = values
    return spread


def _sparse(parts: list[Any], shape: tuple[int, int]) -> csr_matrix:
    from scipy.sparse import csr_matrix

    rows, columns, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    return csr_matrix((values.astype(np.float32), (rows, columns)), shape=shape)


def resample_weights(count: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[npt.NDArray[np.float64]]:
    """Yields how often each image is drawn when `count` images are drawn with replacement (Efron 1979).

    Equal counts and seeds give equal draws, so that what two models get of the same images can be compared pair by
    pair.

    Yields:
        `(some, count)`, `resamples` rows in all.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, resamples, _TOGETHER):
        some = min(_TOGETHER, resamples - start)
        drawn = generator.integers(0, count, (some, count)) + np.arange(some)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count).astype(np.float64)


def measures(
    logits: Logits, labels: Labels, confidence_map: ConfidenceMap | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Returns each of `MEASURES` and `accuracy`, each with its 95 % interval under `<name>_interval`.

    That of the accuracy is Wilson's. The others are basic bootstrap intervals of 1,000 resamples of the images (Davison
    and Hinkley 1997, section 5.2): the estimate less what resampling adds to it. Calibration errors are sums of
    absolute values, so chance adds to them, and to their resamples once more: percentiles of the resamples lie above
    the truth. Where an error is no larger than what chance makes of a calibrated model in 97.5 % of all resamples, its
    interval begins at zero. No interval leaves out the estimate. That of `mce` is rough, for one image in a bin of its
    own can make it.

    Args:
        logits: `(images, classes)`, finite.
        labels: `(images,)`.
        confidence_map: What follows the softmax, if anything.
        seed: Of the resamples.

    Raises:
        ValueError: There is no image, or not one label for each.
    """
    predictions = Predictions(logits, labels, confidence_map)
    found: dict[str, Any] = predictions.whole()
    drawn, noise = _resampled(predictions, seed)
    for name in MEASURES:
        low, high = _basic(found[name], drawn[name])
        if name in _ERRORS and found[name] <= np.percentile(noise[name], 97.5):
            low = 0.0
        found[f"{name}_interval"] = [max(0.0, min(low, found[name])), max(high, found[name])]
    correct = int(predictions.correct.sum())
    found["accuracy"] = correct / predictions.count
    found["accuracy_interval"] = list(accuracy_interval(correct, predictions.count))
    return found


def calibration_change(
    logits: Logits,
    reference: Logits,
    labels: Labels,
    confidence_map: ConfidenceMap | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the calibration of two models on the same images.

    Args:
        logits: `(images, classes)` of the one.
        reference: Of the other.
        labels: `(images,)`.
        confidence_map: What follows the softmax of both, if anything.
        seed: Of the resamples.

    Returns:
        `ece_change`: calibration error of the one less that of the reference, and `ece_change_interval`: its 95 % basic
        bootstrap interval over resamples that are the same for both.
    """
    both = [Predictions(each, labels, confidence_map) for each in (logits, reference)]
    own, other = (each.whole()["ece"] for each in both)
    pairs = [[each.measured(weights)["ece"] for each in both] for weights in resample_weights(len(labels), seed=seed)]
    drawn = np.concatenate([first - second for first, second in pairs])
    return {"ece_change": own - other, "ece_change_interval": list(_basic(own - other, drawn))}


_ERRORS = frozenset({"ece", "mce", "adaptive_ece", "classwise_ece"})


def _resampled(predictions: Predictions, seed: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    parts = [predictions.measured_with_noise(weights) for weights in resample_weights(predictions.count, seed=seed)]
    drawn, noise = ({name: np.concatenate([part[i][name] for part in parts]) for name in MEASURES} for i in range(2))
    return drawn, noise


def _basic(estimate: float, drawn: Floats) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(2 * estimate - high), float(2 * estimate - low)

"""What makes a classifier's confidence honest: temperature, vector scaling, isotonic regression.

| method | what is fitted | top-1 | folds into the last layer |
|---|---|---|---|
| `temperature` | one factor for all logits (Guo et al. 2017, section 4.2) | stays | yes |
| `vector` | a scale and a bias for each class (the same section) | may change | yes |
| `isotonic` | a temperature, then a monotone map of the top class's confidence (Zadrozny and Elkan 2002) | stays | the temperature |
| `none` | nothing | stays | |

All are fitted on the validation split alone, whose images neither train nor judge the network.
"""  # noqa: E501 (a table row)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from devices.board.confidence import ConfidenceMap
from pipeline.calibration.probabilities import log_probabilities
from pipeline.metrics import Labels, Logits, log_softmax, negative_log_likelihood

Method = Literal["temperature", "vector", "isotonic", "none"]

FOLDS = 5
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_FEW_IMAGES = 100
_TOLERANCE = 1e-3
"""How much worse, as a share, a likelihood is called worse."""


@dataclass(frozen=True)
class Scaling:
    """What was fitted: `logits * scale + bias`, then the map of the confidence where there is one.

    Attributes:
        method: That fitted it.
        scale: Of each class, positive `(classes,)`; equal for all but `vector`.
        bias: Of each class `(classes,)`; zero for all but `vector`.
        confidence_map: Of `isotonic` alone.
    """

    method: Method
    scale: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    confidence_map: ConfidenceMap | None = None

    @property
    def temperature(self) -> float | None:
        """The one temperature; None where classes have scales of their own."""
        return None if self.method == "vector" else float(1 / self.scale[0])

    @property
    def changes_logits(self) -> bool:
        """Whether there is anything to fold."""
        return bool((self.scale != 1).any() or self.bias.any())

    def logits(self, logits: Logits) -> Logits:
        """Returns what the network gives once this is folded into it, `(images, classes)`."""
        return logits * self.scale + self.bias

    def folded(self, kernel: npt.NDArray[Any], bias: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        """Returns kernel `(..., classes)` and bias `(classes,)` of a linear last layer with the scaling in them."""
        return [(kernel * self.scale).astype(np.float32), (bias * self.scale + self.bias).astype(np.float32)]

    def likelihood(self, logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
        """Returns the negative log-likelihood of each image, nats `(images,)`."""
        calibrated = log_probabilities(self.logits(logits), self.confidence_map)
        values: npt.NDArray[np.float64] = -calibrated[np.arange(len(labels)), labels]
        return values


def identity(classes: int, method: Method = "none") -> Scaling:
    """Returns the scaling that changes nothing."""
    return Scaling(method, np.ones(classes), np.zeros(classes))


def fit(method: Method, logits: Logits, labels: Labels) -> Scaling:
    """Fits a method.

    Args:
        method: Which one.
        logits: `(images, classes)` of the validation split.
        labels: `(images,)`.
    """
    return _FITS[method](logits, labels)


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Returns the T > 0 that minimises the negative log-likelihood of softmax(logits / T) (Guo et al. 2017, 4.2).

    T is searched in 0.05..20. Where every image is classified correctly, the likelihood has no minimum, for it grows
    with every sharpening. T is then at most 1, and as small as lets the mean confidence be (n + 1) / (n + 2), which is
    what n successes in n trials give reason to expect of the next (Laplace's rule of succession).
    """
    from scipy.optimize import brentq, minimize_scalar

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    if (logits.argmax(axis=1) == labels).all():
        expected = (len(labels) + 1) / (len(labels) + 2)

        def excess(log_temperature: float) -> float:
            confidence = np.exp(log_softmax(logits / math.exp(log_temperature)).max(axis=1))
            return float(confidence.mean()) - expected

        if excess(0.0) >= 0:
            return 1.0
        return MIN_TEMPERATURE if excess(bounds[0]) <= 0 else math.exp(brentq(excess, bounds[0], 0.0, xtol=1e-6))

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits / math.exp(log_temperature), labels)

    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(math.exp(found.x))


def _fit_temperature(logits: Logits, labels: Labels) -> Scaling:
    classes = logits.shape[1]
    return Scaling("temperature", np.full(classes, 1 / fit_temperature(logits, labels)), np.zeros(classes))


def _fit_vector(logits: Logits, labels: Labels) -> Scaling:
    """Fits scales and biases by L-BFGS, from the temperature on.

    Scales, as multiples of the temperature's, and biases have Gaussian priors of deviation 1 around 1 and 0: together
    they weigh as much as a handful of images. Without them the bias of a class that validation lacks would go to minus
    infinity, and likewise those of a split without a mistake.
    """
    from scipy.optimize import minimize

    count, classes = logits.shape
    start = _fit_temperature(logits, labels)
    scaled = logits.astype(np.float64) * start.scale
    rows = np.arange(count)

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        scale, bias = values[:classes], values[classes:]
        logarithms = log_softmax(scaled * scale + bias)
        likelihood = -logarithms[rows, labels].sum()
        error = np.exp(logarithms)
        error[rows, labels] -= 1.0
        prior = 0.5 * (((scale - 1) ** 2).sum() + (bias**2).sum())
        gradient = np.concatenate([(error * scaled).sum(axis=0) + scale - 1, error.sum(axis=0) + bias])
        return float(likelihood + prior) / count, gradient / count

    bounds = [(MIN_TEMPERATURE, MAX_TEMPERATURE)] * classes + [(None, None)] * classes
    begin = np.concatenate([np.ones(classes), np.zeros(classes)])
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200}).x
    return Scaling("vector", start.scale * found[:classes], found[classes:])


def _fit_isotonic(logits: Logits, labels: Labels) -> Scaling:
    """Fits a temperature, and to the confidence that it leaves the nearest monotone map onto being right.

    Isotonic regression is a staircase. Each step counts as one point at the mean confidence of its images, and the map
    is linear between them (centred isotonic regression, Oron and Flournoy 2017): next to a step's edge the rounding of
    an integer model would decide which step it is.

    Mapped confidences keep to 1 / (n + 2)..(n + 1) / (n + 2): n images are no reason to be surer (rule of succession),
    and a confidence of 1 would make one mistake infinitely unlikely.
    """
    from sklearn.isotonic import IsotonicRegression

    start = _fit_temperature(logits, labels)
    scaled = logits * start.scale
    confidence = np.exp(log_softmax(scaled).max(axis=1))
    correct = scaled.argmax(axis=1) == labels
    least = 1 / (len(labels) + 2)
    model = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    steps, which = np.unique(model.fit_transform(confidence, correct), return_inverse=True)
    centres = np.bincount(which, confidence) / np.bincount(which)
    points = dict(zip(np.minimum(centres, 1.0).tolist(), steps.tolist(), strict=True))
    return Scaling("isotonic", start.scale, start.bias, ConfidenceMap(tuple(points), tuple(points.values())))


_FITS: Mapping[Method, Callable[[Logits, Labels], Scaling]] = {
    "temperature": _fit_temperature,
    "vector": _fit_vector,
    "isotonic": _fit_isotonic,
    "none": lambda logits, _labels: identity(logits.shape[1]),
}


def doubts(method: Method, logits: Logits, labels: Labels, *, seed: int = 0) -> list[str]:
    """Returns why a method may not be trusted on a validation split, a sentence each; nothing where it may.

    Fitted on four fifths and judged on the fifth, five times, it should not be less likely than doing nothing.

    Args:
        method: Which one.
        logits: `(images, classes)` of the validation split.
        labels: `(images,)`.
        seed: Of the folds.
    """
    if method == "none":
        return []
    count, classes = logits.shape
    found = []
    if count < _FEW_IMAGES:
        found.append(f"Validation has {count} images, which is few to calibrate confidence with.")
    if (logits.argmax(axis=1) == labels).all():
        found.append("Every validation image is classified correctly, so nothing tells how far to trust confidence.")
    missing = classes - len(np.unique(labels))
    if missing and method == "vector":
        found.append(f"Validation lacks {missing} of {classes} classes, whose scale and bias only the others shape.")
    if count >= 2 * FOLDS:
        before, after = cross_validated(method, logits, labels, seed=seed)
        if after > before * (1 + _TOLERANCE):
            found.append(
                f"Calibration by {method} worsens the negative log-likelihood in cross-validation from {before:.4f} to "
                f"{after:.4f}: give more validation images, or choose another calibrate.method."
            )
    return found


def cross_validated(method: Method, logits: Logits, labels: Labels, *, seed: int = 0) -> tuple[float, float]:
    """Returns the mean negative log-likelihood without calibration and with it, in five-fold cross-validation."""
    fold = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels)) % FOLDS
    after = 0.0
    for index in range(FOLDS):
        held = fold == index
        after += float(fit(method, logits[~held], labels[~held]).likelihood(logits[held], labels[held]).sum())
    return negative_log_likelihood(logits, labels), after / len(labels)

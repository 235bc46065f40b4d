"""The temperature of an int8 file, fitted anew where quantization shifted the confidence.

The network's own temperature was fitted on the validation images (Guo et al. 2017) and lies in its last layer. The
noise of 8 bits can make an int8 file of it more or less sure than it is right. Whether it did is judged on the same
images by a likelihood ratio: the temperature that suits the float file is the hypothesis, that which suits the int8
file the alternative. Twice the difference of the log-likelihoods that both give the int8 file's answers has a
chi-square distribution with one degree of freedom if the hypothesis holds (Wilks 1938).

The reference is the float file of the same runtime and its own best temperature, not the number 1: what is undone is
what quantization did, and nothing else. For a network of ours that temperature is 1, since it was fitted on the same
images and folded; a model of one's own keeps the confidence that it came with. The test takes the reference as given.
It does not use that both files answer the same images, and so leaves shifts alone that are smaller than the error that
the validation images leave of any temperature: to fold those would exchange one error for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.calibration.methods import fit_temperature
from pipeline.errors import UnsupportedModelError
from pipeline.metrics import Labels, Logits, negative_log_likelihood
from pipeline.quantization.quantizer import Quantizer

SHIFTED = 3.841
"""The 95 % quantile of the chi-square distribution with one degree of freedom."""

_ROUNDING = 1e-6
"""Nats by which likelihoods differ for no reason."""

Answer = Callable[[Path], Logits]
"""Runs a file over the validation images and gives its logits `(images, classes)`."""


@dataclass(frozen=True)
class Shift:
    """How far quantization moved the confidence.

    Attributes:
        fitted: The temperature that suits the int8 file best.
        float_fitted: That which suits the float file best.
        statistic: Of the likelihood-ratio test; None where the images can't tell.
    """

    fitted: float
    float_fitted: float
    statistic: float | None

    @property
    def is_certain(self) -> bool:
        """Whether chance is no likely explanation."""
        return self.statistic is not None and self.statistic > SHIFTED

    @property
    def factor(self) -> float:
        """What the int8 file's logits are to be multiplied by."""
        return self.float_fitted / self.fitted


def measure_shift(logits: Logits, floats: Logits | None, labels: Labels) -> Shift:
    """Compares the temperatures that suit two files.

    Args:
        logits: Of the int8 file `(images, classes)`.
        floats: Of the float file; None stands for a temperature of 1.
        labels: `(images,)`.
    """
    fitted = fit_temperature(logits, labels)
    expected = 1.0 if floats is None else fit_temperature(floats, labels)
    if any((each.argmax(axis=1) == labels).all() for each in (logits, floats) if each is not None):
        return Shift(fitted, expected, None)  # the likelihood then grows with every sharpening
    difference = negative_log_likelihood(logits / expected, labels) - negative_log_likelihood(logits / fitted, labels)
    return Shift(fitted, expected, max(0.0, 2 * len(labels) * difference))


def refit(
    quantizer: Quantizer,
    path: Path,
    out_path: Path,
    *,
    answer: Answer,
    floats: Logits | None,
    labels: Labels,
    output: str,
) -> dict[str, Any]:
    """Folds a temperature into a quantized file if quantization shifted its confidence.

    Args:
        quantizer: Of the runtime.
        path: The file.
        out_path: Is written only if something was folded.
        answer: Runs a file on the validation images.
        floats: What the float file answers to them; None for a network whose temperature is folded already.
        labels: Of the validation images.
        output: Name of the logits.

    Returns:
        For the manifest: `images`; `fitted` and `float_fitted` (temperatures), `statistic`; `folded`, and where it is
        false `reason`; `nll_before` and `nll_after`, the mean negative log-likelihood on the validation images, the
        latter None where nothing was folded.
    """
    before = answer(path)
    shift = measure_shift(before, floats, labels)
    record: dict[str, Any] = {
        "images": len(labels),
        "fitted": shift.fitted,
        "float_fitted": shift.float_fitted,
        "statistic": shift.statistic,
        "folded": False,
        "nll_before": negative_log_likelihood(before, labels),
        "nll_after": None,
        "reason": None,
    }
    if shift.statistic is None:
        return record | {"reason": "Every validation image is classified right, so that none tells how sure to be."}
    if not shift.is_certain:
        return record | {"reason": "Quantization did not shift the confidence by more than chance does."}
    try:
        quantizer.scale_output(path, shift.factor, out_path, output=output)
    except UnsupportedModelError as error:
        return record | {"reason": error.message}
    after = answer(out_path)
    likelihood = negative_log_likelihood(after, labels)
    if (after.argmax(axis=1) != before.argmax(axis=1)).any():
        return record | {"reason": "The multiplied file answers with other classes, so the file is left as it is."}
    if not np.isfinite(likelihood) or likelihood > record["nll_before"] + _ROUNDING:
        return record | {"reason": "The file is less likely to be right with it, so it is left as it is."}
    return record | {"folded": True, "nll_after": likelihood}

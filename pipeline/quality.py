"""How well a model does its task, by the metric that the task has, with an interval.

| metric | compares | better | loss against the reference |
|---|---|---|---|
| `top1` | the largest output with the label | higher | difference |
| `auc` | scores with labels 0 and 1: area under the ROC curve | higher | difference |
| `mse` | values with targets: mean squared error | lower | relative increase |

The score of `auc` is the output of a model with one, the difference of two, or, where the output has the shape of the
input, how badly an autoencoder reconstructs it. Without targets, `mse` takes the input for what an autoencoder should
give.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from devices.board.confidence import ConfidenceMap
from pipeline.calibration.measures import measures
from pipeline.errors import InputError
from pipeline.metrics import count_correct
from pipeline.signature import Metric, OutputKind

Values = npt.NDArray[Any]

_RESAMPLES = 1000


def quality(
    metric: Metric | None,
    outputs: Values,
    *,
    kind: OutputKind,
    inputs: Values,
    labels: Values | None,
    targets: Values | None,
    confidence_map: ConfidenceMap | None = None,
) -> dict[str, Any]:
    """Judges what a model answered.

    Args:
        metric: What is judged; None judges nothing.
        outputs: The first output, `(count, ...)`.
        kind: What its values are.
        inputs: The first input as the model took it, `(count, ...)`.
        labels: Whole numbers `(count,)`, for `top1` and `auc`.
        targets: Values of the outputs' shape, for `mse`.
        confidence_map: What follows the softmax of a classifier, if anything.

    Returns:
        `metric`, `value` and `interval` (95 %); for `top1` also `correct` and what
        `pipeline.calibration.measures.measures` gives. Nothing without a metric.

    Raises:
        InputError: There is nothing to compare with, or it has another shape.
    """
    if metric is None:
        return {}
    if metric == "mse":
        value, interval = _mean_with_interval(_squared_errors(outputs, inputs, targets))
        return {"metric": metric, "value": value, "interval": interval}
    if labels is None:
        raise InputError(f"The metric {metric} needs labels: add an array `labels` (count,) to the data.")
    if metric == "top1":
        return {"metric": metric, **_top1(outputs, labels, kind, confidence_map)}
    value, interval = _auc(_scores(outputs, inputs), labels)
    return {"metric": metric, "value": value, "interval": interval}


def loss_against(metric: Metric | None, value: float, reference: float) -> float | None:
    """Returns how much worse a value is than the reference's: a difference, for `mse` a share; negative if better."""
    if metric is None:
        return None
    if metric == "mse":
        return (value - reference) / reference if reference > 0 else float(value > 0)
    return reference - value


def as_logits(outputs: Values, kind: OutputKind) -> npt.NDArray[np.float32]:
    """Returns outputs of a classifier as logits: of probabilities, their logarithm."""
    if kind != "probabilities":
        return outputs.astype(np.float32)
    return np.log(np.maximum(outputs.astype(np.float64), 1e-12)).astype(np.float32)


def _top1(outputs: Values, labels: Values, kind: OutputKind, confidence_map: ConfidenceMap | None) -> dict[str, Any]:
    if outputs.ndim != 2 or labels.max(initial=0) >= outputs.shape[1]:
        raise InputError(
            f"top1 needs an output (1, classes) with a class for each label; the output has the shape "
            f"{(1, *outputs.shape[1:])}, the labels reach to {int(labels.max(initial=0))}."
        )
    logits = as_logits(outputs, kind)
    found = measures(logits, labels, confidence_map)
    return {
        "value": found["accuracy"],
        "interval": found["accuracy_interval"],
        "correct": count_correct(logits, labels),
        **found,
    }


def _squared_errors(outputs: Values, inputs: Values, targets: Values | None) -> npt.NDArray[np.float64]:
    expected = inputs if targets is None else targets
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    others = expected.reshape(len(expected), -1).astype(np.float64)
    if rows.shape != others.shape:
        what = "the input, for there are no targets," if targets is None else "the targets"
        raise InputError(
            f"mse compares the output {outputs.shape[1:]} with {what} {expected.shape[1:]}: add an array `targets` "
            f"with the shape of the output to the data, or leave the metric out."
        )
    result: npt.NDArray[np.float64] = ((rows - others) ** 2).mean(axis=1)
    return result


def _scores(outputs: Values, inputs: Values) -> npt.NDArray[np.float64]:
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    if rows.shape[1] == 1:
        return rows[:, 0]
    if rows.shape[1] == 2:
        return rows[:, 1] - rows[:, 0]
    if outputs.shape == inputs.shape:
        return _squared_errors(outputs, inputs, None)
    raise InputError(
        f"auc needs one score a sample, two logits, or an output of the input's shape; the output has the shape "
        f"{(1, *outputs.shape[1:])}."
    )


def _auc(scores: npt.NDArray[np.float64], labels: Values) -> tuple[float, list[float]]:
    kinds = set(np.unique(labels).tolist())
    if kinds != {0, 1}:
        raise InputError(f"auc needs labels 0 and 1, both of them; the test samples have {sorted(kinds)}.")
    generator = np.random.Generator(np.random.PCG64(0))
    drawn: list[float] = []
    while len(drawn) < _RESAMPLES:
        rows = generator.integers(0, len(labels), len(labels))
        if 0 < labels[rows].sum() < len(labels):
            drawn.append(_area(scores[rows], labels[rows]))
    return _area(scores, labels), _percentiles(drawn)


def _area(scores: npt.NDArray[np.float64], labels: Values) -> float:
    """Returns the area under the ROC curve from the ranks of the scores (Mann and Whitney 1947); ties count half."""
    from scipy.stats import rankdata

    positive = labels == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    ranks = float(rankdata(scores)[positive].sum())
    return (ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def _mean_with_interval(errors: npt.NDArray[np.float64]) -> tuple[float, list[float]]:
    generator = np.random.Generator(np.random.PCG64(0))
    drawn = [float(errors[generator.integers(0, len(errors), len(errors))].mean()) for _ in range(_RESAMPLES)]
    return float(errors.mean()), _percentiles(drawn)


def _percentiles(drawn: list[float]) -> list[float]:
    """Returns the 2.5th and 97.5th percentile of a bootstrap (Efron 1979)."""
    return [float(value) for value in np.percentile(drawn, [2.5, 97.5])]

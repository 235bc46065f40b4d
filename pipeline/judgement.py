"""Quality of a model on a set of samples, alone and beside the reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.board.confidence import ConfidenceMap
from pipeline.calibration.measures import calibration_change
from pipeline.quality import as_logits, loss_against, quality
from pipeline.quantization.comparison import compare_accuracy
from pipeline.samples import SampleSet
from pipeline.signature import OutputKind, OutputTensor, Signature

Values = npt.NDArray[Any]

_ROUNDING = 1e-3
"""How far a row of probabilities may be from a sum of one."""

UNJUDGED: dict[str, Any] = {
    "metric": None,
    "accuracy": None,
    "accuracy_interval": None,
    "ece": None,
    "ece_interval": None,
}
"""What stands for the quality of a model without a metric."""


def judge(
    signature: Signature, output: Values, samples: SampleSet, confidence_map: ConfidenceMap | None = None
) -> dict[str, Any]:
    """Judges a model's first output by the metric of its signature.

    Args:
        signature: Of the model.
        output: `(count, ...)`; where there are fewer labels than samples, the first ones are judged.
        samples: What it was given.
        confidence_map: What follows the softmax of a classifier, if anything.

    Returns:
        `metric`, `accuracy` (the metric's value), `accuracy_interval`, `ece`, `ece_interval`, and for a classifier
        `correct` and the other measures of `pipeline.calibration.measures`; all None without a metric.

    Raises:
        InputError: The samples have nothing to compare with, or the output has another form.
    """
    if signature.metric is None:
        return dict(UNJUDGED)
    labels = None if samples.labels is None else np.load(samples.labels)
    count = len(output) if labels is None else len(labels)
    found = quality(
        signature.metric,
        output[:count],
        kind=signature.outputs[0].kind,
        inputs=_first_inputs(signature, samples, count),
        labels=labels,
        targets=None if samples.targets is None else np.load(samples.targets)[:count],
        confidence_map=confidence_map,
    )
    return {
        **UNJUDGED,
        "test_images": count,
        **found,
        "accuracy": found.pop("value"),
        "accuracy_interval": found.pop("interval"),
    }


def compare_quality(
    signature: Signature,
    samples: SampleSet,
    output: Values,
    reference: Values,
    confidence_map: ConfidenceMap | None = None,
) -> dict[str, Any]:
    """Judges a model and says how much worse it is than the reference on the same samples.

    Returns:
        As `judge`, with `reference_accuracy` and `accuracy_drop` (see `pipeline.quality.loss_against`), and for a
        classifier `paired` (the fields of `pipeline.quantization.comparison.AccuracyDrop`), `reference_ece`,
        `ece_change` and `ece_change_interval` (see `pipeline.calibration.measures.calibration_change`).

    Raises:
        InputError: As `judge`.
    """
    own, other = (judge(signature, each, samples, confidence_map) for each in (output, reference))
    drop = loss_against(signature.metric, own["accuracy"], other["accuracy"]) if signature.metric else None
    found = {**own, "reference_accuracy": other["accuracy"], "accuracy_drop": drop}
    if signature.is_classifier and samples.labels is not None:
        labels, kind = np.load(samples.labels), signature.outputs[0].kind
        logits, references = (as_logits(each[: len(labels)], kind) for each in (output, reference))
        right, expected = (each.argmax(axis=1) == labels for each in (logits, references))
        found |= {
            "paired": asdict(compare_accuracy(expected, right)),
            "reference_ece": other["ece"],
            **calibration_change(logits, references, labels, confidence_map),
        }
    return found


def _first_inputs(signature: Signature, samples: SampleSet, count: int) -> Values:
    """Returns the first input as the model takes it, where a metric compares with it; else nothing."""
    if signature.metric == "top1" or samples.targets is not None:
        return np.empty((count, 0))
    name = signature.inputs[0].name
    return np.concatenate([sample[name] for _, sample in zip(range(count), samples, strict=False)])


def completed(signature: Signature, output: npt.NDArray[Any], samples: SampleSet) -> Signature:
    """Returns the signature with what the samples and the answers tell about the first output.

    Labelled samples and one value a class make a classifier; rows that are no logits but sum to one are
    probabilities.
    """
    first = signature.outputs[0]
    metric = signature.metric
    if metric is None and samples.labels is not None and output.ndim == 2:
        labels = np.load(samples.labels)
        metric = "top1" if 2 <= output.shape[1] > int(labels.max(initial=0)) else None
    kind: OutputKind = first.kind
    if metric == "top1" and kind == "values":
        sums = output.astype(np.float64).sum(axis=1)
        kind = "probabilities" if output.min() >= 0 and np.abs(sums - 1).max() < _ROUNDING else "logits"
    shape = (1, *output.shape[1:]) if -1 in first.shape else first.shape
    outputs = (OutputTensor(name=first.name, dtype=first.dtype, shape=shape, kind=kind), *signature.outputs[1:])
    return Signature(
        source=signature.source, model=signature.model, inputs=signature.inputs, outputs=outputs, metric=metric
    )

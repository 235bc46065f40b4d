"""Probabilities of the classes, where a map of the top class's confidence may follow the softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from devices.board.confidence import ConfidenceMap
from pipeline.metrics import Logits, log_softmax


def log_probabilities(logits: Logits, confidence_map: ConfidenceMap | None) -> npt.NDArray[np.float64]:
    """Returns the logarithms of the probabilities `(images, classes)`.

    With a map, the class of the largest logit gets its mapped confidence, and what is left is shared among the others
    in proportion to their probabilities, so that the sum is one and only the top class's standing changes.
    """
    values = log_softmax(logits)
    if confidence_map is None or values.shape[1] < 2:
        return values
    rows, top = np.arange(len(values)), logits.argmax(axis=1)
    mapped = confidence_map.apply(np.exp(values[rows, top]))
    values[rows, top] = -np.inf
    rest = values - values.max(axis=1, keepdims=True)
    values = np.asarray(rest - np.log(np.exp(rest).sum(axis=1, keepdims=True)) + np.log1p(-mapped)[:, None])
    values[rows, top] = np.log(mapped)
    return values

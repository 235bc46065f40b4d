"""From logits to how sure a model is: the only implementation, for calibration, evaluation and boards.

The confidence of a model is the largest of its probabilities, softmax(logits). A temperature or scales and biases of
the classes are folded into the model, so that nothing is left to do. A monotone map of the confidence can't be folded:
it lies beside the model as `calibration.json` and is applied here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np

CONFIDENCE_FILE = "calibration.json"
CONFIDENCE_SCHEMA = 1

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class ConfidenceMap:
    """A monotone map of the top class's confidence, linear between its points and constant outside of them.

    Attributes:
        confidence: At least one, strictly increasing, in 0..1.
        calibrated: What each becomes, never decreasing, above 0 and below 1.

    Raises:
        ValueError: The points are no such map.
    """

    confidence: Tuple[float, ...]
    calibrated: Tuple[float, ...]

    def __post_init__(self) -> None:
        inputs, outputs = self.confidence, self.calibrated
        if not inputs or len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} confidences have {len(outputs)} calibrated ones; expected one for each")
        if not all(0 <= value <= 1 for value in inputs) or any(a >= b for a, b in zip(inputs, inputs[1:])):
            raise ValueError("the confidences of the map do not increase strictly from 0 to 1")
        if not all(0 < value < 1 for value in outputs) or any(a > b for a, b in zip(outputs, outputs[1:])):
            raise ValueError("the calibrated confidences decrease, or are not between 0 and 1")

    def apply(self, confidence: Array[Any, Any]) -> Array[Any, Any]:
        """Returns calibrated confidences, float64, in the shape of the given ones."""
        mapped: Array[Any, Any] = np.interp(confidence, self.confidence, self.calibrated)
        return mapped

    def to_json(self) -> Dict[str, Any]:
        """Returns what `calibration.json` holds."""
        return {
            "schema_version": CONFIDENCE_SCHEMA,
            "confidence": list(self.confidence),
            "calibrated": list(self.calibrated),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ConfidenceMap:
        """Returns the map that `to_json` gave.

        Raises:
            ValueError: The record is of another form, or its points are no map.
        """
        if not isinstance(record, Mapping) or record.get("schema_version") != CONFIDENCE_SCHEMA:
            raise ValueError(f"the map of confidences is not of form {CONFIDENCE_SCHEMA}")
        try:
            points = [tuple(float(value) for value in record[name]) for name in ("confidence", "calibrated")]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the map of confidences lacks its points: {error}") from error
        return cls(*points)


def read_confidence_map(directory: str) -> Optional[ConfidenceMap]:
    """Returns the map that lies beside a model; None where its confidence is softmax(logits) as it is.

    Raises:
        ValueError: The file is damaged.
    """
    path = os.path.join(directory, CONFIDENCE_FILE)
    try:
        with open(path, encoding="utf-8") as stream:
            return ConfidenceMap.from_json(json.load(stream))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} can't be used: {error}") from error


def top_class(logits: Array[Any, Any], confidence_map: Optional[ConfidenceMap]) -> Tuple[Any, Any]:
    """Returns the class of the largest logit, the first one on a tie, and the calibrated confidence in it.

    Args:
        logits: `(count, classes)`.
        confidence_map: Of the model, as `read_confidence_map` finds it.

    Returns:
        Classes, integers `(count,)`, and confidences, float64 `(count,)`, in 0..1.
    """
    values = np.asarray(logits, np.float64)
    top = values.argmax(axis=1)
    confidence = 1.0 / np.exp(values - values.max(axis=1, keepdims=True)).sum(axis=1)
    return top, confidence if confidence_map is None else confidence_map.apply(confidence)


def probabilities(logits: Array[Any, Any], confidence_map: Optional[ConfidenceMap]) -> Array[Any, Any]:
    """Returns the calibrated probabilities of one image, float64 `(classes,)`, which sum up to 1.

    With a map, the class of the largest logit gets its mapped confidence, and the others share what is left in
    proportion to their probabilities.

    Args:
        logits: `(classes,)`, at least one.
        confidence_map: Of the model, as `read_confidence_map` finds it.
    """
    values = np.asarray(logits, np.float64)
    top = int(values.argmax())
    shares: Array[Any, Any] = np.exp(values - values[top])
    if confidence_map is None or len(values) < 2:
        return np.asarray(shares / shares.sum())
    confidence = float(confidence_map.apply(1.0 / shares.sum()))
    # Computed from the largest of the others, so that a sure model does not leave a quotient of two zeros.
    values = values.copy()
    values[top] = -np.inf
    shares = np.exp(values - values.max())
    shares *= (1.0 - confidence) / shares.sum()
    shares[top] = confidence
    return shares

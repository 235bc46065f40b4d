"""A runtime of one linear layer, so that everything around runtimes can be tried without one.

A `.fake` file is an `.npz` archive with `weights` float32 `(height * width * 3, classes)`, `bias` float32
`(classes,)`, and optionally `shape` int `(height, width, 3)`, `kind` (a text) and `behaviour`: `ok`, `reject`
(raises while loading), `crash` (SIGSEGV while loading), `crash_on_infer`, `hang` (never comes back from an
inference).
"""

from __future__ import annotations

import math
import os
import signal
import time
from typing import Any, Callable, Dict, Tuple

import numpy as np

from ..errors import ModelRejected
from .contract import check_image, tensor_record

BEHAVIOURS = ("ok", "reject", "crash", "crash_on_infer", "hang")


def _die() -> None:
    """Ends the process as a fault in native code does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    while True:
        time.sleep(3600)


class FakeRunner:
    """A `.fake` file: logits = flattened image / 255 @ weights + bias, in float32.

    Args:
        die: Stands in for a native crash.
        hang: Stands in for an inference that never ends.
    """

    def __init__(self, die: Callable[[], None] = _die, hang: Callable[[], None] = _hang) -> None:
        self._die, self._hang = die, hang
        self._behaviour, self._kind = "ok", ""
        self._shape: Tuple[int, ...] = ()
        self._weights: np.ndarray[Any, Any] = np.zeros((0, 0), np.float32)
        self._bias: np.ndarray[Any, Any] = np.zeros(0, np.float32)

    def load(self, path: str, *, num_threads: int) -> None:  # noqa: ARG002 (it has no threads)
        """See `Runner`."""
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
                self._weights, self._bias = archive["weights"], archive["bias"]
                self._behaviour = str(archive["behaviour"]) if "behaviour" in archive else "ok"
                self._kind = str(archive["kind"]) if "kind" in archive else ""
                shape = [int(size) for size in archive["shape"]] if "shape" in archive else _square(self._weights)
        except Exception as error:
            raise ModelRejected(f"the fake runtime refuses {path}: {error}") from error
        problem = _problem(self._weights, self._bias, shape, self._behaviour)
        if problem:
            raise ModelRejected(f"the fake runtime refuses {path}: {problem}")
        self._shape = (1, *shape)
        if self._behaviour == "crash":
            self._die()

    def infer(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See `Runner`."""
        check_image(image, self._shape, "uint8")
        if self._behaviour == "crash_on_infer":
            self._die()
        if self._behaviour == "hang":
            self._hang()
        features = image.reshape(1, -1).astype(np.float32) / np.float32(255)
        logits: np.ndarray[Any, Any] = features @ self._weights + self._bias
        return logits

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {
            "runtime": "fake",
            "package": "",
            "version": "1",
            "kind": self._kind,
            "input": tensor_record("image", self._shape, "uint8"),
            "outputs": [tensor_record("logits", (1, len(self._bias)), "float32")],
        }


def _square(weights: np.ndarray[Any, Any]) -> list[int]:
    """The shape of a square RGB image with as many values as the weights have rows."""
    side = math.isqrt(weights.shape[0] // 3)
    return [side, side, 3]


def _problem(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], shape: list[int], behaviour: str) -> str:
    """What is wrong with the archive, or nothing."""
    if weights.ndim != 2 or bias.ndim != 1 or weights.dtype != np.float32 or bias.dtype != np.float32:
        return "expected weights float32 (features, classes) and bias float32 (classes,)"
    if weights.shape[1] != bias.shape[0]:
        return f"weights have {weights.shape[1]} classes, bias has {bias.shape[0]}"
    if len(shape) != 3 or math.prod(shape) != weights.shape[0]:
        return f"{weights.shape[0]} features do not make an image of shape {tuple(shape)}; store `shape` as well"
    if behaviour not in BEHAVIOURS:
        return f"behaviour '{behaviour}' is unknown; expected one of: {', '.join(BEHAVIOURS)}"
    return "behaviour 'reject' was asked for" if behaviour == "reject" else ""

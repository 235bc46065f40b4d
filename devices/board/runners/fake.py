"""A runtime of one linear layer, so that everything around runtimes can be tried without one.

A `.fake` file is an `.npz` archive with `weights` float32 `(height * width * 3, classes)`, `bias` float32
`(classes,)`, and optionally `shape` int `(height, width, 3)`, `kind` (a text) and `behaviour`: `ok`, `reject`
(raises while loading), `crash` (SIGSEGV while loading), `crash_on_infer`, `hang` (never comes back from an
inference), `hang_on_ones` (nor from one of nothing but ones).

Instead of `shape` it may have `tensors`, a JSON text of `inputs` and `outputs` as in `describe`: then the layer
goes from the real values of all inputs, one after another, to those of all outputs.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from ..errors import ModelRejected
from ..quantization import dequantize, quantize
from .contract import Feed, InputShapes, check_inputs, make_feeds, tensor_record

BEHAVIOURS = ("ok", "reject", "crash", "crash_on_infer", "hang", "hang_on_ones")


def _die() -> None:
    """Ends the process as a fault in native code does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    while True:
        time.sleep(3600)


def import_fake() -> None:
    """It has nothing to import."""


class FakeRunner:
    """A `.fake` file: logits = flattened image / 255 @ weights + bias, in float32; with `tensors`, without the 255.

    Args:
        die: Stands in for a native crash.
        hang: Stands in for an inference that never ends.
    """

    def __init__(self, die: Callable[[], None] = _die, hang: Callable[[], None] = _hang) -> None:
        self._die, self._hang = die, hang
        self._behaviour, self._kind = "ok", ""
        self._divisor = np.float32(255)
        self._records: Dict[str, List[Dict[str, Any]]] = {}
        self._feeds: List[Feed] = []
        self._weights: np.ndarray[Any, Any] = np.zeros((0, 0), np.float32)
        self._bias: np.ndarray[Any, Any] = np.zeros(0, np.float32)

    def load(
        self,
        path: str,
        *,
        num_threads: int,  # noqa: ARG002 (it has no threads)
        input_shapes: Optional[InputShapes] = None,
    ) -> None:
        """See `Runner`."""
        shape: List[int] = []
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
                self._weights, self._bias = archive["weights"], archive["bias"]
                self._behaviour = str(archive["behaviour"]) if "behaviour" in archive else "ok"
                self._kind = str(archive["kind"]) if "kind" in archive else ""
                if "tensors" in archive:
                    self._divisor, self._records = np.float32(1), _tensors(str(archive["tensors"]))
                else:
                    shape = [int(size) for size in archive["shape"]] if "shape" in archive else _square(self._weights)
        except Exception as error:
            raise ModelRejected(f"the fake runtime refuses {path}: {error}") from error
        problem = _problem(self._weights, self._bias, self._behaviour)
        if not problem and not self._records:
            problem = _image_problem(self._weights, shape)
            self._records = {
                "inputs": [tensor_record("image", (1, *shape), "uint8")],
                "outputs": [tensor_record("logits", (1, len(self._bias)), "float32")],
            }
        if problem:
            raise ModelRejected(f"the fake runtime refuses {path}: {problem}")
        self._feeds = make_feeds(self._records["inputs"], input_shapes)
        features = sum(math.prod(feed.shape) for feed in self._feeds)
        if features != self._weights.shape[0]:
            raise ModelRejected(
                f"the fake runtime refuses {path}: its inputs hold {features} values, its weights take "
                f"{self._weights.shape[0]}"
            )
        if self._behaviour == "crash":
            self._die()

    def infer(self, inputs: Sequence[np.ndarray[Any, Any]]) -> List[np.ndarray[Any, Any]]:
        """See `Runner`."""
        check_inputs(inputs, self._feeds)
        if self._behaviour == "crash_on_infer":
            self._die()
        hangs_now = self._behaviour == "hang_on_ones" and all((array == 1).all() for array in inputs)
        if self._behaviour == "hang" or hangs_now:
            self._hang()
        reals = [_real(array, record).reshape(-1) for array, record in zip(inputs, self._records["inputs"])]
        answer = np.concatenate(reals)[np.newaxis] / self._divisor @ self._weights + self._bias
        outputs, begin = [], 0
        for record in self._records["outputs"]:
            end = begin + math.prod(record["shape"])
            outputs.append(_stored(answer[0, begin:end].reshape(record["shape"]), record))
            begin = end
        return outputs

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {"runtime": "fake", "package": "", "version": "1", "kind": self._kind, **self._records}


def _tensors(text: str) -> Dict[str, List[Dict[str, Any]]]:
    """The records of a JSON text; quantization may be left out."""
    return {
        kind: [
            tensor_record(
                record["name"],
                record["shape"],
                record["dtype"],
                quantization=record.get("quantization"),
                aliases=record.get("aliases", ()),
            )
            for record in records
        ]
        for kind, records in json.loads(text).items()
    }


def _real(array: np.ndarray[Any, Any], record: Dict[str, Any]) -> np.ndarray[Any, Any]:
    """The values that an input stands for, float32."""
    return array.astype(np.float32) if record["quantization"] is None else dequantize(array, record["quantization"])


def _stored(values: np.ndarray[Any, Any], record: Dict[str, Any]) -> np.ndarray[Any, Any]:
    """Values as an output holds them."""
    if record["quantization"] is not None:
        return quantize(values, record["quantization"], record["dtype"])
    stored: np.ndarray[Any, Any] = values.astype(record["dtype"])
    return stored


def _square(weights: np.ndarray[Any, Any]) -> list[int]:
    """The shape of a square RGB image with as many values as the weights have rows."""
    side = math.isqrt(weights.shape[0] // 3)
    return [side, side, 3]


def _problem(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], behaviour: str) -> str:
    """What is wrong with the archive, or nothing."""
    if weights.ndim != 2 or bias.ndim != 1 or weights.dtype != np.float32 or bias.dtype != np.float32:
        return "expected weights float32 (features, classes) and bias float32 (classes,)"
    if weights.shape[1] != bias.shape[0]:
        return f"weights have {weights.shape[1]} classes, bias has {bias.shape[0]}"
    if behaviour not in BEHAVIOURS:
        return f"behaviour '{behaviour}' is unknown; expected one of: {', '.join(BEHAVIOURS)}"
    return "behaviour 'reject' was asked for" if behaviour == "reject" else ""


def _image_problem(weights: np.ndarray[Any, Any], shape: list[int]) -> str:
    """What keeps the weights from taking an image of that shape, or nothing."""
    if len(shape) != 3 or math.prod(shape) != weights.shape[0]:
        return f"{weights.shape[0]} features do not make an image of shape {tuple(shape)}; store `shape` as well"
    return ""

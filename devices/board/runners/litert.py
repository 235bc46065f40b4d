"""LiteRT (TFLite) files through ai-edge-litert, or tflite-runtime on boards without a wheel of it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import ModelRejected, RuntimeMissing
from .contract import Feed, InputShapes, PreparedInputs, make_feeds
from .litert_cached import CACHE_SUFFIX, LiteRtCachedRunner
from .litert_records import litert_records


class LiteRtRunner:
    """A `.tflite` file on the CPU, with XNNPACK where the wheel has it; or a `.xnnpack` file, see `litert_cached`.

    Inputs and outputs are those of the first subgraph, in its order. Their names are the signature's where the
    file has exactly one: the names of the tensors are the converter's (`serving_default_image:0`).
    """

    def __init__(self) -> None:
        self._interpreter: Any = None
        self._package = self._version = ""
        self._records: Dict[str, List[Dict[str, Any]]] = {}
        self._feeds: List[Feed] = []
        self._inputs: List[int] = []
        self._outputs: List[int] = []
        self._prepared = PreparedInputs([], list)
        self._cached: Optional[LiteRtCachedRunner] = None

    def load(self, path: str, *, num_threads: int, input_shapes: Optional[InputShapes] = None) -> None:
        """See `Runner`."""
        if path.endswith(CACHE_SUFFIX):
            self._cached = LiteRtCachedRunner()
            self._cached.load(path, num_threads=num_threads, input_shapes=input_shapes)
            return
        interpreter_class, self._package, self._version = import_interpreter()
        try:
            interpreter = interpreter_class(model_path=path, num_threads=num_threads)
            inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
            self._records = litert_records(interpreter, inputs, outputs)
            self._feeds = make_feeds(self._records["inputs"], input_shapes)
            for detail, feed in zip(inputs, self._feeds):
                if tuple(detail["shape"]) != feed.shape:
                    interpreter.resize_tensor_input(detail["index"], feed.shape)
            interpreter.allocate_tensors()
        except ModelRejected:
            raise
        except Exception as error:
            raise ModelRejected(f"{self._package} {self._version} refuses {path}: {error}") from error
        self._inputs = [detail["index"] for detail in inputs]
        self._outputs = [detail["index"] for detail in outputs]
        self._interpreter = interpreter
        self._prepared = PreparedInputs(self._feeds, lambda arrays: list(zip(self._inputs, arrays)))

    def infer(self, inputs: Sequence[np.ndarray[Any, Any]]) -> List[np.ndarray[Any, Any]]:
        """See `Runner`."""
        if self._cached is not None:
            return self._cached.infer(inputs)
        interpreter = self._interpreter
        for index, array in self._prepared.of(inputs):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._outputs]

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        if self._cached is not None:
            return self._cached.describe()
        return {"runtime": "litert", "package": self._package, "version": self._version, **self._records}


def import_interpreter() -> Tuple[Any, str, str]:
    """The interpreter class, the package it is from, and that package's version.

    Raises:
        RuntimeMissing: Neither package is installed.
    """
    from importlib.metadata import version

    try:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter, "ai-edge-litert", version("ai-edge-litert")
    except ImportError as first:
        try:
            from tflite_runtime.interpreter import Interpreter

            return Interpreter, "tflite-runtime", version("tflite-runtime")
        except ImportError as second:
            raise RuntimeMissing(
                "no LiteRT runtime on this device: install ai-edge-litert (or, where it has no wheel, "
                f"tflite-runtime with numpy < 2). ai-edge-litert: {first}; tflite-runtime: {second}"
            ) from second

"""LiteRT (TFLite) files through ai-edge-litert, or tflite-runtime on boards without a wheel of it."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import numpy as np

from ..errors import ModelRejected, RuntimeMissing
from .contract import check_image, fixed_shape, only_input, tensor_record


class LiteRtRunner:
    """A `.tflite` file on the CPU, with XNNPACK where the wheel has it."""

    def __init__(self) -> None:
        self._interpreter: Any = None
        self._package = self._version = self._dtype = ""
        self._shape: Tuple[int, ...] = ()
        self._input = self._output = -1

    def load(self, path: str, *, num_threads: int) -> None:
        """See `Runner`."""
        interpreter_class, self._package, self._version = _import_interpreter()
        try:
            interpreter = interpreter_class(model_path=path, num_threads=num_threads)
            details = only_input([_record(detail) for detail in interpreter.get_input_details()])
            shape = fixed_shape(details)
            self._input = interpreter.get_input_details()[0]["index"]
            if list(shape) != [int(size) for size in interpreter.get_input_details()[0]["shape"]]:
                interpreter.resize_tensor_input(self._input, shape)
            interpreter.allocate_tensors()
        except ModelRejected:
            raise
        except Exception as error:
            raise ModelRejected(f"{self._package} {self._version} refuses {path}: {error}") from error
        self._shape, self._dtype = shape, details["dtype"]
        self._output = interpreter.get_output_details()[0]["index"]
        self._interpreter = interpreter

    def infer(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See `Runner`."""
        check_image(image, self._shape, self._dtype)
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        logits: np.ndarray[Any, Any] = self._interpreter.get_tensor(self._output)
        return logits

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {
            "runtime": "litert",
            "package": self._package,
            "version": self._version,
            "input": _record(self._interpreter.get_input_details()[0]),
            "outputs": [_record(detail) for detail in self._interpreter.get_output_details()],
        }


def _record(detail: Dict[str, Any]) -> Dict[str, Any]:
    signature: Optional[Any] = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) == 0 else signature
    return tensor_record(detail["name"], list(shape), np.dtype(detail["dtype"]).name)


def _import_interpreter() -> Tuple[Any, str, str]:
    """The interpreter class, the package it is from, and that package's version."""
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

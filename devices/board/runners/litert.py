"""LiteRT (TFLite) files through ai-edge-litert, or tflite-runtime on boards without a wheel of it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import ModelRejected, RuntimeMissing
from ..quantization import quantization_record
from .contract import Feed, InputShapes, PreparedInputs, make_feeds, tensor_record, with_distinct_names


class LiteRtRunner:
    """A `.tflite` file on the CPU, with XNNPACK where the wheel has it.

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

    def load(self, path: str, *, num_threads: int, input_shapes: Optional[InputShapes] = None) -> None:
        """See `Runner`."""
        interpreter_class, self._package, self._version = import_interpreter()
        try:
            interpreter = interpreter_class(model_path=path, num_threads=num_threads)
            inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
            self._records = _records(interpreter, inputs, outputs)
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
        interpreter = self._interpreter
        for index, array in self._prepared.of(inputs):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._outputs]

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {"runtime": "litert", "package": self._package, "version": self._version, **self._records}


def _records(
    interpreter: Any, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]
) -> Dict[str, List[Dict[str, Any]]]:
    """The records of `inputs` and `outputs`, with the signature's names where there is exactly one signature."""
    signed_inputs: Dict[str, Any] = {}
    signed_outputs: Dict[str, Any] = {}
    signatures = list(interpreter.get_signature_list())
    if len(signatures) == 1:
        signature = interpreter.get_signature_runner(signatures[0])
        signed_inputs, signed_outputs = signature.get_input_details(), signature.get_output_details()
    return {
        "inputs": with_distinct_names(_named(inputs, signed_inputs), "input"),
        "outputs": with_distinct_names(_named(outputs, signed_outputs), "output"),
    }


def _named(details: List[Dict[str, Any]], signed: Dict[str, Any]) -> List[Dict[str, Any]]:
    """A record for each tensor; a signature may give one tensor several names, and then lists it as often."""
    names: Dict[int, List[str]] = {}
    for name, detail in signed.items():
        names.setdefault(detail["index"], []).append(name)
    records = []
    for detail in details:
        left = names.get(detail["index"])
        records.append(_record(detail, left.pop(0) if left else detail["name"]))
    return records


def _record(detail: Dict[str, Any], name: str) -> Dict[str, Any]:
    signature: Optional[Any] = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) == 0 else signature
    dtype, scales = np.dtype(detail["dtype"]), detail["quantization_parameters"]
    quantization = None
    if dtype.kind in "iu":
        quantization = quantization_record(scales["scales"], scales["zero_points"], scales["quantized_dimension"])
    return tensor_record(name, list(shape), dtype.name, quantization=quantization, aliases=[detail["name"]])


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

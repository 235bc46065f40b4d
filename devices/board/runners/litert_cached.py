"""TFLite files with a cache of the weights as XNNPACK packs them, through LiteRT's CompiledModel.

The `Interpreter` of the same package has no option for the cache, CompiledModel has. A cache names neither the model
nor its weights: XNNPACK takes what lies in it for another model of the same structure too, and then answers for the
model that it was made of. So the agent never loads one without the digests of both files.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..companions import companion_of
from ..errors import ModelRejected, RuntimeMissing
from .contract import Feed, InputShapes, check_inputs, find_tensor, make_feeds
from .litert_records import litert_records

CACHE_SUFFIX = ".xnnpack"


class LiteRtCachedRunner:
    """A `.xnnpack` file and the `.tflite` file beside it."""

    def __init__(self) -> None:
        self._model: Any = None
        self._version = ""
        self._records: Dict[str, List[Dict[str, Any]]] = {}
        self._feeds: List[Feed] = []
        self._inputs: List[Any] = []
        self._outputs: List[Any] = []
        self._order: List[int] = []
        self._results: List[Any] = []

    def load(
        self, path: str, *, num_threads: int, input_shapes: Optional[InputShapes] = None, write: bool = False
    ) -> None:
        """See `Runner`.

        Args:
            path: Of the cache.
            num_threads: See `Runner`.
            input_shapes: See `Runner`; all dimensions of the file must be fixed.
            write: Whether the cache is to be made.
        """
        compiled_model, interpreter_class, self._version = import_compiled_model()
        model = companion_of(path) or path
        before = None if write else _state(path)
        try:
            interpreter = interpreter_class(model_path=model, num_threads=1)
            inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
            self._records = litert_records(interpreter, inputs, outputs)
            del interpreter
            self._feeds = make_feeds(self._records["inputs"], input_shapes)
            for detail, feed in zip(inputs, self._feeds):
                if tuple(detail["shape"]) != feed.shape:
                    raise ModelRejected(
                        f"input '{feed.name}' of {model} is of the shape {tuple(detail['shape'])}, not {feed.shape}; a "
                        "cache of weights is for models of fixed shapes: export the model with them"
                    )
            self._model = compiled_model.CompiledModel.from_file(model, options=_options(num_threads, path))
            self._prepare()
        except ModelRejected:
            raise
        except Exception as error:
            raise ModelRejected(f"ai-edge-litert {self._version} refuses {model} with {path}: {error}") from error
        if _state(path) is None or (before is not None and _state(path) != before):
            self._model = None
            raise ModelRejected(
                f"XNNPACK of ai-edge-litert {self._version} could not use the cache {path} on this processor and made "
                "it anew: it is of another version or another processor; compile the model for this device again"
            )

    def infer(self, inputs: Sequence[np.ndarray[Any, Any]]) -> List[np.ndarray[Any, Any]]:
        """See `Runner`."""
        check_inputs(inputs, self._feeds)
        for index, array in zip(self._order, inputs):
            self._inputs[index].write(array)
        self._model.run_by_index(0, self._inputs, self._outputs)
        return [self._outputs[index].read(size, dtype).reshape(shape) for index, size, dtype, shape in self._results]

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {"runtime": "litert", "package": "ai-edge-litert", "version": self._version, **self._records}

    def _prepare(self) -> None:
        """The buffers, which come in the order of the signature, beside the tensors in the order of the file."""
        signature = self._model.get_signature_by_index(0)
        self._inputs, self._outputs = self._model.create_input_buffers(0), self._model.create_output_buffers(0)
        self._order = _order(self._records["inputs"], signature["inputs"])
        self._results = []
        order = _order(self._records["outputs"], signature["outputs"])
        for record, index in zip(self._records["outputs"], order):
            shape = self._shape_of(record, signature["outputs"][index], signature["key"])
            self._results.append((index, int(np.prod(shape)), np.dtype(record["dtype"]).type, shape))

    def _shape_of(self, record: Dict[str, Any], name: str, key: str) -> List[int]:
        shape = record["shape"]
        if shape is None or None in shape:
            shape = [int(size) for size in self._model.get_output_tensor_details(key)[name]["shape"]]
        if any(size < 1 for size in shape):
            raise ModelRejected(f"output '{record['name']}' has no fixed shape; export the model with fixed shapes")
        return list(shape)


def _order(records: Sequence[Dict[str, Any]], names: Sequence[str]) -> List[int]:
    """For each record the place of its name in the signature."""
    places: Dict[int, int] = {}
    for place, name in enumerate(names):
        index = find_tensor(records, name)
        if index is not None:
            places[index] = place
    if len(places) != len(records):
        known = ", ".join(record["name"] for record in records)
        raise ModelRejected(f"the signature has the tensors {', '.join(names)}, the graph {known}: they don't agree")
    return [places[index] for index in range(len(records))]


def _options(num_threads: int, cache: str) -> Any:
    from ai_edge_litert.compiled_model import CpuOptions, HardwareAccelerator, Options

    return Options(
        hardware_accelerators=HardwareAccelerator.CPU,
        cpu_options=CpuOptions(num_threads=num_threads, xnnpack_weight_cache_path=cache),
    )


def _state(path: str) -> Any:
    """What changes where a file is written again; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def import_compiled_model() -> Any:
    """The module with CompiledModel, the interpreter's class, and the package's version.

    Raises:
        RuntimeMissing: The package is not installed, or is one without CompiledModel.
    """
    from importlib.metadata import version

    try:
        from ai_edge_litert import compiled_model
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise RuntimeMissing(
            "no LiteRT runtime that takes a cache of weights on this device: install ai-edge-litert 2.3 or later, or "
            f"run the .tflite file itself ({error})"
        ) from error
    return compiled_model, Interpreter, version("ai-edge-litert")

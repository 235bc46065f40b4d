"""ONNX files, and `.ort` files made of them, through ONNX Runtime's CPU provider."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..errors import ModelRejected, RuntimeMissing
from .contract import Feed, InputShapes, PreparedInputs, make_feeds, tensor_record

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeRunner:
    """A `.onnx` file on the CPU, all graph optimizations on; or a `.ort` file, which has them behind it."""

    def __init__(self) -> None:
        self._session: Any = None
        self._version = ""
        self._feeds: List[Feed] = []
        self._inputs: List[str] = []
        self._outputs: List[str] = []
        self._prepared = PreparedInputs([], list)

    def load(self, path: str, *, num_threads: int, input_shapes: Optional[InputShapes] = None) -> None:
        """See `Runner`."""
        onnxruntime = import_onnxruntime()
        self._version = onnxruntime.__version__
        options = session_options(num_threads)
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self._feeds = make_feeds([_record(node) for node in session.get_inputs()], input_shapes)
        except ModelRejected:
            raise
        except Exception as error:
            raise ModelRejected(f"onnxruntime {self._version} refuses {path}: {error}") from error
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [node.name for node in session.get_outputs()]
        self._session = session
        self._prepared = PreparedInputs(self._feeds, lambda arrays: dict(zip(self._inputs, arrays)))

    def infer(self, inputs: Sequence[np.ndarray[Any, Any]]) -> List[np.ndarray[Any, Any]]:
        """See `Runner`."""
        outputs: List[np.ndarray[Any, Any]] = self._session.run(self._outputs, self._prepared.of(inputs))
        return outputs

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {
            "runtime": "onnxruntime",
            "package": "onnxruntime",
            "version": self._version,
            "inputs": [_record(node) for node in self._session.get_inputs()],
            "outputs": [_record(node) for node in self._session.get_outputs()],
        }


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        RuntimeMissing: It is not installed.
    """
    # It would otherwise tell its makers of itself, from the import on.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(f"no ONNX Runtime on this device: install onnxruntime ({error})") from error
    return onnxruntime


def session_options(num_threads: int) -> Any:
    """The options of a session that is measured."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    # Threads that wait for work in a busy loop go on for a while after an inference. Stopping them at the
    # end of each run keeps an idle session from taking the cores of another process that is being
    # measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _record(node: Any) -> Dict[str, Any]:
    return tensor_record(node.name, node.shape, _DTYPES.get(node.type, node.type))

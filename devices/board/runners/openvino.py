"""OpenVINO models (`.xml` with `.bin`, also `.onnx`, `.blob`) through OpenVINO's CPU plugin."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..errors import ModelRejected, RuntimeMissing
from .contract import Feed, InputShapes, PreparedInputs, make_feeds, tensor_record, with_distinct_names

_DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "boolean": "bool"}
_DTYPES.update(
    {f"{kind}{bits}": f"{name}{bits}" for kind, name in (("u", "uint"), ("i", "int")) for bits in (8, 16, 32, 64)}
)


class OpenVinoRunner:
    """An OpenVINO model on the CPU, one stream, tuned for the latency of single inferences."""

    def __init__(self) -> None:
        self._request: Any = None
        self._compiled: Any = None
        self._tensor_class: Any = None
        self._answer: Optional[List[np.ndarray[Any, Any]]] = None
        self._version = ""
        self._records: Dict[str, List[Dict[str, Any]]] = {}
        self._feeds: List[Feed] = []
        self._prepared = PreparedInputs([], list)

    def load(self, path: str, *, num_threads: int, input_shapes: Optional[InputShapes] = None) -> None:
        """See `Runner`."""
        openvino = import_openvino()
        self._version = openvino.__version__.split("-")[0]
        if path.endswith(".xml") and not os.path.isfile(path[:-4] + ".bin"):
            raise ModelRejected(f"{path} has no weights: expected {path[:-4]}.bin beside it")
        try:
            core = openvino.Core()
            if path.endswith(".blob"):
                with open(path, "rb") as stream:
                    self._compiled = core.import_model(stream.read(), "CPU", plugin_config(num_threads))
                self._read_ports(self._compiled, input_shapes)
            else:
                model = core.read_model(path)
                # Read before the reshape, so that what the file leaves free is told as free.
                self._read_ports(model, input_shapes)
                if any(port.get_partial_shape().is_dynamic for port in model.inputs):
                    model.reshape({port: list(feed.shape) for port, feed in zip(model.inputs, self._feeds)})
                self._compiled = core.compile_model(model, "CPU", plugin_config(num_threads))
            self._request = self._compiled.create_infer_request()
            self._answer = own_outputs(openvino, self._compiled, self._request)
        except ModelRejected:
            raise
        except Exception as error:
            raise ModelRejected(f"openvino {self._version} refuses {path}: {error}") from error
        self._tensor_class = openvino.Tensor
        self._prepared = PreparedInputs(self._feeds, self._tensors)

    def export(self) -> bytes:
        """The model as the plugin has prepared it, which `load` takes as a `.blob` file."""
        content: bytes = self._compiled.export_model().getvalue()
        return content

    def infer(self, inputs: Sequence[np.ndarray[Any, Any]]) -> List[np.ndarray[Any, Any]]:
        """See `Runner`."""
        request = self._request
        for index, tensor in enumerate(self._prepared.of(inputs)):
            request.set_input_tensor(index, tensor)
        request.infer(share_outputs=True)
        if self._answer is not None:
            return list(self._answer)
        return [request.get_output_tensor(index).data for index in range(len(self._records["outputs"]))]

    def _tensors(self, inputs: Sequence[np.ndarray[Any, Any]]) -> List[Any]:
        return [self._tensor_class(array, shared_memory=True) for array in inputs]

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {"runtime": "openvino", "package": "openvino", "version": self._version, **self._records}

    def _read_ports(self, model: Any, input_shapes: Optional[InputShapes]) -> None:
        """Keeps what a model, compiled or not, says of its inputs and outputs."""
        self._records = {
            "inputs": with_distinct_names([_record(port) for port in model.inputs], "input"),
            "outputs": with_distinct_names([_record(port) for port in model.outputs], "output"),
        }
        self._feeds = make_feeds(self._records["inputs"], input_shapes)


def import_openvino() -> Any:
    """The module.

    Raises:
        RuntimeMissing: It is not installed.
    """
    # Its import calls out without asking and writes into the home directory, unless a build server does it.
    given = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissing(f"no OpenVINO on this device: install openvino ({error})") from error
    finally:
        if given is None:
            os.environ.pop("CI", None)
        else:
            os.environ["CI"] = given
    return openvino


def own_outputs(openvino: Any, compiled: Any, request: Any) -> Optional[List[np.ndarray[Any, Any]]]:
    """Arrays that a request writes its outputs into, so that no inference has to ask where they are.

    It is 1.5 % of an inference of 0.6 to 1.1 ms.

    Returns:
        All outputs; None where the shape of one is known only after an inference.
    """
    if any(port.get_partial_shape().is_dynamic for port in compiled.outputs):
        return None
    tensors = [openvino.Tensor(port.get_element_type(), port.get_shape()) for port in compiled.outputs]
    for index, tensor in enumerate(tensors):
        request.set_output_tensor(index, tensor)
    return [tensor.data for tensor in tensors]


def plugin_config(num_threads: int) -> Dict[str, Any]:
    """The options of a model that is measured."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        # On a CPU with bfloat16 the plugin's default would compute float layers with 8 bits of mantissa.
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _record(port: Any) -> Dict[str, Any]:
    """A port's record: it may have several names or none, and then it goes by the name of its node."""
    partial = port.get_partial_shape()
    shape = None
    if partial.rank.is_static:
        shape = [int(size.get_length()) if size.is_static else None for size in partial]
    kind = port.get_element_type().get_type_name()
    node = port.get_node()
    names = sorted(port.get_names()) or [node.get_friendly_name()]
    return tensor_record(names[0], shape, _DTYPES.get(kind, kind), aliases=[*names[1:], node.get_friendly_name()])

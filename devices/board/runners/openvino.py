"""OpenVINO models (`.xml` with `.bin`, also `.onnx`) through OpenVINO's CPU plugin."""

from __future__ import annotations

import os
from typing import Any, Dict, Tuple

import numpy as np

from ..errors import ModelRejected, RuntimeMissing
from .contract import check_image, fixed_shape, only_input, tensor_record

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
        self._version = self._dtype = ""
        self._shape: Tuple[int, ...] = ()

    def load(self, path: str, *, num_threads: int) -> None:
        """See `Runner`."""
        try:
            import openvino
        except ImportError as error:
            raise RuntimeMissing(f"no OpenVINO on this device: install openvino ({error})") from error
        self._version = openvino.__version__.split("-")[0]
        if path.endswith(".xml") and not os.path.isfile(path[:-4] + ".bin"):
            raise ModelRejected(f"{path} has no weights: expected {path[:-4]}.bin beside it")
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            # On a CPU with bfloat16 the plugin's default would compute float layers with 8 bits of mantissa.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            record = only_input([_record(port) for port in model.inputs])
            self._shape = fixed_shape(record)
            if None in record["shape"]:
                model.reshape(list(self._shape))
            compiled = core.compile_model(model, "CPU", config)
            self._request = compiled.create_infer_request()
        except ModelRejected:
            raise
        except Exception as error:
            raise ModelRejected(f"openvino {self._version} refuses {path}: {error}") from error
        self._dtype = record["dtype"]
        self._compiled, self._tensor_class = compiled, openvino.Tensor

    def infer(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See `Runner`."""
        check_image(image, self._shape, self._dtype)
        self._request.set_input_tensor(self._tensor_class(image, shared_memory=True))
        self._request.infer()
        logits: np.ndarray[Any, Any] = self._request.get_output_tensor(0).data
        return logits

    def describe(self) -> Dict[str, Any]:
        """See `Runner`."""
        return {
            "runtime": "openvino",
            "package": "openvino",
            "version": self._version,
            "input": _record(self._compiled.inputs[0]),
            "outputs": [_record(port) for port in self._compiled.outputs],
        }


def _record(port: Any) -> Dict[str, Any]:
    shape = [int(size.get_length()) if size.is_static else None for size in port.get_partial_shape()]
    kind = port.get_element_type().get_type_name()
    names = sorted(port.get_names())
    return tensor_record(names[0] if names else "", shape, _DTYPES.get(kind, kind))

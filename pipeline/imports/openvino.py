"""OpenVINO models: reshaped to static inputs, every input and output with one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import ModelFileError
from pipeline.imports.base import Imported, check_loads, one_line
from pipeline.imports.checks import FoundOutput, FoundTensor, distinct_names, make_signature, resolve_inputs
from pipeline.imports.description import ModelDescription

MODEL = "model.xml"

_DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16", "boolean": "bool"}
_DTYPES |= {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("u", "uint"), ("i", "int")) for bits in (8, 16, 32, 64)
}
_PASSES_ON = {"Convert", "Reshape", "Squeeze"}


def import_openvino(path: Path, out_dir: Path, description: ModelDescription) -> Imported:
    """Writes `model.xml` and `model.bin`.

    Raises:
        ModelFileError: OpenVINO can't read it or its CPU plugin can't run it.
        InputError: It does not fit the description.
    """
    import openvino

    try:
        model = openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise ModelFileError(
            f"OpenVINO {openvino.__version__.split('-')[0]} can't read it: {one_line(error)}. Expected an .xml with "
            f"its whole .bin, of operations that OpenVINO has; save the model again."
        ) from error
    names = _name_all(model.inputs, "input"), _name_all(model.outputs, "output")
    inputs = resolve_inputs(
        [_found(port, name) for port, name in zip(model.inputs, names[0], strict=True)], description
    )
    try:
        model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, inputs, strict=True)})
    except RuntimeError as error:
        raise ModelFileError(
            f"OpenVINO can't give its inputs these shapes: {one_line(error)}. State others with model.inputs."
        ) from error
    outputs = [
        FoundOutput(name, _dtype(port), _shape(port), is_softmax=_is_softmax(port))
        for port, name in zip(model.outputs, names[1], strict=True)
    ]
    signature = make_signature("openvino", MODEL, inputs, outputs, description)
    openvino.save_model(model, str(out_dir / MODEL), compress_to_fp16=False)
    check_loads("openvino", out_dir / MODEL, inputs)
    return Imported(signature, None)


def _name_all(ports: Any, kind: str) -> list[str]:
    """Gives each tensor one name and returns the names: its first, else that of its node."""
    first = [(sorted(port.get_names()) or [port.get_node().get_friendly_name()])[0] for port in ports]
    names = distinct_names(first, kind)
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})
    return names


def _found(port: Any, name: str) -> FoundTensor:
    return FoundTensor(name, _dtype(port), _shape(port), known_as=(port.get_node().get_friendly_name(),))


def _shape(port: Any) -> tuple[int | None, ...] | None:
    partial = port.get_partial_shape()
    if not partial.rank.is_static:
        return None
    return tuple(int(size.get_length()) if size.is_static else None for size in partial)


def _dtype(port: Any) -> str:
    kind = str(port.get_element_type().get_type_name())
    return _DTYPES.get(kind, kind)


def _is_softmax(port: Any) -> bool:
    node = port.get_node()
    for _ in range(100):
        if node.get_type_name().lower() == "softmax":
            return True
        if node.get_type_name() not in {"Result", *_PASSES_ON} or not node.inputs():
            return False
        node = node.input_value(0).get_node()
    return False

"""Multiplies an output of an OpenVINO model by a number, in the constants that it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.targets.openvino_graph import number_anew
from pipeline.targets.scaling import check_factor, chosen_output, refusal

_PASSES = {"ReduceMean", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operations that are linear in their first input and have no weights."""

_LINEAR = {"Convolution", "GroupConvolution", "MatMul"}


def scale_output(path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
    """Writes the model with one float output multiplied by a number; no operation is added, no stored integer changes.

    Args:
        path: A float, int8 or mixed model.
        factor: Above 0, so that the largest value stays the largest.
        out_path: The `.xml`; the `.bin` is written beside it. May not be the same.
        output: Name of the output; the first unless given.

    Raises:
        InputError: The factor is not above 0, or there is no such output.
        UnsupportedModelError: Constants can't take the factor.
    """
    import openvino as ov

    check_factor(factor)
    model = ov.Core().read_model(str(path))
    names = [next((name for name in port.get_names() if name == output), "") for port in model.outputs]
    chosen = chosen_output(output, names)
    _input(model.outputs[chosen].get_node(), 0, factor)
    model.validate_nodes_and_infer_types()
    ov.save_model(model, str(out_path), compress_to_fp16=False)
    number_anew(out_path)


def _input(node: Any, at: int, factor: float) -> None:
    """Multiplies what an operation takes.

    Raises:
        UnsupportedModelError: It can't be.
    """
    source = node.input_value(at)
    maker = source.get_node()
    kind, name = maker.get_type_name(), maker.get_friendly_name()
    if kind == "Constant":
        _constant(node, at, factor)
        return
    uses = len(source.get_target_inputs())
    if uses != 1:
        raise refusal(f"{name} is used {uses} times")
    for place in _places(maker, kind, name):
        _input(maker, place, factor)


def _places(node: Any, kind: str, name: str) -> tuple[int, ...]:
    """Returns which inputs of an operation take the factor for its result."""
    if kind in _PASSES:
        return (0,)
    if kind in _LINEAR:
        return (1,)
    if kind in {"Add", "Subtract"}:
        return (0, 1)
    if kind == "FakeQuantize":  # the values of its first and last level
        return (3, 4)
    if kind == "Multiply":
        sources = [port.get_node().get_type_name() for port in node.input_values()]
        if "Constant" in sources:
            return (sources.index("Constant"),)
    raise refusal(f"{name} comes from {kind}")


def _constant(node: Any, at: int, factor: float) -> None:
    """Multiplies what is stored, for this operation alone."""
    from openvino import opset13

    stored = node.input_value(at).get_node()
    values = np.asarray(stored.data)
    if values.dtype != np.float32:
        raise refusal(f"{stored.get_friendly_name()} is {values.dtype.name}, and float32 is expected")
    scaled = opset13.constant((values * np.float64(factor)).astype(np.float32))
    scaled.set_friendly_name(stored.get_friendly_name())
    node.input(at).replace_source_output(scaled.output(0))

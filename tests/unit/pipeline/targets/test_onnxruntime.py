"""What is read from ONNX files, and names that depend on the graph alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ModelFileError
from pipeline.targets import inspect_model
from pipeline.targets.onnx_names import drop_unused_domains, name_after_position

Build = Callable[[Any], tuple[list[Any], list[Any]]]


def write(path: Path, nodes: list[Any], constants: list[Any], *, dtype: int = 1) -> Path:
    import onnx
    from onnx import helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", dtype, ["batch", 4])],
        [helper.make_tensor_value_info("logits", 1, [1, 4])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def constant(name: str, values: Any, dtype: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values, dtype), name)


def dequantize(name: str, source: str, dtype: Any) -> tuple[Any, list[Any]]:
    from onnx import helper

    constants = [constant(f"{name}_scale", 1.0, np.float32), constant(f"{name}_zero", 0, dtype)]
    return helper.make_node("DequantizeLinear", [source, f"{name}_scale", f"{name}_zero"], [name], name), constants


def floating(dtype: Any) -> tuple[list[Any], list[Any]]:
    from onnx import helper

    return [helper.make_node("MatMul", ["image", "w"], ["logits"], "layer")], [constant("w", np.zeros((4, 4)), dtype)]


def quantized(activations: Any, *, with_activations: bool = True) -> tuple[list[Any], list[Any]]:
    from onnx import helper

    weights, constants = dequantize("w", "w_stored", np.int8)
    nodes, source = [weights], "image"
    if with_activations:
        more, extra = dequantize("x", "x_stored", activations)
        quantize = helper.make_node("QuantizeLinear", ["image", "x_scale", "x_zero"], ["x_stored"], "q")
        nodes, source, constants = [quantize, more, *nodes], "x", [*constants, *extra]
    nodes.append(helper.make_node("MatMul", [source, "w"], ["logits"], "layer"))
    return nodes, [*constants, constant("w_stored", np.zeros((4, 4)), np.int8)]


def integer(kind: str) -> tuple[list[Any], list[Any]]:
    from onnx import helper

    return [helper.make_node(kind, ["image", "w"], ["logits"], "layer")], [constant("w", np.zeros((4, 4)), np.int8)]


@dataclasses.dataclass(frozen=True)
class Case:
    label: str
    parts: Callable[[], tuple[list[Any], list[Any]]]


CASES = [
    Case("float32", lambda: floating(np.float32)),
    Case("float16", lambda: floating(np.float16)),
    Case("int8", lambda: quantized(np.uint8)),
    Case("int16x8", lambda: quantized(np.uint16)),
    Case("int8_weights", lambda: quantized(np.uint8, with_activations=False)),
    Case("int8_dynamic", lambda: integer("MatMulInteger")),
    Case("int8", lambda: integer("QLinearMatMul")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_label(tmp_path: Path, case: Case) -> None:
    summary = inspect_model(write(tmp_path / "m.onnx", *case.parts()))
    assert summary.precision == case.label
    assert summary.format == "onnx"
    assert [(tensor.name, tensor.shape) for tensor in summary.inputs] == [("image", (-1, 4))]


def test_mixed_names_what_stayed_in_float(tmp_path: Path) -> None:
    from onnx import helper

    nodes, constants = quantized(np.uint8)
    nodes[-1].output[0] = "y"
    nodes.append(helper.make_node("MatMul", ["y", "v"], ["logits"], "last"))
    path = write(tmp_path / "m.onnx", nodes, [*constants, constant("v", np.zeros((4, 4)), np.float32)])
    summary = inspect_model(path)
    assert (summary.precision, summary.float_operations) == ("mixed", ("last",))


def test_weight_bytes(tmp_path: Path) -> None:
    summary = inspect_model(write(tmp_path / "m.onnx", *quantized(np.uint8)))
    assert summary.weight_bytes == {"int8": 17, "float32": 8, "uint8": 1}


def test_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", *floating(np.float32))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelFileError, match="no ONNX"):
        inspect_model(path)


def renamed(suffix: str, order: int) -> Any:
    """The same graph, its names and the order of its constants changed."""
    from onnx import helper

    name = f"StatefulPartitionedCall/net/add__{suffix}"
    nodes = [
        helper.make_node("Add", ["image", f"c__{suffix}"], [f"a__{suffix}"], name),
        helper.make_node("MatMul", [f"a__{suffix}", f"w__{suffix}"], ["logits"], f"MatMul__{suffix}"),
    ]  # fmt: skip
    constants = [constant(f"c__{suffix}", [1.0], np.float32), constant(f"w__{suffix}", np.eye(4), np.float32)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", 1, [1, 4])],
        [helper.make_tensor_value_info("logits", 1, [1, 4])],
        constants[::order],
        value_info=[helper.make_tensor_value_info(f"a__{suffix}", 1, [1, 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.x", 1)])


def test_names_depend_on_the_graph_alone() -> None:
    import onnx

    first, second = renamed("12", 1), renamed("7", -1)
    name_after_position(first)
    name_after_position(second)
    assert first.SerializeToString() == second.SerializeToString()
    onnx.checker.check_model(first, full_check=True)
    assert [node.name for node in first.graph.node] == ["net/add", "MatMul"]
    assert [value.name for value in [*first.graph.input, *first.graph.output]] == ["image", "logits"]
    again = first.SerializeToString()
    name_after_position(first)
    assert first.SerializeToString() == again


def test_unused_operator_sets_are_dropped() -> None:
    model = renamed("1", 1)
    drop_unused_domains(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]

"""What targets make of which source formats, and what they hold exported files to."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.model_source import Calibration, ModelSource
from pipeline.signature import InputTensor, OutputTensor, Signature, SourceFormat
from pipeline.targets import TARGETS, inspect_model, reachable
from pipeline.targets.base import GraphSummary, TensorDescription, check_interface, check_source_precision
from pipeline.targets.onnx_names import name_after_position

ALL = ("float32", "float16", "int8")


def signature(**changes: Any) -> Signature:
    values: dict[str, Any] = {
        "source": "onnx",
        "model": "given.onnx",
        "inputs": (InputTensor(name="x", dtype="float32", shape=(1, 4)),),
        "outputs": (OutputTensor(name="y", dtype="float32", shape=(1, 4)),),
    }
    return Signature(**{**values, **changes})


def test_what_reaches_what() -> None:
    offered = {
        source: sorted(target for target, found in reachable(source).items() if set(ALL) <= set(found))
        for source in get_args(SourceFormat)
    }
    assert offered == {
        "saved_model": ["litert", "onnxruntime", "openvino"],
        "onnx": ["onnxruntime", "openvino"],
        "tflite": ["litert", "onnxruntime", "openvino"],
        "openvino": ["openvino"],
        "fake": ["fake"],
    }


@pytest.mark.parametrize("source", get_args(SourceFormat))
def test_what_is_not_reached_has_a_reason(source: SourceFormat) -> None:
    for target, found in reachable(source).items():
        assert found
        if isinstance(found, tuple):
            assert set(found) <= set(TARGETS[target].precisions)
        else:
            assert len(found.split()) > 4


def test_asking_loads_no_runtime() -> None:
    code = (
        "import sys; from pipeline.targets import reachable; reachable('onnx'); "
        "print([name for name in ('tensorflow', 'keras', 'onnx', 'onnxruntime', 'openvino', 'nncf', "
        "'ai_edge_litert', 'ai_edge_quantizer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def summary(**changes: Any) -> GraphSummary:
    values: dict[str, Any] = {
        "format": "onnx",
        "precision": "float32",
        "inputs": (TensorDescription("x", "float32", (1, 4)),),
        "outputs": (TensorDescription("y", "float32", (1, 4)),),
        "operations": {},
        "tensor_types": {},
        "weight_bytes": {},
        "float_operations": (),
        "size_bytes": 1,
        "sha256": "",
        "weights_sha256": None,
    }
    return GraphSummary(**{**values, **changes})


@dataclasses.dataclass(frozen=True)
class Interface:
    """A tensor of the file in place of `x`."""

    id: str
    found: tuple[TensorDescription, ...]


@pytest.mark.parametrize(
    "case",
    [
        Interface("name", (TensorDescription("z", "float32", (1, 4)),)),
        Interface("type", (TensorDescription("x", "int8", (1, 4)),)),
        Interface("shape", (TensorDescription("x", "float32", (-1, 4)),)),
        Interface("rank", (TensorDescription("x", "float32", (4,)),)),
        Interface("lost", ()),
        Interface("more", (TensorDescription("x", "float32", (1, 4)), TensorDescription("z", "float32", (1, 4)))),
    ],
    ids=lambda case: case.id,
)
def test_a_file_with_another_interface_is_refused(case: Interface) -> None:
    with pytest.raises(StageError, match="the model has x float32"):
        check_interface(summary(inputs=case.found), signature(), runtime="ONNX")


def test_an_output_of_unknown_size_may_have_any() -> None:
    free = (OutputTensor(name="y", dtype="float32", shape=(1, -1)),)
    check_interface(summary(), signature(outputs=free), runtime="ONNX")
    check_interface(summary(), signature(), runtime="ONNX")


def test_floats_are_not_made_of_integers() -> None:
    with pytest.raises(StageError, match="holds int8, so float32 can't be made of it"):
        check_source_precision(summary(precision="int8"), "float32")
    check_source_precision(summary(precision="float16"), "int8", allowed=("float32", "float16"))


def loop_model(prefix: str) -> Any:
    """Adds `step` to `x` three times; the values' names begin with the prefix."""
    from onnx import TensorProto, helper

    def value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [
            helper.make_node("Identity", [f"{prefix}c"], [f"{prefix}co"], name="keep"),
            helper.make_node("Add", [f"{prefix}s", f"{prefix}step"], [f"{prefix}so"], name="add"),
        ],
        f"{prefix}body",
        [
            value(f"{prefix}i", [], TensorProto.INT64),
            value(f"{prefix}c", [], TensorProto.BOOL),
            value(f"{prefix}s", [1, 4]),
        ],
        [value(f"{prefix}co", [], TensorProto.BOOL), value(f"{prefix}so", [1, 4])],
    )
    nodes = [
        helper.make_node("Loop", [f"{prefix}n", "", "x"], [f"{prefix}l"], body=body),
        helper.make_node("Neg", ["x"], [f"{prefix}m"]),
        helper.make_node("Sub", [f"{prefix}l", f"{prefix}m"], ["y"]),
    ]
    if prefix == "b":
        nodes[:2] = nodes[1::-1]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", [1, 4])],
        [value("y", [1, 4])],
        [
            helper.make_tensor(f"{prefix}n", TensorProto.INT64, [], [3]),
            helper.make_tensor(f"{prefix}step", TensorProto.FLOAT, [1, 4], [1.0, 2.0, 3.0, 4.0]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_names_and_order_depend_on_the_graph_alone_also_inside_loops() -> None:
    import onnx
    import onnxruntime

    def answer(model: Any) -> Any:
        (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": np.ones((1, 4), np.float32)})
        return found

    first, second = loop_model("a"), loop_model("b")
    before = answer(first)
    for model in (first, second):
        name_after_position(model)
        onnx.checker.check_model(model, full_check=True)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    np.testing.assert_array_equal(answer(first), before)
    np.testing.assert_array_equal(before, [[5, 8, 11, 14]])


def external(folder: Path) -> ModelSource:
    """A model with a free batch whose weights lie in a file beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir()
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    onnx.save(model, str(folder / "given.onnx"), save_as_external_data=True, location="weights.data", size_threshold=0)
    return ModelSource(folder, signature())


@pytest.mark.parametrize("precision", ALL)
def test_a_model_in_two_files_with_a_free_batch_and_an_old_operator_set(tmp_path: Path, precision: str) -> None:
    import onnxruntime

    source = external(tmp_path / "given")
    given = inspect_model(source.path)
    assert given.inputs[0].shape == (-1, 4)
    assert given.size_bytes > source.path.stat().st_size
    assert given.weight_bytes == {"float32": 64}
    out = tmp_path / "out"
    out.mkdir()
    samples = np.random.default_rng(0).uniform(-1, 1, (8, 4)).astype(np.float32)
    path = TARGETS["onnxruntime"].export(source, precision, Calibration(source.signature, {"x": samples}), out)
    assert [file.name for file in out.iterdir()] == ["model.onnx"]
    made = inspect_model(path)
    assert made.precision == precision
    assert made.inputs == (TensorDescription("x", "float32", (1, 4)),)
    (answer,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": samples[:1]})
    np.testing.assert_allclose(answer, samples[:1] * 2, atol={"float32": 0, "float16": 2e-3, "int8": 0.03}[precision])


def test_what_is_int8_already_is_handed_on_unchanged_and_never_widened(tmp_path: Path) -> None:
    source = external(tmp_path / "given")
    for name in ("made", "again", "widened"):
        (tmp_path / name).mkdir()
    calibration = Calibration(source.signature, {"x": np.ones((4, 4), np.float32)})
    target = TARGETS["onnxruntime"]
    path = target.export(source, "int8", calibration, tmp_path / "made")
    made = ModelSource(path.parent, signature(model=path.name))
    assert target.export(made, "int8", calibration, tmp_path / "again").read_bytes() == path.read_bytes()
    for precision in ("float32", "float16"):
        with pytest.raises(StageError, match=f"holds int8, so {precision}"):
            target.export(made, precision, calibration, tmp_path / "widened")

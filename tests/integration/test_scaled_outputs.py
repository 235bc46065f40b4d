"""Outputs of int8 files multiplied by a number: constants alone change, and what integers compute stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError, UnsupportedModelError
from pipeline.executor import child_environment
from pipeline.model_source import Calibration
from pipeline.quantization.static import Observed, lowered_and_observed
from pipeline.signature import read_signature
from pipeline.targets import QUANTIZERS, TARGETS, inspect_model
from pipeline.targets.base import TargetName

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("scaled_networks.py")
HEADS = ("dense_head", "conv_head")
FACTOR = 0.7318


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        head: How the network ends.
        target: Which runtime.
        scheme: Of the quantizer.
        float_head: Whether the last layer stays in float.
    """

    head: str
    target: TargetName
    scheme: str
    float_head: bool

    def __str__(self) -> str:
        return f"{self.head}-{self.target}-{self.scheme}-{'mixed' if self.float_head else 'int8'}"


CASES = [
    Case(head, target, scheme, float_head)
    for head in HEADS
    for target, quantizer in QUANTIZERS.items()
    for scheme in (next(iter(quantizer.SCHEMES)), "converter")
    for float_head in (False, True)
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@dataclass(frozen=True)
class Workshop:
    """Float files, and what was made of them."""

    directory: Path
    observations: dict[tuple[str, str, str], Observed]

    def images(self, head: str) -> Any:
        return np.load(self.directory / head / "samples.npz")["inputs"]

    def observed(self, case: Case) -> Observed:
        key = (case.head, case.target, case.scheme)
        if key not in self.observations:
            directory = self.directory / case.head
            calibration = Calibration(read_signature(directory), {"image": self.images(case.head)})
            self.observations[key] = lowered_and_observed(
                QUANTIZERS[case.target],
                directory / case.target / f"model{TARGETS[case.target].suffix}",
                scheme=case.scheme,
                calibration=calibration,
                output="logits",
                directory=directory / case.target,
            )
        return self.observations[key]

    def file(self, case: Case, out_dir: Path) -> Path:
        observed = self.observed(case)
        last = list(observed.quantizer.layers(observed.path))[-1]
        path = out_dir / f"made{observed.path.suffix}"
        observed.quantize(observed.ranges("min_max"), path, float_layers=(last,) if case.float_head else ())
        return path


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    directory = tmp_path_factory.mktemp("scaled")
    subprocess.run([sys.executable, str(SCRIPT), str(directory)], check=True, env=child_environment("tensorflow"))
    return Workshop(directory, {})


def answers(path: Path, images: Any) -> Any:
    """By the runtime with its optimizations, on one thread."""
    return np.array([RUN[path.suffix](path, image[None])[0] for image in images])


def by_litert(path: Path, image: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def by_onnxruntime(path: Path, image: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def by_openvino(path: Path, image: Any) -> Any:
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.array(ov.Core().compile_model(str(path), "CPU", settings)(image)[0])


RUN = {".tflite": by_litert, ".onnx": by_onnxruntime, ".xml": by_openvino}


def integers(path: Path) -> Iterator[bytes]:
    """The stored integers of a file, in order."""
    if path.suffix == ".tflite":
        from pipeline.targets.litert_graph import Graph

        graph = Graph.read(path)
        stored = (graph.constant(index) for index in range(graph.num_tensors()))
        yield from (values.tobytes() for values in stored if values is not None and values.dtype.kind in "iu")
    elif path.suffix == ".onnx":
        import onnx

        for constant in onnx.load(str(path)).graph.initializer:
            values = onnx.numpy_helper.to_array(constant)
            if values.dtype.kind in "iu":
                yield values.tobytes()
    else:
        import openvino as ov

        model = ov.Core().read_model(str(path))
        for node in model.get_ordered_ops():
            if node.get_type_name() == "Constant" and np.asarray(node.data).dtype.kind in "iu":
                yield np.asarray(node.data).tobytes()


@every_case
def test_the_output_is_multiplied_and_nothing_else(workshop: Workshop, case: Case, tmp_path: Path) -> None:
    path = workshop.file(case, tmp_path)
    quantizer, images = QUANTIZERS[case.target], workshop.images(case.head)
    scaled, again = tmp_path / f"scaled{path.suffix}", tmp_path / f"again{path.suffix}"

    quantizer.scale_output(path, FACTOR, scaled, output="logits")
    quantizer.scale_output(path, FACTOR, again)

    before, after = answers(path, images), answers(scaled, images)
    np.testing.assert_allclose(after, FACTOR * before, rtol=3e-6, atol=1e-6 * np.abs(before).max())
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    assert list(integers(scaled)) == list(integers(path))
    held, expected = inspect_model(scaled), inspect_model(path)
    assert held.precision == expected.precision == ("mixed" if case.float_head else "int8")
    assert (held.operations, held.inputs, held.outputs) == (expected.operations, expected.inputs, expected.outputs)
    assert held.float_operations == expected.float_operations
    for suffix in {path.suffix, ".bin"} if case.target == "openvino" else {path.suffix}:
        assert scaled.with_suffix(suffix).read_bytes() == again.with_suffix(suffix).read_bytes()


@pytest.mark.parametrize("target", QUANTIZERS)
def test_a_float_file_too(workshop: Workshop, target: TargetName, tmp_path: Path) -> None:
    path = workshop.directory / "dense_head" / target / f"model{TARGETS[target].suffix}"
    scaled, images = tmp_path / path.name, workshop.images("dense_head")

    QUANTIZERS[target].scale_output(path, 2.5, scaled, output="logits")

    np.testing.assert_allclose(answers(scaled, images), 2.5 * answers(path, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", QUANTIZERS)
@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_that_change_the_order_are_refused(target: TargetName, factor: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="above 0"):
        QUANTIZERS[target].scale_output(tmp_path / "none", factor, tmp_path / "out")


def write_probabilities(path: Path) -> None:
    """A model that ends in a softmax, in the format of the suffix."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    if path.suffix == ".onnx":
        import onnx
        from onnx import helper

        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Softmax", ["y"], ["p"])]
        values = [helper.make_tensor_value_info(*each) for each in (("x", 1, [1, 4]), ("p", 1, [1, 3]))]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(weights, "w")])
        onnx.save(helper.make_model(graph), str(path))
        return
    import openvino as ov
    from openvino import opset13

    given = opset13.parameter([1, 4], np.float32, name="x")
    ov.save_model(ov.Model([opset13.softmax(opset13.matmul(given, weights, False, False), 1)], [given]), str(path))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_probabilities_are_refused_in_words(target: TargetName, tmp_path: Path) -> None:
    path, out = (tmp_path / f"{name}{TARGETS[target].suffix}" for name in ("model", "out"))
    write_probabilities(path)
    with pytest.raises(UnsupportedModelError, match=r"(?i)comes from softmax.*Leave the file as it is"):
        QUANTIZERS[target].scale_output(path, 0.5, out)
    assert not out.exists()


def test_shared_constants_of_onnx_stay_for_the_others(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    weights = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "w"], ["logits"]),
    ]
    values = [helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", "logits")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, str(tmp_path / "in.onnx"))

    QUANTIZERS["onnxruntime"].scale_output(tmp_path / "in.onnx", 3.0, tmp_path / "out.onnx")

    import onnxruntime

    x = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    found, expected = (
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("out.onnx", "in.onnx")
    )
    np.testing.assert_allclose(found, 3 * expected, rtol=1e-5)


def test_shared_constants_of_openvino_stay_for_the_others(tmp_path: Path) -> None:
    import openvino as ov
    from openvino import opset13

    weights = opset13.constant(np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))
    given = opset13.parameter([1, 4], np.float32, name="x")
    hidden = opset13.relu(opset13.matmul(given, weights, False, False))
    model = ov.Model([opset13.matmul(hidden, weights, False, False)], [given])
    ov.save_model(model, str(tmp_path / "in.xml"), compress_to_fp16=False)

    QUANTIZERS["openvino"].scale_output(tmp_path / "in.xml", 3.0, tmp_path / "out.xml")

    x = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    found, expected = (by_openvino(tmp_path / name, x) for name in ("out.xml", "in.xml"))
    np.testing.assert_allclose(found, 3 * expected, rtol=1e-5)


@pytest.mark.parametrize("float_head", [False, True], ids=["int8", "mixed"])
def test_shared_constants_of_litert_stay_for_the_others(workshop: Workshop, float_head: bool, tmp_path: Path) -> None:
    """A second head, whose result nothing takes but the caller, shares weights and bias with the first."""
    import copy

    from pipeline.targets.litert_graph import Graph

    path = workshop.file(Case("dense_head", "litert", "delegated", float_head), tmp_path)
    graph = Graph.read(path)
    tensors = graph.model.subgraphs[0].tensors
    ends = graph.operators[-1:] if float_head else graph.operators[-2:]
    twins = {}
    for operator in list(ends):
        twin, [result] = copy.deepcopy(operator), operator.outputs
        tensors.append(copy.deepcopy(tensors[result]))
        tensors[-1].name += b"/twin"
        twins[int(result)] = len(tensors) - 1
        twin.inputs = [twins.get(int(index), int(index)) for index in operator.inputs]
        twin.outputs = [twins[int(result)]]
        graph.operators.append(twin)
    before = graph.outputs[0]
    graph.add_output(twins[before])
    graph.write(tmp_path / "two.tflite")

    QUANTIZERS["litert"].scale_output(tmp_path / "two.tflite", FACTOR, tmp_path / "out.tflite")

    expected, found = (
        both_results(tmp_path / name, workshop.images("dense_head")) for name in ("two.tflite", "out.tflite")
    )
    np.testing.assert_allclose(found[0], FACTOR * expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def both_results(path: Path, images: Any) -> tuple[Any, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    results: tuple[list[Any], list[Any]] = ([], [])
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        for rows, detail in zip(results, interpreter.get_output_details(), strict=True):
            rows.append(interpreter.get_tensor(detail["index"]))
    return np.array(results[0]), np.array(results[1])

"""Networks that are none of ours, from every source format to every runtime that it reaches."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.executor import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parent / "own_models.py"
APPLICATIONS = ("mobilenet_v3_small", "efficientnet_b0", "nasnet_mobile", "densenet121", "convnext_tiny")
SMALL = ("convolution_1d", "gru", "lstm", "autoencoder", "generator", "two_by_two")
RUNTIMES = ("litert", "onnxruntime", "openvino")
GROUPS = {**{name: (name,) for name in APPLICATIONS}, **dict.fromkeys((*SMALL, "erfinv"), (*SMALL, "erfinv"))}
"""What one child process exports."""

MAX_FLOAT_ERROR = 1e-4
"""Of the range of the output; for any single value."""

MAX_FLOAT16_ERROR = 2e-2
MAX_INT8_NOISE = 0.1
"""Root mean square of the difference, of the range of the output; networks of random weights pass noise on."""

Results = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def results(directory: Path) -> Results:
    """Exports a network's group when it is asked for first."""

    def of(name: str) -> list[dict[str, Any]]:
        path = directory / name / "results.json"
        if not path.exists():
            done = subprocess.run(
                [sys.executable, str(SCRIPT), str(directory), *GROUPS[name]],
                check=False,
                env=child_environment("tensorflow"),
                capture_output=True,
                text=True,
                timeout=800,
            )
            assert done.returncode == 0, done.stderr[-4000:]
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found

    return of


def made(results: list[dict[str, Any]], source: str, target: str, precision: str) -> dict[str, Any]:
    (found,) = [
        result
        for result in results
        if (result["source"], result["target"], result["precision"]) == (source, target, precision)
    ]
    return found


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("name", [*APPLICATIONS, *SMALL])
def test_float32_in_every_runtime(results: Results, name: str, target: str) -> None:
    result = made(results(name), "saved_model", target, "float32")
    assert "error" not in result
    assert result["graph"]["precision"] == "float32"
    assert result["worst"] <= MAX_FLOAT_ERROR


@dataclasses.dataclass(frozen=True)
class Case:
    """An export, and what its error names, if it is refused."""

    name: str
    source: str
    target: str
    precision: str
    refused: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}-{self.source}-{self.target}-{self.precision}"


INT8 = [
    Case("mobilenet_v3_small", "saved_model", "litert", "int8"),
    *(Case(name, "onnx", "onnxruntime", "int8") for name in ("mobilenet_v3_small", "efficientnet_b0")),
    *(Case(name, "openvino", "openvino", "int8") for name in ("mobilenet_v3_small", "efficientnet_b0")),
    *(
        Case(name, "saved_model", target, "int8")
        for name in ("convolution_1d", "autoencoder", "generator", "two_by_two")
        for target in RUNTIMES
    ),
]
FILES = [
    Case(name, source, target, precision)
    for name in ("convolution_1d", "autoencoder", "generator", "two_by_two")
    for source, target, precision in (
        ("onnx", "onnxruntime", "float32"),
        ("onnx", "onnxruntime", "int8"),
        ("onnx", "openvino", "float32"),
        ("tflite", "litert", "float32"),
        ("tflite", "litert", "float16"),
        ("tflite", "litert", "int8"),
        ("tflite", "onnxruntime", "float32"),
        ("tflite", "openvino", "float32"),
        ("openvino", "openvino", "float32"),
        ("openvino", "openvino", "int8"),
    )
]
LOOPS = [
    Case("gru", "tflite", "openvino", "float32"),
    Case("lstm", "onnx", "openvino", "float32"),
]


@pytest.mark.parametrize("case", [*INT8, *FILES, *LOOPS], ids=lambda case: case.id)
def test_answers_are_those_of_keras(results: Results, case: Case) -> None:
    result = made(results(case.name), case.source, case.target, case.precision)
    assert "error" not in result
    assert result["graph"]["precision"] == case.precision
    if case.precision == "int8":
        assert result["noise"] <= MAX_INT8_NOISE
    else:
        assert result["worst"] <= (MAX_FLOAT16_ERROR if case.precision == "float16" else MAX_FLOAT_ERROR)


@pytest.mark.parametrize(
    "case",
    [
        Case("gru", "saved_model", "litert", "int8", refused="LiteRT has no int8 kernel for While"),
        # Its ONNX reader takes no loop whose body hands on a value that it got.
        Case("gru", "onnx", "openvino", "float32", refused="OpenVINO can't convert Loop"),
        Case("erfinv", "saved_model", "litert", "float32", refused="LiteRT has no builtin operation for tf.Erfinv."),
        Case("erfinv", "saved_model", "onnxruntime", "float32", refused="ONNX has no operation for Erfinv"),
        Case("erfinv", "saved_model", "openvino", "float32", refused="OpenVINO has no operation for Erfinv"),
    ],
    ids=lambda case: case.id,
)
def test_the_operation_that_stands_in_the_way_is_named(results: Results, case: Case) -> None:
    assert case.refused in made(results(case.name), case.source, case.target, case.precision)["error"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_what_stays_in_float_within_a_loop_is_named(results: Results, target: str) -> None:
    """The export stage refuses it by this label and with these names."""
    graph = made(results("gru"), "saved_model", target, "int8")["graph"]
    assert graph["precision"] == "mixed"
    assert graph["float_operations"]


@pytest.mark.parametrize("target", RUNTIMES)
def test_inputs_and_outputs_have_the_names_of_the_model(results: Results, target: str) -> None:
    """Each pair has one shape, so that one taken for the other changes the answers and nothing else."""
    for result in results("two_by_two"):
        if result["target"] == target:
            for kind, names in (("inputs", {"left", "right"}), ("outputs", {"near", "far"})):
                assert {tensor["name"] for tensor in result["graph"][kind]} == names
                assert len({tuple(tensor["shape"]) for tensor in result["graph"][kind]}) == 1


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("target", RUNTIMES)
def test_exporting_twice_gives_the_same_bytes(results: Results, directory: Path, target: str, precision: str) -> None:
    files = made(results("two_by_two"), "saved_model", target, precision)["files"]
    folder = directory / "two_by_two" / "exports"
    for name in files:
        first = (folder / "saved_model" / target / precision / name).read_bytes()
        assert (folder / "again saved_model" / target / precision / name).read_bytes() == first, name


def test_nothing_but_the_model_is_left(results: Results) -> None:
    for result in results("two_by_two"):
        expected = {"litert": ["model.tflite"], "onnxruntime": ["model.onnx"], "openvino": ["model.bin", "model.xml"]}
        assert result["files"] == expected[result["target"]]

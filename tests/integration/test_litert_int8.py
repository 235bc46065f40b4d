"""int8 in LiteRT: where it runs, what it gives, next to what the converter makes by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.executor import child_environment
from pipeline.metrics import parity
from pipeline.targets import inspect_model, litert_int8
from tests.delegation import placement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).with_name("litert_files.py")
MAX_LOSS_DB = 1.0
"""How much lower than that of the converter's int8 the signal-to-noise ratio may be. Random weights make noise that
depends on how the roundings happen to fall."""


@dataclass(frozen=True)
class Case:
    """A network, and what XNNPACK does not run of its int8.

    Attributes:
        name: Key of `models.MODELS`.
        left: Of ours.
        left_by_converter: Of the converter's.
        has_attention: Whether matrix products take two activations, which no precision of weights reaches.
    """

    name: str
    left: tuple[str, ...] = ()
    left_by_converter: tuple[str, ...] = ("CAST",)
    has_attention: bool = False


ATTENTION = ("BATCH_MATMUL", "SOFTMAX")
CASES = [
    Case("mobilenet_v2"),
    Case("mobilenet_v3_small", left_by_converter=("CAST", "HARD_SWISH")),
    Case("mobilenet_v4_hybrid_medium", ATTENTION, ("BATCH_MATMUL", "CAST", "SOFTMAX"), has_attention=True),
    Case("efficientnet_b0"),
    Case("ds_cnn", ("AVERAGE_POOL_2D",), ("AVERAGE_POOL_2D",)),  # over 24 of 25 rows, which is no MEAN
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@dataclass(frozen=True)
class Files:
    """The directory of one network's files, and the ranges of its activations."""

    directory: Path
    ranges: Mapping[str, tuple[float, float]]

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.tflite"

    def samples(self) -> tuple[str, Any, Any]:
        stored = np.load(self.directory / "samples.npz")
        return inspect_model(self.path("float32")).inputs[0].name, stored["inputs"], stored["outputs"]

    def answers(self, name: str) -> Any:
        """What a file gives, in the runtime as it is used."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(self.path(name)), num_threads=1)
        interpreter.allocate_tensors()
        [fed], [result] = interpreter.get_input_details(), interpreter.get_output_details()
        rows = []
        for row in self.samples()[1]:
            interpreter.set_tensor(fed["index"], row[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(result["index"])[0])
        return np.array(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """The files of all networks, with int8 from the least and the largest values."""
    directory = tmp_path_factory.mktemp("litert")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory), *(case.name for case in CASES)],
        check=False,
        env=child_environment("tensorflow") | {"PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return {case.name: with_int8(directory / case.name) for case in CASES}


def with_int8(directory: Path) -> Files:
    files = Files(directory, {})
    litert_int8.lower(files.path("float32"), "delegated", files.path("lowered"))
    fed, inputs, _ = files.samples()
    names = litert_int8.observed(files.path("lowered"))
    ends: dict[str, tuple[float, float]] = dict.fromkeys(names, (np.inf, -np.inf))
    for row in litert_int8.activations(files.path("lowered"), ({fed: each[None]} for each in inputs), names):
        ends = {
            name: (min(low, float(row[name].min())), max(high, float(row[name].max())))
            for name, (low, high) in ends.items()
        }
    litert_int8.quantize(files.path("lowered"), "delegated", ends, (), files.path("delegated"))
    return Files(directory, ends)


def placed(path: Path) -> tuple[int, tuple[str, ...]]:
    """How many pieces of the graph XNNPACK runs, and the kinds of operations that it does not run."""
    pieces, left = placement(path)
    return pieces, tuple(sorted(set(left)))


@every_case
def test_lowered_is_the_same_function(case: Case, made: dict[str, Files]) -> None:
    expected, found = made[case.name].answers("float32"), made[case.name].answers("lowered")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


@every_case
def test_where_int8_runs(case: Case, made: dict[str, Files]) -> None:
    files = made[case.name]
    pieces, left = placed(files.path("delegated"))
    by_converter, left_by_converter = placed(files.path("int8"))
    assert (left, left_by_converter) == (case.left, case.left_by_converter)
    assert pieces == by_converter if case.left else pieces == 1 <= by_converter


def test_attention_in_float_is_delegated(made: dict[str, Files], tmp_path: Path) -> None:
    for case in CASES:
        files, path = made[case.name], tmp_path / "int8.tflite"
        litert_int8.quantize(files.path("lowered"), "float_attention", files.ranges, (), path)
        pieces, left = placed(path)
        assert left == (() if case.has_attention else case.left)
        assert pieces == 1 + len(left)
        assert inspect_model(path).precision == ("mixed" if case.has_attention else "int8")
        assert (path.read_bytes() == files.path("delegated").read_bytes()) == (not case.has_attention)


@every_case
def test_int8_is_as_near_to_float_as_the_converters(case: Case, made: dict[str, Files]) -> None:
    files, expected = made[case.name], made[case.name].samples()[2]
    ours, theirs = (parity(expected, files.answers(name))["snr_db"] for name in ("delegated", "int8"))
    assert ours is not None
    assert theirs is not None
    assert ours > theirs - MAX_LOSS_DB


@every_case
def test_interface(case: Case, made: dict[str, Files]) -> None:
    before, after = (inspect_model(made[case.name].path(name)) for name in ("float32", "delegated"))
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert (after.precision, after.float_operations) == ("int8", ())


@every_case
def test_same_bytes_twice(case: Case, made: dict[str, Files], tmp_path: Path) -> None:
    files = made[case.name]
    litert_int8.lower(files.path("float32"), "delegated", tmp_path / "lowered.tflite")
    litert_int8.quantize(tmp_path / "lowered.tflite", "delegated", files.ranges, (), tmp_path / "int8.tflite")
    assert (tmp_path / "lowered.tflite").read_bytes() == files.path("lowered").read_bytes()
    assert (tmp_path / "int8.tflite").read_bytes() == files.path("delegated").read_bytes()


@every_case
def test_other_schemes_and_precisions(case: Case, made: dict[str, Files], tmp_path: Path) -> None:
    files = made[case.name]
    fed, inputs, _ = files.samples()
    path = tmp_path / "int16x8.tflite"
    litert_int8.quantize(files.path("lowered"), "delegated", files.ranges, (), path, precision="int16x8")
    assert inspect_model(path).precision == ("mixed" if case.has_attention else "int16x8")
    for precision in ("int8_dynamic", "int8_weights"):
        path = tmp_path / f"{precision}.tflite"
        litert_int8.quantize_weights(files.path("float32"), precision, path)  # type: ignore[arg-type]
        assert inspect_model(path).precision == ("mixed" if case.has_attention else precision)
    first = litert_int8.linear_layers(files.path("lowered"))[0]
    path = tmp_path / "mixed.tflite"
    litert_int8.quantize(files.path("lowered"), "delegated", files.ranges, [first], path)
    assert [name.removesuffix("/unclamped") for name in inspect_model(path).float_operations] == [first]
    [_] = litert_int8.activations(path, [{fed: inputs[:1]}], [first])

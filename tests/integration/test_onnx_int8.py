"""int8 of real networks in ONNX Runtime: the function, the ranges, and where operations run."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.executor import child_environment
from pipeline.targets import inspect_model, onnxruntime_int8
from pipeline.targets.onnxruntime_int8 import SCHEMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("onnx_networks.py")


@dataclass(frozen=True)
class NetworkCase:
    """A network, and what ONNX Runtime runs of its int8 file.

    Attributes:
        name: Key of `models.MODELS`.
        running: How often each kind of operation is there with the first scheme.
        float_transposes: How many there are in the faster float file.
    """

    name: str
    running: dict[str, int]
    float_transposes: int = 1


CASES = [
    # 27 hard-swishes are a sum and a product each, and so are 6 residuals and 9 gates' halves.
    NetworkCase("mobilenet_v3_small", {"QLinearConv": 52, "QGemm": 2, "QLinearAdd": 25, "QLinearMul": 28, "Clip": 0}),
    NetworkCase("efficientnet_b0", {"QLinearConv": 81, "QGemm": 1, "QuickGelu": 33, "QLinearSigmoid": 32}),
    NetworkCase("mobilenet_v2", {"QLinearConv": 52, "QGemm": 1, "QLinearAdd": 10, "Clip": 0}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@dataclass(frozen=True)
class Network:
    """An exported network.

    Attributes:
        directory: Of its files.
        inputs: Samples.
        outputs: What Keras answers.
        known_ranges: By scheme, once they were taken.
    """

    directory: Path
    inputs: Any
    outputs: Any
    known_ranges: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.directory / "float.onnx"

    def lowered(self, scheme: str) -> Path:
        path = self.directory / f"{scheme}.onnx"
        if not path.exists():
            onnxruntime_int8.lower(self.path, scheme, path)
        return path

    def ranges(self, scheme: str) -> dict[str, tuple[float, float]]:
        if scheme in self.known_ranges:
            return self.known_ranges[scheme]
        path, found = self.lowered(scheme), self.known_ranges.setdefault(scheme, {})
        samples = ({"image": image[None]} for image in self.inputs)
        for values in onnxruntime_int8.activations(path, samples, onnxruntime_int8.observed(path)):
            for name, array in values.items():
                low, high = found.get(name, (0.0, 0.0))
                found[name] = (min(low, float(array.min())), max(high, float(array.max())))
        return found

    def quantized(self, scheme: str, name: str, float_layers: Any = ()) -> Path:
        path = self.directory / f"{scheme}-{name}.onnx"
        onnxruntime_int8.quantize(self.lowered(scheme), scheme, self.ranges(scheme), float_layers, path)
        return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Network]:
    directory = tmp_path_factory.mktemp("onnx_networks")
    command = [sys.executable, str(SCRIPT), str(directory), *(case.name for case in CASES)]
    subprocess.run(command, check=True, env=child_environment("tensorflow"))
    found = {}
    for case in CASES:
        with np.load(directory / case.name / "samples.npz") as stored:
            found[case.name] = Network(directory / case.name, stored["inputs"], stored["outputs"])
    return found


def session(path: Path, optimized: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, inputs: Any) -> Any:
    opened = session(path)
    return np.concatenate([opened.run(None, {"image": image[None]})[0] for image in inputs])


def running(path: Path, scratch: Path) -> Counter[str]:
    import onnx

    session(path, scratch / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(str(scratch / "optimized.onnx")).graph.node)


def noise_db(expected: Any, found: Any) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


@every_scheme
@every_case
def test_lowering_keeps_the_function(networks: dict[str, Network], case: NetworkCase, scheme: str) -> None:
    network = networks[case.name]
    found = run(network.lowered(scheme), network.inputs)
    assert np.abs(found - run(network.path, network.inputs)).max() < 1e-5 * np.ptp(network.outputs)


@every_case
def test_the_faster_float_file(networks: dict[str, Network], case: NetworkCase, tmp_path: Path) -> None:
    network = networks[case.name]
    onnxruntime_int8.lower_float(network.path, tmp_path / "float.onnx")
    found = run(tmp_path / "float.onnx", network.inputs)
    assert np.abs(found - run(network.path, network.inputs)).max() < 1e-5 * np.ptp(network.outputs)
    counts = running(tmp_path / "float.onnx", tmp_path)
    assert counts["Transpose"] == case.float_transposes
    assert counts["Reshape"] == 0
    assert inspect_model(tmp_path / "float.onnx").inputs == inspect_model(network.path).inputs


@every_case
def test_all_layers_run_on_integers(networks: dict[str, Network], case: NetworkCase, tmp_path: Path) -> None:
    network = networks[case.name]
    path = network.quantized("uint8", "whole")
    counts = running(path, tmp_path)
    assert {kind: counts[kind] for kind in case.running} == case.running
    layers = onnxruntime_int8.linear_layers(network.lowered("uint8"))
    assert counts["QLinearConv"] + counts["QGemm"] == len(layers)
    assert counts["Conv"] == counts["Gemm"] == 0
    assert counts["Transpose"] <= 1  # of the 1x1 image before the classifier
    summary = inspect_model(path)
    assert summary.precision == "int8"
    assert [(value.name, value.dtype, value.shape) for value in (*summary.inputs, *summary.outputs)] == [
        ("image", "uint8", (1, 64, 64, 3)),
        ("logits", "float32", (1, 10)),
    ]


@every_case
def test_quantized_results(networks: dict[str, Network], case: NetworkCase) -> None:
    network = networks[case.name]
    noise = {
        scheme: noise_db(network.outputs, run(network.quantized(scheme, "whole"), network.inputs)) for scheme in SCHEMES
    }
    assert noise["uint8"] > 20
    assert noise["uint8"] > noise["converter"]


@every_scheme
def test_the_same_bytes_again(networks: dict[str, Network], scheme: str) -> None:
    network = networks["mobilenet_v3_small"]
    first, second = network.quantized(scheme, "first"), network.quantized(scheme, "second")
    assert first.read_bytes() == second.read_bytes()


@every_case
def test_float_layers_stay_float(networks: dict[str, Network], case: NetworkCase, tmp_path: Path) -> None:
    network = networks[case.name]
    layers = onnxruntime_int8.linear_layers(network.lowered("uint8"))
    chosen = layers[1::5]
    path = network.quantized("uint8", "mixed", chosen)
    counts = running(path, tmp_path)
    assert counts["Conv"] + counts["Gemm"] == len(chosen)
    assert counts["QLinearConv"] + counts["QGemm"] == len(layers) - len(chosen)
    summary = inspect_model(path)
    assert summary.precision == "mixed"
    assert set(summary.float_operations) == set(chosen)
    assert noise_db(network.outputs, run(path, network.inputs)) > 20


def test_all_layers_float_is_the_float_network(networks: dict[str, Network]) -> None:
    network = networks["efficientnet_b0"]
    layers = onnxruntime_int8.linear_layers(network.lowered("uint8"))
    path = network.quantized("uint8", "float", layers)
    assert noise_db(network.outputs, run(path, network.inputs)) > 90
    assert inspect_model(path).precision == "float32"


@every_case
def test_openvino_reads_the_files(networks: dict[str, Network], case: NetworkCase) -> None:
    import openvino

    network = networks[case.name]
    path = network.quantized("uint8", "whole")
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = np.concatenate([compiled(image[None])[0] for image in network.inputs])
    assert noise_db(network.outputs, found) > 20

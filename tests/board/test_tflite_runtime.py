"""The agent in an environment of tflite-runtime and NumPy 1, as on an armv7l board.

`make test-tflite-runtime` makes that environment and names its interpreter in EDGESHIP_TFLITE_RUNTIME_PYTHON.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from devices.measurement import BenchmarkSettings, Case, SampleFile, benchmark, predict
from devices.profile import DeviceProfile, load_profile
from pipeline.model_source import Calibration, ModelSource
from pipeline.network import ModelConfig, build_network, save_network
from pipeline.saved_model import write_saved_model
from pipeline.signature import read_signature
from pipeline.targets.litert import LiteRTTarget

PRECISIONS = ("float32", "float16", "int8")


@pytest.fixture(scope="module")
def board() -> DeviceProfile:
    python = os.environ.get("EDGESHIP_TFLITE_RUNTIME_PYTHON")
    if not python:
        pytest.fail("EDGESHIP_TFLITE_RUNTIME_PYTHON is not set: run `make test-tflite-runtime`")
    return load_profile("local").model_copy(update={"name": "board", "python": str(Path(python).absolute())})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models_by_precision(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("network")
    config = ModelConfig(name="mobilenet_v2", width=0.35)
    model = build_network(config, (32, 32, 3), 10)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "moving_mean", "bias"):
            weight.assign(rng.normal(0, 0.2, weight.shape))
        else:  # large enough for the image to reach the logits
            rows = weight.shape[:2] if "depthwise" in weight.path else weight.shape[:-1]
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(rows)), weight.shape))
    save_network(model, directory, config=config, classes=[str(label) for label in range(10)])
    write_saved_model(model, directory)
    source = ModelSource(directory, read_signature(directory))
    calibration = Calibration(source.signature, {"image": images})
    exported = {}
    for precision in PRECISIONS:
        out_dir = tmp_path_factory.mktemp(precision)
        exported[precision] = LiteRTTarget().export(source, precision, calibration, out_dir)
    return exported


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tflite_runtime_answers_as_litert_does(
    precision: str, board: DeviceProfile, models_by_precision: dict[str, Path], images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    case = Case(id=precision, runtime="litert", path=str(models_by_precision[precision]))
    logits = {}
    for profile in (load_profile("local"), board):
        out_dir = tmp_path / profile.name
        prediction = predict(profile, case, [SampleFile(path=str(tmp_path / "images.npy"))], None, str(out_dir))
        logits[profile.name] = np.load(out_dir / "output_0.npy")
        runtime = "tflite-runtime" if profile is board else "ai-edge-litert"
        assert runtime.replace("-", "_") in str(prediction.model).replace("-", "_")
    reach = np.ptp(logits["local"])
    assert np.ptp(logits["local"], axis=0).max() > 0.1 * reach > 0
    # The two round each int8 layer in their own way, and a network of random weights passes that on at full size.
    limit = {"float32": 1e-5, "float16": 1e-5, "int8": 0.1}[precision]
    noise = np.sqrt(np.mean((logits["board"] - logits["local"]) ** 2))
    assert noise <= limit * reach


def test_it_measures_there(board: DeviceProfile, models_by_precision: dict[str, Path]) -> None:
    case = Case(id="int8", runtime="litert", path=str(models_by_precision["int8"]))
    settings = BenchmarkSettings(min_count=20, min_time_s=0.0, warm_up_time_s=0.0)
    (result,) = benchmark(board, [case], settings).cases
    assert result.error is None
    assert result.latency_ms is not None
    assert result.latency_ms.count >= 20

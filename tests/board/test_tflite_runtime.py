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

# TensorFlow's converter calibrates named inputs through its own interpreter, which it calls old.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning")

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


@pytest.fixture(scope="module")
def quantized_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """left (1, 4, 6, 3) and right (1, 5) to their product with random weights, and twice the right: all int8."""
    import tensorflow as tf

    directory = tmp_path_factory.mktemp("pair")
    random = np.random.default_rng(2)
    weights = random.normal(size=(77, 3)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 6, 3), name="left"), tf.TensorSpec((1, 5), name="right")])
    def pair(left, right):
        joined = tf.concat([tf.reshape(left, (1, 72)), right], 1)
        return {"product": joined @ weights, "twice": right * 2.0}

    module = tf.Module()
    module.pair = pair
    tf.saved_model.save(module, str(directory), signatures={"serving_default": pair})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        {
            "left": random.random((1, 4, 6, 3), np.float32),
            "right": random.random((1, 5), np.float32),
        }
        for _ in range(20)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (directory / "pair.tflite").write_bytes(converter.convert())
    return directory / "pair.tflite"


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_quantized_inputs_and_outputs_by_name(board: DeviceProfile, quantized_pair: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    stored = {
        "left": random.integers(0, 256, (8, 4, 6, 3), dtype=np.uint8),
        "right": random.random((8, 5)).astype(np.float32),
    }
    transforms = {"left": {"dtype": "float32", "scale": 1 / 255}, "right": {"dtype": "float32"}}
    for name, values in stored.items():
        np.save(tmp_path / f"{name}.npy", values)
    files = [
        SampleFile(name=name, path=str(tmp_path / f"{name}.npy"), transform=transform)
        for name, transform in transforms.items()
    ]
    case = Case(id="pair", runtime="litert", path=str(quantized_pair))
    outputs = {}
    for profile in (load_profile("local"), board):
        prediction = predict(profile, case, files, None, str(tmp_path / profile.name))
        assert {output.dtype for output in prediction.outputs} == {"int8"}
        outputs[profile.name] = {output.name: np.load(output.path) for output in prediction.outputs}
    assert np.abs(outputs["board"]["twice"] - 2 * stored["right"]).max() < 0.02
    product = outputs["local"]["product"]
    assert np.abs(outputs["board"]["product"] - product).max() < 0.03 * np.ptp(product)

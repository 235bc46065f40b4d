"""Calibration of networks that are really trained, and its way to the exported file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.calibration.measures import measures
from pipeline.calibration.methods import Method
from pipeline.calibration.record import SplitLogits, calibrate_confidence
from pipeline.executor import child_environment
from tests.conftest import Workplace

GUO_FACTOR = 2.5
"""Guo et al. 2017, Table 1: temperature scaling lowers the error at least so many times (ImageNet, ResNet-152: 2.9)."""

OVERCONFIDENT = """
import json, sys
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

from pipeline.network import ModelConfig, build_network, predict_logits, save_network
from pipeline.quantization.section import CalibrationSetConfig
from pipeline.reference import CalibrateConfig
from pipeline.stages.calibrate import CalibrateStage

folder = Path(sys.argv[1])
data, trained = folder / "data", folder / "train"
for path in (data, trained):
    path.mkdir()

# Two fifths of the training labels are wrong and are learnt by heart. What the network is judged on has right ones.
digits = load_digits()
rng = np.random.default_rng(0)
order = rng.permutation(len(digits.target))
images = np.kron(digits.images[order] * 255 / 16, np.ones((1, 4, 4)))[..., None].repeat(3, -1).astype(np.uint8)
labels = digits.target[order].astype(np.int64)
splits = {"train": slice(0, 600), "validation": slice(600, 1200), "test": slice(1200, None)}
noisy = labels[splits["train"]].copy()
wrong = rng.random(len(noisy)) < 0.4
noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, wrong.sum())) % 10
for name, rows in splits.items():
    np.save(data / f"{name}_images.npy", images[rows])
    np.save(data / f"{name}_labels.npy", labels[rows])
(data / "dataset.json").write_text(json.dumps({"classes": list("0123456789")}))
(data / "index.jsonl").write_text(
    "".join(
        json.dumps({"split": "train", "row": row, "name": str(row), "digest": str(row)}) + "\\n" for row in range(600)
    )
)

keras.utils.set_random_seed(0)
config = ModelConfig(name="mobilenet_v2", width=0.35, early_stride=True, dropout=0.0, batch_norm_momentum=0.9)
network = build_network(config, (32, 32, 3), 10)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
network.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
history = network.fit(images[splits["train"]], noisy, batch_size=60, epochs=int(sys.argv[2]), verbose=0).history
save_network(network, trained, config=config, classes=list("0123456789"))

logits = {name: predict_logits(network, images[splits[name]]) for name in ("validation", "test")}
np.savez(folder / "logits.npz", **logits)

stage = CalibrateStage(calibrate=CalibrateConfig(), quantization=CalibrationSetConfig())
metrics = stage.run({"data": data, "train": trained}, folder, lambda event: None)
(folder / "found.json").write_text(json.dumps({**metrics, "training_accuracy": history["accuracy"][-1]}))
"""


@pytest.fixture(scope="module")
def overconfident(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MobileNetV2 trained without smoothing until it knows wrong labels by heart, and calibrated."""
    folder = tmp_path_factory.mktemp("overconfident")
    done = subprocess.run(
        [sys.executable, "-c", OVERCONFIDENT, str(folder), "40"],
        check=False,
        env=child_environment("tensorflow") | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(overconfident: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((overconfident / "found.json").read_text())
    return loaded


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_temperature_scaling_lowers_the_error_as_much_as_in_guo_et_al(found: dict[str, Any]) -> None:
    before, after = (found["test"][when] for when in ("before", "after"))
    assert found["training_accuracy"] > 0.85, "it knows wrong labels by heart"
    assert found["temperature"] > 1.3, "it is overconfident"
    assert before["ece"] > 0.1
    assert after["ece"] <= before["ece"] / GUO_FACTOR
    assert after["ece_interval"][1] < before["ece_interval"][0]
    assert after["nll"] < before["nll"]
    assert after["accuracy"] == before["accuracy"]
    assert found["calibration_warnings"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_reference_is_the_calibrated_network(overconfident: Path, found: dict[str, Any]) -> None:
    logits, labels = (np.load(overconfident / f"reference_{name}.npy") for name in ("output_0", "labels"))
    after = measures(logits, labels)
    assert after["ece"] == pytest.approx(found["test"]["after"]["ece"], abs=2e-3)
    assert after["nll"] == pytest.approx(found["test"]["after"]["nll"], rel=1e-4)
    assert (overconfident / "reliability.svg").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_every_method_helps(overconfident: Path, tmp_path: Path, method: Method) -> None:
    with np.load(overconfident / "logits.npz") as logits:
        splits = [
            SplitLogits(logits[name], np.load(overconfident / "data" / f"{name}_labels.npy"))
            for name in ("validation", "test")
        ]
    scaling, metrics = calibrate_confidence(method, splits[0], splits[1], tmp_path, lambda _: None)
    before, after = (metrics["test"][when] for when in ("before", "after"))
    assert after["ece"] <= before["ece"] / GUO_FACTOR
    assert after["nll"] < before["nll"]
    assert (scaling.confidence_map is not None) == (method == "isotonic")


@pytest.mark.slow
def test_a_map_of_the_confidence_travels_with_the_model(workplace: Workplace) -> None:
    isotonic = ("--set", "calibrate.method=isotonic")
    outcome = workplace.edgeship("run", "tiny.yaml", *isotonic, "--json")
    assert outcome.code == 0, outcome.stderr
    report = outcome.json()
    [calibrate] = workplace.artifacts("calibrate")
    kept = (calibrate / "calibration.json").read_bytes()
    after = report["network"]["calibration"]["test"]["after"]
    for row in report["artifacts"]:
        assert Path(row["confidence_map"]).read_bytes() == kept
        assert Path(row["confidence_map"]).parent == Path(row["path"]).parent
    exact = next(row for row in report["artifacts"] if row["precision"] == "float32")
    assert exact["ece"] == pytest.approx(after["ece"], abs=1e-3)
    assert exact["ece"] == pytest.approx(exact["reference_ece"], abs=1e-3)
    assert [row["ece"] for row in report["benchmarks"]] == [row["ece"] for row in report["artifacts"]]
    manifest = json.loads((Path(exact["path"]).parent / "manifest.json").read_text())
    assert {file["path"] if isinstance(file, dict) else file for file in manifest["files"]} >= {"calibration.json"}

    judged = workplace.edgeship("eval", exact["path"], "--data", "tiny.npz", "--device", "fake", "--json")
    assert judged.code == 0, judged.stderr
    assert judged.json()["ece"] == exact["ece"]
    alone = workplace.directory / Path(exact["path"]).name
    alone.write_bytes(Path(exact["path"]).read_bytes())
    judged = workplace.edgeship("eval", str(alone), "--data", "tiny.npz", "--device", "fake", "--json")
    assert judged.json()["ece"] != exact["ece"], "without the map its confidence is another"

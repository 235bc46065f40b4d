"""int8 files that are twice as sure as their float files get a temperature that takes it back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.calibration.measures import measures
from pipeline.executor import child_environment
from pipeline.manifest import MANIFEST, Manifest
from pipeline.metrics import log_softmax
from pipeline.model_source import Calibration
from pipeline.quantization.static import lowered_and_observed
from pipeline.signature import read_signature
from pipeline.stages.temperature import TemperatureStage
from pipeline.targets import QUANTIZERS, TARGETS
from pipeline.targets.base import TargetName
from tests.integration.test_scaled_outputs import SCRIPT, answers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNT, SHARPNESS = 500, 5.0


def images(count: int) -> Any:
    """Of the kind that the networks' statistics were taken of."""
    rng = np.random.default_rng(3)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.normal(0, 30, coarse.shape), 0, 255).astype(np.uint8)


def publish(directory: Path, model: Path, **metrics: Any) -> Path:
    """Puts a manifest beside a model, as of an export."""
    manifest = Manifest(
        stage="export", key=directory.name, config={}, inputs={}, code="", tools={}, fingerprint="",
        metrics={"model": model.name, **metrics}, wall_time_s=0.0,
    )  # fmt: skip
    (directory / MANIFEST).write_text(manifest.to_json())
    return directory


@dataclass(frozen=True)
class Export:
    """What the stage reads, and the labels of its images."""

    inputs: Mapping[str, Path]
    images: Any
    labels: Any
    float_path: Path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("networks")
    subprocess.run([sys.executable, str(SCRIPT), str(directory)], check=True, env=child_environment("tensorflow"))
    return directory / "dense_head"


def export(networks: Path, target: TargetName, directory: Path, *, shift: float) -> Export:
    """An int8 file that is `shift` times as sure as its float file, whose confidence is honest."""
    suffix, quantizer = TARGETS[target].suffix, QUANTIZERS[target]
    folders = {name: directory / name for name in ("data", "float32", "export", "scratch")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    floats, int8 = folders["float32"] / f"model{suffix}", folders["export"] / f"model{suffix}"
    quantizer.scale_output(networks / target / f"model{suffix}", SHARPNESS, floats)
    given = images(COUNT)
    thresholds = np.exp(log_softmax(answers_of(floats, given))).cumsum(axis=1)
    labels = (np.random.default_rng(0).random((COUNT, 1)) > thresholds).sum(axis=1)
    observed = lowered_and_observed(
        quantizer, floats, scheme=next(iter(quantizer.SCHEMES)), output="logits", directory=folders["scratch"],
        calibration=Calibration(read_signature(networks), {"image": given[:64]}),
    )  # fmt: skip
    plain = folders["scratch"] / f"int8{suffix}"
    observed.quantize(observed.ranges("min_max"), plain)
    quantizer.scale_output(plain, shift, int8)
    (folders["data"] / "dataset.json").write_text("{}")
    np.save(folders["data"] / "validation_images.npy", given)
    np.save(folders["data"] / "validation_labels.npy", labels)
    (folders["export"] / "sensitivity.json").write_text("[]")
    (folders["export"] / "attempts").mkdir()
    inputs = {
        "data": folders["data"],
        "calibrate": networks,
        "float32": publish(folders["float32"], floats),
        "export": publish(folders["export"], int8, target=target, precision="int8", note="kept", graph={}),
    }
    return Export(inputs, given, labels, floats)


def answers_of(path: Path, given: Any) -> Any:
    if path.suffix == ".onnx":  # a session for all images: each takes its time to open
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {"image": image[None]})[0] for image in given])
    if path.suffix == ".xml":
        import openvino as ov

        compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.concatenate([np.array(compiled(image[None])[0]) for image in given])
    return answers(path, given)


@pytest.mark.parametrize("target", QUANTIZERS)
def test_a_file_that_is_too_sure_is_repaired(networks: Path, target: TargetName, tmp_path: Path) -> None:
    made = export(networks, target, tmp_path / "made", shift=2.0)
    out, again = tmp_path / "out", tmp_path / "again"
    for folder in (out, again):
        folder.mkdir()

    metrics = TemperatureStage(target=target).run(made.inputs, out, lambda _: None)
    TemperatureStage(target=target).run(made.inputs, again, lambda _: None)

    record, name = metrics["temperature"], metrics["model"]
    assert record["folded"], record
    assert record["fitted"] / record["float_fitted"] == pytest.approx(2, rel=0.1)
    assert record["nll_after"] < record["nll_before"]
    assert record["images"] == COUNT
    before, after, floats = (
        answers_of(path, made.images) for path in (made.inputs["export"] / name, out / name, made.float_path)
    )
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    errors = [measures(logits, made.labels)["ece"] for logits in (before, after, floats)]
    assert errors[0] > errors[2] + 0.05
    assert errors[1] < errors[2] + 0.03
    assert (metrics["precision"], metrics["note"], metrics["target"]) == ("int8", "kept", target)
    assert metrics["graph"]["precision"] == "int8"
    assert metrics["graph"]["sha256"] == TARGETS[target].inspect(out / name).sha256
    files = {path.name for path in made.inputs["export"].iterdir()} - {MANIFEST, "attempts"}
    assert {path.name for path in out.iterdir()} == files
    assert all((out / each).read_bytes() == (again / each).read_bytes() for each in files)


def test_a_file_that_is_as_sure_as_float_is_copied(networks: Path, tmp_path: Path) -> None:
    made = export(networks, "litert", tmp_path / "made", shift=1.0)
    out = tmp_path / "out"
    out.mkdir()

    metrics = TemperatureStage(target="litert").run(made.inputs, out, lambda _: None)

    assert not metrics["temperature"]["folded"]
    assert metrics["temperature"]["statistic"] < 3.84
    assert (out / "model.tflite").read_bytes() == (made.inputs["export"] / "model.tflite").read_bytes()

"""The whole pipeline on real digits, shortened: three runtimes, two precisions, one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "train.epochs=2",
    "train.warmup_epochs=0.5",
    "model.early_stride=true",
    "export.precisions=[float32, int8]",
    "quantization.calibration_images=64",
    "gates.min_accuracy=null",
    "gates.int8={}",
    "benchmark.min_count=40",
    "benchmark.min_time_s=0",
    "benchmark.warm_up_time_s=0",
)
TARGETS = ("litert", "onnxruntime", "openvino")
LABELS = [f"{target}/{precision}" for target in TARGETS for precision in ("float32", "int8")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    recipe = ROOT / "models" / "recipes" / "digits_mobilenet_v2.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--json", *overrides],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "stdout.json").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def report(workplace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workplace / "stdout.json").read_text())
    return found


def linked(workplace: Path, name: str) -> Path:
    return workplace / "runs" / "digits_mobilenet_v2" / "artifacts" / name


def test_every_artifact_is_exported_verified_and_measured(report: dict[str, Any]) -> None:
    assert [f"{row['target']}/{row['precision']}" for row in report["artifacts"]] == LABELS
    for row in report["artifacts"]:
        assert row["images"] >= 128
        low, high = row["accuracy_interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert Path(row["path"]).is_file()
        assert 0 <= row["ece"] <= 1
    for row in report["benchmarks"]:
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"]
        assert latency["p99"] is not None or "368" in latency["missing"]["p99"]
        assert row["mode"] == "measured"
        assert row["load_ms"] > 0
        assert row["first_inference_ms"] > 0
        assert row["peak_memory_mb"] > 0
        exported = next(
            a for a in report["artifacts"] if (a["target"], a["precision"]) == (row["target"], row["precision"])
        )
        assert row["sha256"] == exported["sha256"]
        assert row["accuracy"] == exported["accuracy"], "the agent measures what verifying measured"


def test_float32_answers_like_the_reference(report: dict[str, Any]) -> None:
    floats = [row for row in report["artifacts"] if row["precision"] == "float32"]
    assert len(floats) == 3
    for row in floats:
        assert row["parity"]["max_logit_difference"] <= 1e-4
        assert row["parity"]["top1_agreement"] == 1.0
        assert row["accuracy_drop"] == 0
    gates = [row for row in report["gates"] if row["artifact"] in LABELS[::2] and row["device"] is None]
    assert {row["name"] for row in gates} == {"max_logit_difference", "min_top1_agreement"}
    assert all(row["passed"] for row in gates)


def test_int8_is_quantized_and_says_from_what(report: dict[str, Any]) -> None:
    digests = {row["calibration_set_sha256"] for row in report["artifacts"] if row["precision"] == "int8"}
    assert len(digests) == 1
    for row in report["artifacts"]:
        if row["precision"] == "int8":
            assert row["parity"]["max_logit_difference"] > 1e-4
            assert row["parity"]["snr_db"] > 0


def test_the_selected_one_is_the_fastest_that_passes(report: dict[str, Any]) -> None:
    selection = report["selected"]["local"]
    times = {f"{row['target']}/{row['precision']}": row["latency_ms"]["p50"] for row in report["benchmarks"]}
    assert selection["selected"] == min(times, key=lambda label: times[label])
    assert selection["runner_up"] in times
    assert selection["selected"] in selection["reason"]


def test_the_run_directory_holds_the_same_report(workplace: Path, report: dict[str, Any]) -> None:
    folder = workplace / "runs" / "digits_mobilenet_v2"
    assert json.loads((folder / "report.json").read_text()) == report
    page = (folder / "report.md").read_text()
    assert all(f"| {label} |" in page for label in LABELS)
    assert {path.name for path in (folder / "artifacts").iterdir()} >= {"data", "train", "calibrate", "benchmark-local"}


def test_the_temperature_is_folded_into_the_last_layer(workplace: Path) -> None:
    from pipeline.network import load_network, predict_logits

    manifest = json.loads((linked(workplace, "calibrate") / "manifest.json").read_text())["metrics"]
    images = np.load(linked(workplace, "calibrate") / "reference_input_0.npy")[:64]
    recorded = np.load(linked(workplace, "calibrate") / "reference_output_0.npy")[:64]
    before = predict_logits(load_network(linked(workplace, "train")), images)
    after = predict_logits(load_network(linked(workplace, "calibrate")), images)
    np.testing.assert_allclose(after, recorded, atol=1e-5)
    np.testing.assert_allclose(after * manifest["temperature"], before, rtol=1e-4, atol=1e-4)
    assert manifest["validation"]["after"]["nll"] <= manifest["validation"]["before"]["nll"] + 1e-9
    listed = manifest["calibration_set"]
    assert len(listed["names"]) == len(listed["digests"]) == listed["count"] == 64
    assert all(len(digest) == 64 for digest in listed["digests"])

"""The search for the fastest way to int8, and the walk over the remedies, through the whole pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.executor import child_environment
from tests.conftest import Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
name: small
data: {source: digits, size: [32, 32]}
model: {name: mobilenet_v3_small, width: 0.35}
train: {epochs: 1, warmup_epochs: 0, batch_size: 64}
export: {targets: [litert], precisions: [float32, int8]}
quantization: {calibration_images: 64, search: device}
benchmark: {min_count: 50, min_time_s: 0.05}
gates: {int8: {min_snr_db: null, min_top1_agreement: null, max_accuracy_drop: null}}
devices: [local]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = Workplace(tmp_path_factory.mktemp("search"))
    (workplace.directory / "small.yaml").write_text(RECIPE)
    return workplace


def run(place: Workplace, *arguments: str) -> dict[str, Any]:
    outcome = place.execute(place.command("run", "small.yaml", "--json", *arguments), timeout_s=800)
    assert outcome.code in (0, 1), outcome.stderr
    report: dict[str, Any] = outcome.json()
    return report


def test_the_fastest_way_is_exported_and_the_search_is_paid_once(place: Workplace) -> None:
    first = run(place, "--until", "export")
    (search,) = first["searches"]
    assert search["target"] == "litert"
    assert {row["scheme"] for row in search["candidates"]} >= {"delegated", "converter"}
    assert all(row["latency_ms"] or row["error"] for row in search["candidates"])
    assert search["float32_latency_ms"]["p50"] > 0
    exported = {row["precision"]: row for row in first["artifacts"]}
    assert exported["int8"]["quantization"]["scheme"] == search["schemes"][0]
    # Its confidence was looked at, beside that of the float32 file.
    assert exported["int8"]["temperature"]["images"] == first["data"]["num_validation_images"]
    assert exported["int8"]["temperature"]["float_fitted"] == pytest.approx(1, abs=0.01)
    # Another training of the same structure takes the same search.
    again = run(place, "--until", "search", "--set", "train.seed=5")
    cached = {stage["name"]: stage["cached"] for stage in again["stages"]}
    assert (cached["train"], cached["search/litert"]) == (False, True)


def test_remedies_are_tried_until_one_holds_and_each_is_kept(place: Workplace) -> None:
    report = run(place, "--until", "verify", "--set", "quantization.accuracy={max_drop: 0.0}",
                 "--set", "quantization.accuracy.remedies=[ranges, bias, mixed]",
                 "--set", "quantization.sensitivity=true")  # fmt: skip
    steps = [stage["name"] for stage in report["stages"] if stage["name"].startswith(("int8/", "remedy/"))]
    assert steps[0] == "int8/litert/ranges"
    exported = next(row for row in report["artifacts"] if row["precision"] != "float32")
    record = exported["quantization"]
    assert record["attempts"][0]["remedy"] == "ranges"
    chosen = record["attempts"][record["chosen"]]
    assert chosen["holds"] == record["holds"]
    assert exported["precision"] == ("mixed" if chosen["float_layers"] else "int8")
    assert chosen["drop"]["drop"] == min(attempt["drop"]["drop"] for attempt in record["attempts"]) or chosen["holds"]
    json.dumps(report)
    if not record["holds"]:
        assert steps[-1] == "int8/litert/mixed"
    assert Path(exported["path"]).is_file()
    directory = Path(exported["path"]).parent
    layers = json.loads((directory / "sensitivity.json").read_text())["layers"]
    assert all(layer["alone_db"] is not None and layer["output_db"] is not None for layer in layers)
    assert record["sensitivity"]["most_sensitive"][0]["alone_db"] == min(layer["alone_db"] for layer in layers)
    assert (directory / "sensitivity.svg").is_file()


HURT = """
import keras, numpy as np
from keras import layers as L

keras.utils.set_random_seed(0)
image = keras.Input((16, 16, 3), name="photo")
x = image
for number in range(8):
    strides = 2 if number in (1, 3, 5) else 1
    x = L.Conv2D(12, 3, strides=strides, padding="same", activation="relu", kernel_initializer="he_normal",
                 name=f"conv_{number}")(x)
model = keras.Model(image, L.Dense(4, name="scores")(L.Flatten()(x)))
# Weights for a channel that is always zero: they change nothing but the grid of all others.
for bad in (2, 6):
    before, after = model.get_layer(f"conv_{bad - 1}"), model.get_layer(f"conv_{bad}")
    kernel, bias = before.get_weights()
    kernel[..., 1], bias[1] = 0.0, -1.0
    before.set_weights([kernel, bias])
    kernel, bias = after.get_weights()
    kernel[:, :, 1] = 40.0
    after.set_weights([kernel, bias])
images = np.random.default_rng(0).integers(0, 256, (600, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
scores = model.predict(images / np.float32(127.5) - 1, verbose=0)
scores_layer = model.get_layer("scores")
kernel, _ = scores_layer.get_weights()
scores_layer.set_weights([kernel, -scores.mean(axis=0)])
np.savez("photos.npz", images=images, labels=(scores - scores.mean(axis=0)).argmax(axis=1))
model.save("hurt.keras")
"""

HURT_RECIPE = """
name: hurt
data: {source: npz, path: photos.npz, size: [16, 16]}
model:
  path: hurt.keras
  inputs: [{name: photo, scale: 0.00784313725, offset: -1.0}]
  metric: top1
export: {targets: [litert, openvino], precisions: [float32, int8]}
quantization: {calibration_images: 64, ranges: mse, accuracy: {max_drop: 0.08}}
benchmark: {min_count: 50, min_time_s: 0.05, warm_up_time_s: 0}
devices: [local]
"""


def test_layers_stay_in_float_until_the_limit_holds_and_every_file_is_measured(place: Workplace) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HURT], cwd=place.directory, env=child_environment("tensorflow"), check=False,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (place.directory / "hurt.yaml").write_text(HURT_RECIPE)
    outcome = place.execute(place.command("run", "hurt.yaml", "--json", "--until", "verify"), timeout_s=800)
    assert outcome.code in (0, 1), outcome.stderr
    report = outcome.json()
    records = {row["target"]: row for row in report["artifacts"] if row["precision"] != "float32"}
    frontiers = {found["target"]: found for found in report["frontiers"]}
    assert set(records) == set(frontiers) == {"litert", "openvino"}
    for target, frontier in frontiers.items():
        record = records[target]["quantization"]
        assert [row["remedy"] for row in record["attempts"]] == ["ranges", "mixed", "mixed"], target
        assert (records[target]["precision"], record["holds"], record["chosen"]) == ("mixed", True, 2)
        drops = [row["drop"] for row in frontier["attempts"]]
        assert drops[0] > 0.2
        assert drops[2] <= 0.08
        assert [row["float_layers"]["count"] for row in frontier["attempts"]] == [0, 1, 2]
        assert [row["chosen"] for row in frontier["attempts"]] == [False, False, True]
        for row in (frontier["float32"], *frontier["attempts"]):
            assert row["error"] is None
            assert row["latency_ms"]["p50"] > 0
        assert any(row["on_frontier"] for row in (frontier["float32"], *frontier["attempts"]))
        kept = place.directory / "runs" / "hurt" / "artifacts"
        for row in record["attempts"]:
            assert (kept / f"int8-{target}-{row['remedy']}" / row["file"]).is_file()
        assert (kept / f"frontier-{target}" / "frontier.svg").is_file()
        assert (kept / f"export-{target}-mixed" / "sensitivity.svg").is_file()
    page = (place.directory / "runs" / "hurt" / "report.md").read_text()
    assert (
        "litert int8 keeps to the limit of 8.00 points by mixed (delegated, ranges by mse, 2 layers in float)" in page
    )
    assert "(artifacts/frontier-openvino/frontier.svg)" in page

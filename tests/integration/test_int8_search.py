"""The search for the fastest way to int8, and the walk over the remedies, through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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


def test_what_the_attempts_cost_is_measured_beside_float32(place: Workplace) -> None:
    report = run(place, "--until", "verify", "--set", "quantization.accuracy={max_drop: 0.0}",
                 "--set", "quantization.accuracy.remedies=[ranges, bias, mixed]",
                 "--set", "quantization.sensitivity=true")  # fmt: skip
    (frontier,) = report["frontiers"]
    record = next(row for row in report["artifacts"] if row["precision"] != "float32")["quantization"]
    assert (frontier["target"], frontier["mode"], len(frontier["attempts"])) == (
        "litert", "measured", len(record["attempts"]),
    )  # fmt: skip
    for row, attempt in zip(frontier["attempts"], record["attempts"], strict=True):
        assert row["error"] is None
        assert row["latency_ms"]["p50"] > 0
        assert row["float32_ratio"] > 0
        assert (row["remedy"], row["drop"]) == (attempt["remedy"], attempt["drop"]["drop"])
        assert row["float_layers"]["count"] == len(attempt["float_layers"])
    assert [row["chosen"] for row in frontier["attempts"]].index(True) == record["chosen"]
    assert any(row["on_frontier"] for row in (frontier["float32"], *frontier["attempts"]))
    pages = place.directory / "runs" / "small"
    assert "artifacts/frontier-litert/frontier.svg" in (pages / "report.md").read_text()
    assert (pages / "artifacts" / "frontier-litert" / "frontier.svg").is_file()
    assert (pages / "artifacts" / "frontier-litert" / "frontier.json").is_file()

"""The report: the object, the page and the table, whole and with parts missing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.profile import load_profile
from pipeline.errors import StageError
from pipeline.gates import GatesConfig
from pipeline.manifest import Artifact, Manifest
from pipeline.quantization.comparison import compare_accuracy
from pipeline.recipe import Recipe
from pipeline.report import TABLE_COLUMNS, failed_gates, markdown, report_of, summary_lines, table_rows
from pipeline.runner import RunResult, StageRecord
from pipeline.stages.select import select

RECIPE = Recipe.model_validate(
    {
        "name": "r",
        "data": {"source": "digits", "size": (32, 32)},
        "model": {"name": "fake"},
        "export": {"targets": ("fake",), "precisions": ("float32", "int8")},
        "gates": {"min_accuracy": 0.9},
        "devices": ("fake",),
    }
)
SUMMARY = {"ece": 0.02, "ece_interval": [0.01, 0.03], "nll": 0.1, "brier": 0.05, "accuracy": 0.95}
BOTH = {"before": SUMMARY | {"ece": 0.12, "ece_interval": [0.1, 0.14]}, "after": SUMMARY}
CALIBRATED = {
    "method": "temperature", "temperature": 1.5, "calibration_warnings": [], "validation": BOTH, "test": BOTH,
    "calibration_set": {"count": 200, "warnings": []},
}  # fmt: skip
DATA = {
    "num_classes": 10,
    "num_train_images": 900,
    "num_validation_images": 100,
    "num_test_images": 360,
    "num_removed_duplicates": 2,
    "num_label_conflicts": 0,
    "num_unreadable": 1,
}


def artifact(name: str, metrics: dict[str, Any]) -> Artifact:
    stage = name.partition("/")[0]
    manifest = Manifest(
        stage=stage, key=f"key-{name}", config={}, inputs={}, code="", tools={}, fingerprint="", metrics=metrics,
        wall_time_s=1.0,
    )  # fmt: skip
    return Artifact(Path("/store") / name, manifest)


def exported(precision: str) -> dict[str, Any]:
    graph = {"sha256": "ab" * 32, "weights_sha256": None, "size_bytes": 2048, "operations": {"LINEAR": 1}}
    metrics = {"target": "fake", "precision": precision, "model": "model.fake", "graph": graph, "note": None}
    return metrics | ({"calibration_set_sha256": "cd" * 32} if precision == "int8" else {"note": "a note"})


def verified(accuracy: float) -> dict[str, Any]:
    parity = {
        "logit_range": 9.0, "max_logit_difference": 0.0, "mean_logit_difference": 0.0, "snr_db": None,
        "top1_agreement": 1.0,
    }  # fmt: skip
    return {
        "images": 360, "parity": parity, "accuracy": accuracy, "accuracy_interval": [0.9, 0.97],
        "accuracy_drop": 0.95 - accuracy, "ece": 0.03, "nll": 0.2, "brier": 0.1, "ece_interval": [0.02, 0.04],
        "reference_ece": 0.02, "ece_change": 0.01, "ece_change_interval": [-0.01, 0.03], "mce": 0.2,
        "adaptive_ece": 0.03, "classwise_ece": 0.01,
    }  # fmt: skip


def measured(identity: str, p50: float) -> dict[str, Any]:
    return {
        "id": identity, "error": None, "load_ms": 1.0, "first_inference_ms": 0.5, "warm_up_count": 10,
        "latency_ms": {"p50": p50, "p90": p50, "p99": p50, "p50_interval": [p50, p50]}, "num_threads": 1,
        "peak_memory_mb": None, "peak_memory_reason": "not asked", "size_bytes": 2048, "stopped_by": "target",
        "accuracy": 0.95, "accuracy_interval": [0.9, 0.97], "ece": 0.03, "ece_interval": [0.02, 0.04],
        "sha256": "ab" * 32,
    }  # fmt: skip


def whole(*, until: str = "report", int8_accuracy: float = 0.95) -> RunResult:
    """A run of two exports on one device, or its beginning."""
    steps: list[tuple[str, dict[str, Any]]] = [
        ("data", DATA),
        ("train", {"best_epoch": 1, "parameters": 10}),
        ("calibrate", CALIBRATED),
        ("export/fake/float32", exported("float32")),
        ("export/fake/int8", exported("int8")),
        ("verify/fake/float32", verified(0.95)),
        ("verify/fake/int8", verified(int8_accuracy)),
    ]
    cases = [measured("fake/float32", 2.0), measured("fake/int8", 1.0)]
    benchmark = {
        "device": "fake", "mode": "simulated", "facts": {"cpu_model": "A | B", "cores": 4, "os": "L", "python": "3"},
        "load_average_before": [0.5, 0.4, 0.3], "load_average_after": None, "warnings": ["busy"], "cases": cases,
    }  # fmt: skip
    steps.append(("benchmark/fake", benchmark))
    chosen = select(
        GatesConfig(min_accuracy=0.9),
        "latency_p50_ms",
        device="fake",
        budgets={},
        exported={f"fake/{name}": exported(name) for name in ("float32", "int8")},
        verified={"fake/float32": verified(0.95), "fake/int8": verified(int8_accuracy)},
        cases={case["id"]: case for case in cases},
    )
    steps.append(("select/fake", chosen))
    result = RunResult(RECIPE, (load_profile("fake"),))
    for name, metrics in steps:
        result.artifacts[name] = artifact(name, metrics)
        result.stages.append(StageRecord(name, f"key-{name}", cached=False, seconds=1.25))
        if name.partition("/")[0] == until and name.endswith(("data", "train", "int8", "fake", "calibrate")):
            break
    return result


def test_the_object_holds_what_the_contract_says() -> None:
    report = report_of(whole())
    assert json.loads(json.dumps(report)) == report
    assert {"recipe", "artifacts", "benchmarks", "selected", "gates", "stages"} <= set(report)
    row = report["artifacts"][1]
    assert {
        "target", "precision", "path", "sha256", "size_bytes", "accuracy", "accuracy_interval", "accuracy_drop", "ece",
        "parity", "calibration_set_sha256",
    } <= set(row)  # fmt: skip
    bench = report["benchmarks"][0]
    assert {"device", "target", "precision", "mode", "load_ms", "first_inference_ms", "peak_memory_mb"} <= set(bench)
    assert {"p50", "p90", "p99"} <= set(bench["latency_ms"])
    assert {"name", "limit", "value", "passed"} <= set(report["gates"][0])
    assert set(report["stages"][0]) == {"name", "key", "cached", "seconds"}
    assert report["selected"]["fake"]["selected"] == "fake/int8"
    assert failed_gates(report) == []


def test_what_a_walk_tried_and_what_it_costs_are_in_the_object_and_on_the_page() -> None:
    result = whole()
    correct = np.arange(100) < 90
    drop = asdict(compare_accuracy(correct, correct & (np.arange(100) > 2)))
    attempt = {
        "remedy": "ranges", "scheme": "plain", "range_method": "mse", "range_ratios_db": {}, "float_layers": [],
        "drop": drop, "holds": True, "seconds": 2.0, "file": "attempts/0.fake",
    }  # fmt: skip
    record = {"attempts": [attempt], "chosen": 0, "max_drop": 0.05, "holds": True}
    cost = {"chosen": True, "latency_ms": {"p50": 1.5}, "float32_ratio": 0.75, "placed_ms": 1.5, "on_frontier": True}
    floats = {"latency_ms": None, "placed_ms": None, "float32_ratio": None, "remedy": "float32", "error": "gone."}
    frontier = {"target": "fake", "float32": floats, "attempts": [{**attempt, **cost, "error": None}]}
    result.artifacts["export/fake/int8"] = artifact("export/fake/int8", exported("int8") | {"quantization": record})
    result.artifacts["frontier/fake"] = artifact("frontier/fake", frontier)
    report = json.loads(json.dumps(report_of(result)))
    assert [found["target"] for found in report["frontiers"]] == ["fake"]
    page = markdown(report)
    assert (
        "- fake int8 keeps to the limit of 5.00 points by ranges (plain, ranges by mse): a drop of 3.00 points" in page
    )
    assert "0.75 of float32's latency" in page
    assert "- fake float32 could not be measured: gone." in page
    assert "## int8, remedy by remedy" in page
    assert "(artifacts/frontier-fake/frontier.svg)" in page


def test_gates_stand_once() -> None:
    rows = report_of(whole())["gates"]
    names = [(row["name"], row["artifact"], row["device"]) for row in rows]
    assert len(names) == len(set(names))
    assert ("min_accuracy", "fake/int8", None) in names


def test_a_failed_gate_is_a_sentence() -> None:
    report = report_of(whole(int8_accuracy=0.5))
    assert "fake/int8: min_accuracy 0.5 breaks the limit 0.9" in failed_gates(report)
    assert any(line.startswith("Gate failed: fake/int8: min_accuracy 0.5") for line in summary_lines(report))
    assert "| fake/int8 |  | min_accuracy | 0.9 | 0.5 | FAILED |" in markdown(report)
    assert "min_accuracy" in table_rows(report, "fake")[1][-1]


@pytest.mark.parametrize("until", ["data", "train", "calibrate", "export", "verify", "benchmark", "select"])
def test_every_beginning_of_a_run_has_a_report(until: str) -> None:
    report = report_of(whole(until=until))
    page = markdown(report)
    assert page.startswith("# r\n")
    assert "None" not in page
    rows = table_rows(report, "fake")
    assert all(len(row) == len(TABLE_COLUMNS) for row in rows)
    if until == "export":
        assert rows[0][:4] == ("fake", "float32", "-", "-")
        assert "| fake | float32 | - |" in page
    assert failed_gates(report) == []


def test_gates_are_judged_without_a_device() -> None:
    report = report_of(whole(until="verify", int8_accuracy=0.5))
    assert "fake/int8: min_accuracy 0.5 breaks the limit 0.9" in failed_gates(report)


def test_a_failed_case_has_no_numbers() -> None:
    result = whole(until="benchmark")
    failed = {"id": "fake/int8", "error": {"message": "crashed"}, "latency_ms": None, "peak_memory_mb": None}
    result.artifacts["benchmark/fake"].manifest.metrics["cases"][1] = failed
    report = report_of(result)
    row = table_rows(report, "fake")[1]
    assert row[-1] == "failed on the device"
    assert row[6:12] == ("-",) * 6
    assert report["benchmarks"][1]["error"] == {"message": "crashed"}
    assert "failed on the device" in markdown(report)


def test_confidence_is_told_with_intervals_and_a_picture() -> None:
    report = report_of(whole())
    line = summary_lines(report)[0]
    assert "temperature 1.500 takes the calibration error from 12.00 (10.00 to 14.00) to 2.00 (1.00 to 3.00) %" in line
    page = markdown(report)
    assert "](artifacts/calibrate/reliability.svg)" in page
    assert "| fake/int8 | 3.00 | 2.00 to 4.00 | +1.00 | -1.00 to 3.00 | 3.00 | 1.00 | 20.00 | 0.2000 | 0.1000 |" in page
    assert report["network"]["calibration_method"] == "temperature"
    assert report["benchmarks"][0]["ece_interval"] == [0.02, 0.04]
    assert "worsens the calibration error" not in page


@pytest.mark.parametrize(
    ("change", "interval", "told"),
    [
        (0.01, [0.002, 0.018], True),
        (0.01, [0.0, 0.02], False),
        (-0.01, [-0.02, -0.005], False),
        (1e-6, [5e-7, 2e-6], False),
    ],
    ids=["certain", "uncertain", "better", "too small to show"],
)
def test_a_model_that_is_certainly_worse_calibrated_is_named(change: float, interval: list[float], told: bool) -> None:
    result = whole()
    result.artifacts["verify/fake/int8"].manifest.metrics.update(ece_change=change, ece_change_interval=interval)
    lines = [line for line in summary_lines(report_of(result)) if "worsens the calibration error" in line]
    expected = ["fake int8 worsens the calibration error from 2.00 to 3.00 % (by 0.20 to 1.80 points)."]
    assert lines == (expected if told else [])


@pytest.mark.parametrize(
    ("lost", "words"),
    [(0, None), (30, "fake/int8: The accuracy does not hold: a drop of 3.00 points"),
     (10, "fake/int8: The sample is too small to tell: a drop of 1.00 points")],
    ids=["held", "broken", "unclear"],
)  # fmt: skip
def test_a_drop_that_is_not_shown_to_hold_is_told(lost: int, words: str | None) -> None:
    expected = np.ones(1000, bool)
    right = expected.copy()
    right[:lost] = False
    result = whole()
    for precision in ("float32", "int8"):
        drop = asdict(compare_accuracy(expected, right))
        result.artifacts[f"verify/fake/{precision}"].manifest.metrics.update(paired=json.loads(json.dumps(drop)))
    lines = [line for line in summary_lines(report_of(result)) if line.startswith("fake/")]
    assert len(lines) == (words is not None), "float32 is the judge's business, not the sample's"
    assert all(words is not None and line.startswith(words) for line in lines)
    assert json.loads(json.dumps(report_of(result)))["artifacts"][1]["paired"]["lost"] == lost


@pytest.mark.parametrize(("p50", "words"), [(1.0, "0.50 in fake"), (2.5, "1.25 in fake")], ids=["faster", "slower"])
def test_how_fast_int8_is_beside_float32_is_told(p50: float, words: str) -> None:
    result = whole()
    result.artifacts["benchmark/fake"].manifest.metrics["cases"][1]["latency_ms"]["p50"] = p50
    lines = summary_lines(report_of(result))
    assert f"On fake int8 takes so much of the time of float32: {words}." in lines
    slower = [line for line in lines if "is no faster than float32" in line]
    assert len(slower) == (p50 >= 2)
    assert all("take float32 there" in line for line in slower)


def test_other_answers_on_a_device_are_told() -> None:
    same = {"logit_range": 9.0, "max_logit_difference": 0.0, "mean_logit_difference": 0.0, "snr_db": None,
            "top1_agreement": 1.0}  # fmt: skip
    result = whole()
    cases = result.artifacts["benchmark/fake"].manifest.metrics["cases"]
    cases[0]["divergence"] = same
    cases[1]["divergence"] = same | {"snr_db": 40.0, "max_logit_difference": 0.012, "top1_agreement": 0.995}
    lines = [line for line in summary_lines(report_of(result)) if "answers otherwise" in line]
    words = "another class for 0.50 % of the test images, largest difference 1.2 % of the range."
    assert lines == [f"fake/int8 answers otherwise on fake than here: {words}"]


def test_every_method_has_its_words() -> None:
    for changes, words in (
        ({"method": "vector", "temperature": None}, "vector scaling takes the calibration error"),
        ({"method": "isotonic"}, "isotonic regression takes the calibration error"),
        ({"method": "none", "temperature": 1.0}, "its confidence is not calibrated"),
    ):
        result = whole(until="calibrate")
        result.artifacts["calibrate"].manifest.metrics.update(changes)
        assert words in summary_lines(report_of(result))[0]
    result = whole(until="calibrate")
    changed = {"before": SUMMARY, "after": SUMMARY | {"accuracy": 0.96}}
    metrics = {"method": "vector", "temperature": None, "test": changed, "calibration_warnings": ["Few images."]}
    result.artifacts["calibrate"].manifest.metrics.update(metrics)
    first, second = summary_lines(report_of(result))[:2]
    assert "and the accuracy from 95.00 to 96.00 %" in first
    assert second == "Few images."


def test_failures_are_told() -> None:
    result = whole(until="export")
    del result.artifacts["export/fake/int8"]
    result.failures.append(StageError("the converter refuses it"))
    result.stages[-1] = StageRecord("export/fake/int8", "", cached=False, seconds=1.0, error="the converter refuses it")
    report = report_of(result)
    assert report["failures"] == ["the converter refuses it"]
    assert "Failed: the converter refuses it" in summary_lines(report)
    assert report["stages"][-1]["error"] == "the converter refuses it"
    assert "the converter refuses it" in markdown(report)


def test_no_devices() -> None:
    result = whole(until="verify")
    result.profiles = ()
    assert "| fake | int8 | 95.00 |" in markdown(report_of(result))


def test_the_page_says_where_and_how_it_was_measured() -> None:
    page = markdown(report_of(whole()))
    assert "Data: 900 train, 100 validation, 360 test images of 10 classes; 2 duplicates across splits" in page
    assert "## fake (simulated)" in page
    assert "load 0.50 before and unknown after" in page
    assert "fake: warning: busy." in page
    assert "fake float32: a note." in page
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_cells_hold_no_bars() -> None:
    result = whole()
    result.stages[0] = StageRecord("data", "k", cached=False, seconds=0.0, error="a | b\nsecond line")
    page = markdown(report_of(result))
    assert "| data | k | a / b second line |" in page

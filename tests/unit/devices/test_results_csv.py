"""The results as a table: what a user wants of them is a column."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from devices.comparison import Comparison
from devices.latency import LatencySummary, summarize
from devices.loading import Form, Loading
from devices.measurement import BenchmarkResult, BenchmarkSettings
from devices.quality import Quality
from devices.records import CaseResult, EndToEnd
from devices.results import ResultRecord, records_of
from devices.results_csv import to_csv

LATENCY = summarize([[2_000_000 + 1000 * index for index in range(400)]], seed=0)
COMPARISON = Comparison(case="m", baseline="b", ratio=0.5, interval=(0.4, 0.6), confidence=0.99, verdict="faster",
                        sessions=8)  # fmt: skip
FORM = Form(import_ms=1.0, load_ms=2.0, first_inference_ms=3.0, start_ms=6.0, latency_ms=1.0)
WHOLE = EndToEnd(image="x.jpg", decoder="Pillow 12.0", latency_ms=LATENCY, decode_ms=1.5, preprocess_ms=0.25,
                 infer_ms=2.0, softmax_ms=0.125)  # fmt: skip


def row_of(**case: Any) -> dict[str, str]:
    measured = CaseResult(
        id="m", runtime="litert", path="m.tflite", num_threads=1, sha256="a" * 64, size_bytes=7, latency_ms=LATENCY,
        model={"package": "ai-edge-litert", "version": "2.3.0", "inputs": [], "outputs": []}, **case,
    )  # fmt: skip
    facts = {"cpu_model": "Cortex-A72", "architecture": "aarch64", "board_model": "Raspberry Pi 4",
             "governor": "ondemand", "os": "Debian", "cpu_busy_share": 0.25, "python": "3.11.2"}  # fmt: skip
    result = BenchmarkResult(
        device="raspberry-pi-4", latency_label="measured", settings=BenchmarkSettings(), facts=facts,
        load_average_before=None, load_average_after=None, frequency_mhz_before=None, frequency_mhz_after=None,
        warnings=("hot", "busy"), cases=(measured,),
        comparisons=(COMPARISON,),
    )  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(to_csv(records_of(result))))
    return row


def test_energy_has_its_source() -> None:
    row = row_of(energy_mj=1.5, energy_sensor="ina3221 VDD_CPU")
    assert (row["energy_mj"], row["energy_sensor"], row["energy_reason"]) == ("1.5", "ina3221 VDD_CPU", "")
    row = row_of(energy_reason="the board has no sensor of energy")
    assert (row["energy_mj"], row["energy_reason"]) == ("", "the board has no sensor of energy")


def test_what_was_measured_beside_the_latency_is_there() -> None:
    loading = Loading(label="measured", starts=6, plain=FORM, compiled=FORM, verdict="it saves nothing",
                      ratios=dict.fromkeys(("load_ms", "start_ms"), COMPARISON))  # fmt: skip
    minutes = tuple({"latency_ms": {"p50": p50}} for p50 in (2.0, 2.5, 3.0))
    row = row_of(end_to_end=WHOLE, compiled="ort", loading=loading, minutes=minutes, session_p50_ms=(2.0, 2.25),
                 session_p5_ms=(1.0, 1.25), baseline_memory_mb=20.0, warm_up_count=10)  # fmt: skip
    expected = {
        "image": "x.jpg", "decoder": "Pillow 12.0", "decode_ms": "1.5", "softmax_ms": "0.125", "infer_ms": "2.0",
        "compiled": "ort", "starts": "6", "load_ratio": "0.5", "start_ratio": "0.5",
        "loading_verdict": "it saves nothing",
        "minutes": "3", "minutes_slowdown": "1.5", "session_p50_ms": "2 2.25", "session_p5_ms": "1 1.25",
        "baseline_memory_mb": "20.0", "warm_up_count": "10", "baseline": "b", "ratio": "0.5", "ratio_low": "0.4",
        "ratio_high": "0.6", "verdict": "faster", "board_model": "Raspberry Pi 4", "architecture": "aarch64",
        "os": "Debian", "governor": "ondemand", "cpu_busy_share": "0.25", "python_version": "3.11.2",
        "package": "ai-edge-litert", "warnings": "hot; busy",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["run"]
    assert row["edgeship_version"]
    assert float(row["min_ms"]) == 2.0
    assert float(row["p90_low_ms"]) <= float(row["p90_ms"]) <= float(row["p90_high_ms"])


ELSEWHERE = {
    "schema_version", "settings", "case", "comparison", "mlperf", "accuracy_rule", "quality", "facts", "tools",  # parts
    "model", "files", "input_shapes", "loading", "end_to_end", "latency_ms", "reference", "parity", "ratios",
    "plain", "error", "path", "missing", "session_ratios", "confidence",  # not for a table
}  # fmt: skip
RENAMED = {
    "id": "case", "interval": "ratio_low", "reason": "ratio_reason", "accuracy_interval": "accuracy_low",
    "ece_interval": "ece_low", "label": "latency_label",
    **{f"{name}_interval": f"{name}_low_ms" for name in ("p50", "p90", "p95", "p99", "p99_9")},
    **{name: f"{name}_ms" for name in ("p50", "p90", "p95", "p99", "p99_9", "min", "max", "mean", "std")},
}  # fmt: skip


@pytest.mark.parametrize("part", [ResultRecord, CaseResult, LatencySummary, EndToEnd, Comparison, Loading, Quality])
def test_every_field_is_a_column_or_is_left_out_on_purpose(part: Any) -> None:
    columns = set(to_csv([]).strip().split(","))
    missing = {RENAMED.get(name, name) for name in part.model_fields if name not in ELSEWHERE} - columns
    assert not missing, "add a column to devices/results_csv.py, or leave the field out here"

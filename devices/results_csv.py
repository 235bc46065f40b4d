"""The results as a table, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from devices.quality import Quality
from devices.results import ResultRecord


def to_csv(records: Iterable[ResultRecord]) -> str:
    """The results as a table, one line a result, units in the column names."""
    rows = [_flat(record) for record in records]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


_PLACES = ("p50", "p90", "p95", "p99", "p99_9")
_COLUMNS = (
    *("time", "device", "latency_label", "machine", "cpu_model", "case", "runtime", "runtime_version", "num_threads"),
    *("cores", "sha256", "size_bytes", "count", "sessions", *(f"{name}_ms" for name in _PLACES)),
    *("p50_low_ms", "p50_high_ms", "throughput_per_s", "load_ms", "first_inference_ms", "end_to_end_p50_ms"),
    *("peak_memory_mb", "runtime_memory_mb", "energy_mj", "stopped_by", "ratio", "verdict", "commit", "dirty", "key"),
    *("kind", "mlperf_generator", "mlperf_valid", "mlperf_conforms", "mlperf_single_stream_p90_ms"),
    *("mlperf_offline_per_s", "mlperf_accuracy_share"),
    *("data", "split", "subset", "samples", "metric", "accuracy", "accuracy_low", "accuracy_high", "ece", "ece_low"),
    *("ece_high", "reference_sha256", "reference_accuracy", "parity_max_difference", "parity_snr_db"),
    "parity_top1_agreement",
)


def _flat(record: ResultRecord) -> dict[str, Any]:
    case, latency, whole = record.case, record.case.latency_ms, record.case.end_to_end
    same = ("runtime", "num_threads", "sha256", "size_bytes", "throughput_per_s", "load_ms", "first_inference_ms",
            "peak_memory_mb", "runtime_memory_mb", "energy_mj", "stopped_by")  # fmt: skip
    return {
        **{name: getattr(record, name) for name in ("time", "device", "latency_label", "machine", "commit", "dirty",
                                                    "key")},
        **{name: getattr(case, name) for name in same},
        "cpu_model": record.facts.get("cpu_model"),
        "case": case.id,
        "runtime_version": (case.model or {}).get("version"),
        "cores": None if case.cores is None else " ".join(map(str, case.cores)),
        "count": latency and latency.count,
        "sessions": len(case.session_p50_ms),
        **{f"{name}_ms": getattr(latency, name, None) for name in _PLACES},
        "p50_low_ms": latency and latency.p50_interval[0],
        "p50_high_ms": latency and latency.p50_interval[1],
        "end_to_end_p50_ms": whole and whole.latency_ms.p50,
        "ratio": record.comparison and record.comparison.ratio,
        "verdict": record.comparison and record.comparison.verdict,
        "kind": record.kind,
        **_by_rules(record),
        **({} if record.quality is None else _of_quality(record.quality)),
    }  # fmt: skip


def _by_rules(record: ResultRecord) -> dict[str, Any]:
    runs = {run.scenario: run for run in record.mlperf}
    if not runs:
        return {}
    estimate = runs["single_stream"].p90_ms if "single_stream" in runs else None
    return {
        "mlperf_generator": record.mlperf[0].generator,
        "mlperf_valid": all(run.valid for run in record.mlperf),
        "mlperf_conforms": all(run.conforms for run in record.mlperf),
        "mlperf_single_stream_p90_ms": estimate,
        "mlperf_offline_per_s": runs["offline"].samples_per_s if "offline" in runs else None,
        "mlperf_accuracy_share": record.accuracy_rule and record.accuracy_rule.share,
    }


def _of_quality(quality: Quality) -> dict[str, Any]:
    reference, parity = quality.reference, quality.parity
    return {
        **{name: getattr(quality, name) for name in ("data", "split", "subset", "metric", "accuracy", "ece")},
        "samples": quality.count,
        "accuracy_low": quality.accuracy_interval[0],
        "accuracy_high": quality.accuracy_interval[1],
        "ece_low": quality.ece_interval and quality.ece_interval[0],
        "ece_high": quality.ece_interval and quality.ece_interval[1],
        "reference_sha256": reference and reference.sha256,
        "reference_accuracy": reference and reference.accuracy,
        "parity_max_difference": parity and parity.max_logit_difference,
        "parity_snr_db": parity and parity.snr_db,
        "parity_top1_agreement": parity and parity.top1_agreement,
    }

"""The results as a table, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from devices.comparison import Comparison
from devices.latency import LatencySummary
from devices.loading import Loading
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
_STAGES = ("image", "decoder", "decode_ms", "preprocess_ms", "infer_ms", "softmax_ms")
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
    *("energy_sensor", "energy_reason", "baseline_memory_mb", "peak_memory_reason", "warm_up_count", "run", "baseline"),
    *("ratio_low", "ratio_high", "ratio_reason", "min_ms", "max_ms", "mean_ms", "std_ms"),
    *(f"{name}_{end}_ms" for name in ("p90", "p95", "p99", "p99_9") for end in ("low", "high")),
    *("session_p5_ms", "session_p50_ms", "minutes", "minutes_slowdown"),
    *("image", "decoder", "decode_ms", "preprocess_ms", "infer_ms", "softmax_ms"),
    *("compiled", "starts", "load_ratio", "first_inference_ratio", "start_ratio", "latency_ratio", "loading_verdict"),
    *("precision", "correct", "seconds", "parity_reason"),
    *("board_model", "architecture", "os", "governor", "cpu_busy_share", "edgeship_version", "python_version"),
    *("package", "warnings"),
)
"""New ones come last: whoever reads by position goes on reading."""


def _flat(record: ResultRecord) -> dict[str, Any]:
    case, latency, whole = record.case, record.case.latency_ms, record.case.end_to_end
    same = ("runtime", "num_threads", "sha256", "size_bytes", "throughput_per_s", "load_ms", "first_inference_ms",
            "peak_memory_mb", "runtime_memory_mb", "energy_mj", "stopped_by", "energy_sensor", "energy_reason",
            "baseline_memory_mb", "peak_memory_reason", "warm_up_count", "compiled")  # fmt: skip
    return {
        **{name: getattr(record, name) for name in ("time", "device", "latency_label", "machine", "commit", "dirty",
                                                    "key", "run")},
        **{name: getattr(case, name) for name in same},
        "cpu_model": record.facts.get("cpu_model"),
        "case": case.id,
        "runtime_version": (case.model or {}).get("version"),
        "cores": None if case.cores is None else " ".join(map(str, case.cores)),
        "count": latency and latency.count,
        "sessions": len(case.session_p50_ms),
        **{f"{name}_ms": getattr(latency, name, None) for name in (*_PLACES, "min", "max", "mean", "std")},
        **_intervals(latency),
        "session_p5_ms": _listed(case.session_p5_ms),
        "session_p50_ms": _listed(case.session_p50_ms),
        **_of_minutes(case.minutes),
        "end_to_end_p50_ms": whole and whole.latency_ms.p50,
        **({} if whole is None else {name: getattr(whole, name) for name in _STAGES}),
        "kind": record.kind,
        **{name: record.facts.get(name) for name in ("board_model", "architecture", "os", "governor",
                                                     "cpu_busy_share")},
        "edgeship_version": record.tools.get("edgeship"),
        "python_version": record.tools.get("python"),
        "package": (case.model or {}).get("package"),
        "warnings": "; ".join(record.warnings),
        **_of_comparison(record.comparison),
        **_of_loading(case.loading),
        **_by_rules(record),
        **({} if record.quality is None else _of_quality(record.quality)),
    }  # fmt: skip


def _listed(values: Iterable[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _intervals(latency: LatencySummary | None) -> dict[str, float]:
    """The ends of the interval of each percentile that has one."""
    found = {name: getattr(latency, f"{name}_interval", None) for name in _PLACES}
    pairs = {name: interval for name, interval in found.items() if interval is not None}
    return {f"{name}_{end}_ms": pairs[name][index] for name in pairs for index, end in enumerate(("low", "high"))}


def _of_minutes(minutes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many minutes of work without a pause, and how many times as long the last one takes as the first."""
    if not minutes:
        return {}
    first, last = (minute["latency_ms"]["p50"] for minute in (minutes[0], minutes[-1]))
    return {"minutes": len(minutes), "minutes_slowdown": last / first}


def _of_comparison(found: Comparison | None) -> dict[str, Any]:
    if found is None:
        return {}
    low, high = found.interval or (None, None)
    return {"baseline": found.baseline, "ratio": found.ratio, "ratio_low": low, "ratio_high": high,
            "ratio_reason": found.reason, "verdict": found.verdict}  # fmt: skip


def _of_loading(found: Loading | None) -> dict[str, Any]:
    """Of a compiled file: what a start of it takes, as a share of the plain form's."""
    if found is None:
        return {}
    ratios = {f"{name.removesuffix('_ms')}_ratio": each.ratio for name, each in found.ratios.items()}
    return {"starts": found.starts, "loading_verdict": found.verdict, **ratios}


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
        **{name: getattr(quality, name) for name in ("precision", "correct", "seconds", "parity_reason")},
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

"""What a run found out: one object for machines, one page for people, one table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from devices.wording import counted
from pipeline import compilation_text
from pipeline.calibration.report import confidence_lines, confidence_section, worse_calibration_lines
from pipeline.gates import GateRow
from pipeline.model_config import OwnModelConfig
from pipeline.quantization.report import (
    divergence_lines,
    drop_lines,
    search_lines,
    sensitivity_lines,
    speed_lines,
    temperature_lines,
    walk_lines,
    walk_section,
)
from pipeline.quantization.spread import spread_lines
from pipeline.runner import RunResult


def report_of(result: RunResult) -> dict[str, Any]:
    """Returns the object that `run --json` prints and `report.json` holds."""
    artifacts = result.artifacts
    selections = {
        profile.name: artifacts[f"select/{profile.name}"].manifest.metrics
        for profile in result.profiles
        if f"select/{profile.name}" in artifacts
    }
    return {
        "schema_version": 1,
        "recipe": result.recipe.name,
        "config": result.recipe.model_dump(mode="json"),
        "data": _data(result),
        "network": _network(result),
        "artifacts": [_artifact(result, name) for name in artifacts if name.startswith("export/")],
        "searches": [artifacts[name].manifest.metrics for name in artifacts if name.startswith("search/")],
        "frontiers": [artifacts[name].manifest.metrics for name in artifacts if name.startswith("frontier/")],
        "spreads": [artifacts[name].manifest.metrics for name in artifacts if name.startswith("spread/")],
        "compiled": [
            {
                **artifacts[name].manifest.metrics,
                "path": str(artifacts[name].file(artifacts[name].manifest.metrics["model"])),
            }
            for name in artifacts
            if name.startswith("compile/")
        ],
        "benchmarks": _benchmarks(result),
        "devices": _devices(result),
        "selected": {
            name: {key: selection[key] for key in ("selected", "runner_up", "reason", "objective", "ranking")}
            for name, selection in selections.items()
        },
        "gates": _gates(result, selections),
        "failures": [error.message for error in result.failures],
        "stages": [
            {"name": record.name, "key": record.key, "cached": record.cached, "seconds": round(record.seconds, 3)}
            | ({"error": record.error} if record.error else {})
            for record in result.stages
        ],
    }


def failed_gates(report: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each gate whose failure fails the run."""
    rows = [GateRow(**row) for row in report["gates"]]
    return [row.sentence() for row in rows if row.blocking and row.failed]


def _metrics(result: RunResult, name: str) -> dict[str, Any] | None:
    artifact = result.artifacts.get(name)
    return artifact.manifest.metrics if artifact else None


def _data(result: RunResult) -> dict[str, Any] | None:
    metrics = _metrics(result, "data")
    return None if metrics is None else {**metrics, "key": result.artifacts["data"].manifest.key}


def _network(result: RunResult) -> dict[str, Any] | None:
    trained, calibrated = _metrics(result, "train"), _metrics(result, "calibrate")
    chosen = _metrics(result, "model")
    if isinstance(result.recipe.model, OwnModelConfig):
        return None if chosen is None else {**chosen, "reference": calibrated}
    if trained is None:
        return None if chosen is None else {"fitted": chosen}
    known = dict(trained) | ({"fitted": chosen} if chosen else {})
    if calibrated is not None:
        known |= {
            "calibration_method": calibrated["method"],
            "temperature": calibrated["temperature"],
            "calibration": {split: calibrated[split] for split in ("validation", "test")},
            "calibration_warnings": calibrated["calibration_warnings"],
            "test_accuracy": calibrated["test"]["after"]["accuracy"],
            "calibration_images": calibrated["calibration_set"]["count"],
            "calibration_set_warnings": calibrated["calibration_set"]["warnings"],
        }
    return known


def _artifact(result: RunResult, name: str) -> dict[str, Any]:
    artifact = result.artifacts[name]
    exported = artifact.manifest.metrics
    graph = exported["graph"]
    row: dict[str, Any] = {
        "target": exported["target"],
        "precision": exported["precision"],
        "path": str(artifact.file(exported["model"])),
        "sha256": graph["sha256"],
        "weights_sha256": graph["weights_sha256"],
        "size_bytes": graph["size_bytes"],
        "note": exported["note"],
        "operations": graph["operations"],
        "key": artifact.manifest.key,
    }
    verified = _metrics(result, name.replace("export/", "verify/", 1)) or {}
    for field in (
        "metric", "accuracy", "accuracy_interval", "accuracy_drop", "paired", "ece", "ece_interval", "reference_ece",
        "ece_change", "ece_change_interval", "mce", "adaptive_ece", "classwise_ece", "nll", "brier", "parity",
        "outputs", "images",
    ):  # fmt: skip
        row[field] = verified.get(field)
    if "confidence_map" in exported:
        row["confidence_map"] = str(artifact.file(exported["confidence_map"]))
    if exported.get("quantization"):
        row["quantization"] = exported["quantization"]
    if "temperature" in exported:
        row["temperature"] = exported["temperature"]
    if "calibration_set_sha256" in exported:
        row["calibration_set_sha256"] = exported["calibration_set_sha256"]
    return row


def _benchmarks(result: RunResult) -> list[dict[str, Any]]:
    rows = []
    for profile in result.profiles:
        metrics = _metrics(result, f"benchmark/{profile.name}")
        for case in (metrics or {"cases": []})["cases"]:
            target, precision = case["id"].split("/")
            rows.append(
                {
                    "device": profile.name,
                    "target": target,
                    "precision": precision,
                    "mode": metrics["mode"] if metrics else None,
                    **{
                        field: case.get(field)
                        for field in (
                            "latency_ms", "load_ms", "first_inference_ms", "warm_up_count", "num_threads",
                            "peak_memory_mb", "peak_memory_reason", "baseline_memory_mb", "sha256", "size_bytes",
                            "stopped_by", "throughput_per_s", "runtime_memory_mb", "energy_mj", "energy_sensor",
                            "energy_reason",
                            "session_p50_ms", "delegated_share", "accuracy", "accuracy_interval", "ece", "ece_interval",
                            "divergence",
                        )
                    },
                    "error": _without_details(case["error"]),
                }
            )  # fmt: skip
    return rows


def _without_details(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns a case's error without its traceback, which stays in the artifact."""
    return None if error is None else {name: value for name, value in error.items() if name != "details"}


def _devices(result: RunResult) -> list[dict[str, Any]]:
    rows = []
    for profile in result.profiles:
        metrics = _metrics(result, f"benchmark/{profile.name}")
        if metrics is not None:
            names = ("device", "mode", "facts", "load_average_before", "load_average_after", "warnings")
            rows.append({name: metrics[name] for name in names})
    return rows


def _gates(result: RunResult, selections: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of all devices; those that name no device are the same for each and stand once."""
    from pipeline.gates import parity_rows

    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name in result.artifacts:
        if name.startswith("verify/"):
            label = name.removeprefix("verify/")
            verified = result.artifacts[name].manifest.metrics
            precision = result.artifacts[f"export/{label}"].manifest.metrics["precision"]
            for row in parity_rows(result.recipe.gates, label, precision, verified):
                rows[row.name, row.artifact, row.device] = row.to_dict()
    for selection in selections.values():
        for row in selection["gates"]:
            rows.setdefault((row["name"], row["artifact"], row["device"]), row)
    return list(rows.values())


TABLE_COLUMNS = (
    "target", "precision", "accuracy", "95 % interval", "drop", "ECE", "p50 ms", "p90 ms", "p99 ms", "load ms",
    "first ms", "memory MiB", "size KiB", "gates",
)  # fmt: skip


def table_rows(report: Mapping[str, Any], device: str) -> list[tuple[str, ...]]:
    """Returns the cells of the table of one device, in the order of `TABLE_COLUMNS`; `-` where there is no value."""
    benchmarks = {(row["target"], row["precision"]): row for row in report["benchmarks"] if row["device"] == device}
    rows = []
    for artifact in report["artifacts"]:
        measured = benchmarks.get((artifact["target"], artifact["precision"]), {})
        latency = measured.get("latency_ms") or {}
        label = f"{artifact['target']}/{artifact['precision']}"
        interval = artifact["accuracy_interval"]
        rows.append(
            (
                artifact["target"],
                artifact["precision"],
                _quality(artifact, artifact["accuracy"], 2),
                "–".join(_quality(artifact, value, 1) for value in interval) if interval else "-",
                _points(artifact["accuracy_drop"]),
                _percent(artifact["ece"]),
                *(_number(latency.get(name), 3) for name in ("p50", "p90", "p99")),
                _number(measured.get("load_ms"), 1),
                _number(measured.get("first_inference_ms"), 2),
                _number(measured.get("peak_memory_mb"), 0),
                _number(artifact["size_bytes"] / 1024, 1),
                _verdict(report, label, device, measured),
            )
        )
    return rows


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns what a reader should know beside the table: network, selection, notes, warnings, broken gates."""
    lines = []
    network = report["network"] or {}
    if "test_accuracy" in network:
        lines += confidence_lines(network)
    if "fitted" in network:
        found, limits = network["fitted"], network["fitted"]["budget"]
        words = ", ".join(f"{name.replace('_', ' ')} up to {value:,}" for name, value in limits.items())
        lines.append(
            f"Budget ({words}): {found['model']['name']}, width {found['model']['width']:g}, depth "
            f"{found['model']['depth']:g}, with {found['multiply_adds']:,} multiply-adds and {found['parameters']:,} "
            f"parameters."
        )
    if network.get("reference"):
        lines.append(_own_model_line(network))
        lines += network["reference"].get("calibration_set", {}).get("warnings", ())
    lines += network.get("calibration_set_warnings", ())
    lines += [
        f"Selected for {name}: {selection['reason']}" if selection["selected"] else selection["reason"]
        for name, selection in report["selected"].items()
    ]
    lines += search_lines(report)
    lines += walk_lines(report)
    lines += sensitivity_lines(report)
    lines += speed_lines(report)
    lines += drop_lines(report)
    lines += spread_lines(report)
    lines += temperature_lines(report)
    lines += divergence_lines(report)
    lines += compilation_text.report_lines(report)
    lines += [line for row in report["artifacts"] for line in worse_calibration_lines(row)]
    notes = {f"{row['target']} {row['precision']}: {row['note']}." for row in report["artifacts"] if row["note"]}
    lines += sorted(notes)
    for device in report["devices"]:
        lines += [f"{device['device']}: warning: {warning}." for warning in device["warnings"]]
    lines += [f"Failed: {message}" for message in report["failures"]]
    lines += [f"Gate failed: {sentence}." for sentence in failed_gates(report)]
    return lines


def _own_model_line(network: Mapping[str, Any]) -> str:
    """Returns what is known of a model of one's own, as it answers in its own framework."""
    reference, quality = network["reference"], network["reference"]["quality"]
    kind = "random" if reference["random"] else "recorded"
    text = f"The model itself ({network['format']}) answered {reference['reference_samples']} {kind} samples"
    if quality["metric"] is None:
        return f"{text}; it has no metric, so accuracy is left out."
    if quality["metric"] == "top1":
        return f"{text}, {_percent(quality['accuracy'])} % of them right."
    return f"{text} with {quality['metric']} {quality['accuracy']:.4g}."


def markdown(report: Mapping[str, Any]) -> str:
    """Returns the page that `report.md` holds."""
    parts = [f"# {report['recipe']}", ""]
    data = report["data"]
    if data:
        parts += [f"Data: {_counts(data)}.", ""]
    for device in report["devices"]:
        facts = device["facts"]
        parts += [
            f"## {device['device']} ({device['mode']})",
            "",
            (
                f"{facts.get('cpu_model')}, {_cores(facts)}, "
                f"{facts.get('os')}, Python {facts.get('python')}, governor {facts.get('governor') or 'unknown'}, load "
                f"{_load(device['load_average_before'])} before and {_load(device['load_average_after'])} after."
            ),
            "",
            *_markdown_table(TABLE_COLUMNS, table_rows(report, device["device"])),
            "",
        ]
    if not report["devices"] and report["artifacts"]:
        parts += [*_markdown_table(TABLE_COLUMNS, table_rows(report, "")), ""]
    parts += [f"- {line}" for line in summary_lines(report)]
    parts += walk_section(report)
    parts += confidence_section(report)
    if report["gates"]:
        rows = [
            (row["artifact"], row["device"] or "", row["name"], _general(row["limit"]), _value(row),
             _outcome(row))
            for row in report["gates"]
        ]  # fmt: skip
        parts += ["", "## Gates", "", *_markdown_table(("artifact", "device", "gate", "limit", "value", ""), rows)]
    parts += ["", "## Files", ""]
    files = [
        (f"{row['target']}/{row['precision']}", row["sha256"], str(row["size_bytes"]), row["key"])
        for row in report["artifacts"]
    ]
    parts += _markdown_table(("artifact", "sha256 of the model file", "bytes", "key"), files)
    parts += ["", "## Stages", ""]
    stages = [
        (row["name"], row["key"], "cached" if row["cached"] else row.get("error", f"{row['seconds']:.1f} s"))
        for row in report["stages"]
    ]
    parts += _markdown_table(("stage", "key", ""), stages)
    return "\n".join(parts) + "\n"


def _verdict(report: Mapping[str, Any], label: str, device: str, measured: Mapping[str, Any]) -> str:
    if report["selected"].get(device, {}).get("selected") == label:
        return "selected"
    if measured.get("error"):
        return "failed on the device"
    own = [row for row in report["gates"] if row["artifact"] == label and row["device"] in (None, device)]
    broken = [row["name"] for row in own if row["passed"] is False]
    return ", ".join(broken) if broken else "passed" if own else "-"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _counts(data: Mapping[str, Any]) -> str:
    if "num_test_samples" in data:
        counts = [f"{data[f'num_{split}_samples']} {split}" for split in ("train", "test")]
        return f"{' and '.join(counts)} samples of {data['num_inputs']} input{'s' * (data['num_inputs'] > 1)}"
    counts = [f"{data[f'num_{split}_images']} {split}" for split in ("train", "validation", "test")]
    text = f"{', '.join(counts)} images of {data['num_classes']} classes"
    extras = [
        (data["num_removed_duplicates"], "duplicates across splits removed"),
        (data["num_label_conflicts"], "images under two labels"),
        (data["num_unreadable"], "unreadable files left out"),
    ]
    return "; ".join([text, *(f"{count} {what}" for count, what in extras if count)])


def _cores(facts: Mapping[str, Any]) -> str:
    number = facts.get("usable_cores") or facts.get("cores")
    return "cores not told" if number is None else counted(number, "core")


def _load(values: Sequence[float] | None) -> str:
    return f"{values[0]:.2f}" if values else "unknown"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _quality(artifact: Mapping[str, Any], value: float | None, digits: int) -> str:
    """Returns a share in percent; of a mean squared error, the number itself."""
    if value is None:
        return "-"
    return f"{value:.4g}" if artifact["metric"] == "mse" else f"{100 * value:.{digits}f}"


def _points(drop: float | None) -> str:
    return "-" if drop is None else f"{100 * drop:+.2f}" if abs(drop) >= 0.5e-4 else "0.00"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _general(value: float) -> str:
    return f"{value:.6g}"


def _outcome(row: Mapping[str, Any]) -> str:
    if row["passed"] is None:
        return f"not checked: {row['reason']}"
    return "passed" if row["passed"] else "FAILED" if row["blocking"] else "ruled out"


def _value(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "exact" if row["passed"] else "not measured"
    return _general(row["value"])

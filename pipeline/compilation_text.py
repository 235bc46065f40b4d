"""Compiled models in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.compiled import CompiledManifest
from devices.loading import Loading
from devices.records import BenchmarkResult
from pipeline.vela import cpu_operations

_QUANTITIES = {
    "load_ms": "load",
    "first_inference_ms": "first inference",
    "start_ms": "from a new process to the first answer",
    "latency_ms": "later inferences, median",
}


def compiled_lines(directory: Path, manifest: CompiledManifest) -> list[str]:
    """Returns what is to be said of a model that was just compiled."""
    size = sum(file.size_bytes for file in manifest.files)
    where = "on the device" if manifest.made_on == "device" else "on this machine"
    lines = [
        (
            f"{directory / manifest.files[0].name}: {manifest.form} of {manifest.source[0].name} for "
            f"{manifest.device}, by {manifest.package} {manifest.version} {where}, {size / 1024:,.0f} KiB, in "
            f"{manifest.seconds:.1f} s"
        )
    ]
    if manifest.parity is not None:
        lines.append(f"Answers: {parity_sentence(manifest.parity)}")
    lines += loading_lines(manifest.measured) if manifest.measured else [f"Not measured: {manifest.measured_reason}."]
    lines += prediction_lines(manifest.predicted) if manifest.predicted else []
    return [*lines, *manifest.notes]


def parity_sentence(parity: Mapping[str, Any]) -> str:
    """Returns how the answers of the compiled form compare with the model's."""
    if parity["bit_equal"]:
        return f"equal to the bit to those of the model itself, on {parity['samples']} random inputs."
    return (
        f"within {parity['max_logit_difference']:.1e} of the range of those of the model itself, on "
        f"{parity['samples']} random inputs."
    )


def loading_lines(loading: Loading) -> list[str]:
    """Returns what a compiled form saves at a start."""
    lines = [f"{loading.verdict} ({loading.label}, {loading.starts} starts of each, in turns)"]
    for name, words in _QUANTITIES.items():
        ratio = loading.ratios[name]
        interval = "no interval" if ratio.interval is None else f"{ratio.interval[0]:.2f} to {ratio.interval[1]:.2f}"
        lines.append(
            f"  {words}: {getattr(loading.plain, name):.2f} ms -> {getattr(loading.compiled, name):.2f} ms, "
            f"{ratio.ratio:.2f} times as long ({interval})"
        )
    return lines


def prediction_lines(found: Mapping[str, Any]) -> list[str]:
    """Returns what Vela says."""
    cycles = found["cycles"]
    lines = [
        (
            f"Predicted by Vela for {found['accelerator']} ({found['system_config']}, {found['memory_mode']}): "
            f"{found['inference_ms']:.2f} ms, {found['inferences_per_s']:.0f} inferences per second, "
            f"{cycles['total']:,} cycles, SRAM {found['sram_used_kb']:.0f} KiB, DRAM {found['dram_used_kb']:,.0f} KiB"
        ),
        (
            f"Placement: {found['npu_operations']} operations on the NPU ({100 * found['npu_share']:.1f} %), "
            f"{found['cpu_operations']} on the CPU" + (f": {cpu_operations(found)}" if found["on_cpu"] else "")
        ),
    ]
    for row in found["on_cpu"]:
        lines.append(f"  {row['operation']} {row['name']}: {row['reason'] or 'Vela gives no reason'}")
    return lines


def bench_loading_lines(result: BenchmarkResult) -> list[str]:
    """Returns what each compiled case of a measurement saves at a start."""
    lines = []
    for case in result.cases:
        if case.loading is not None:
            first, *rest = loading_lines(case.loading)
            lines += [f"{case.id}: {first}", *rest]
    return lines


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each model that a run has compiled."""
    lines = []
    for row in report["compiled"]:
        label = f"{row['target']} {row['precision']} as {row['form']} for {row['device']}"
        if row["measured"]:
            lines.append(f"{label}: {row['measured']['verdict']}")
        if row["predicted"]:
            found = row["predicted"]
            lines.append(
                f"{label}: predicted {found['inference_ms']:.2f} ms, {100 * found['npu_share']:.1f} % of the "
                f"operations on the NPU, SRAM {found['sram_used_kb']:.0f} KiB."
            )
    return lines

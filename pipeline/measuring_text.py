"""Measurements as lines of text that fit 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from devices.decoding import decoder_difference
from devices.latency import PERCENTILES, relative_half_width
from devices.measurement import BenchmarkResult
from devices.records import CaseResult
from devices.results import ResultRecord
from devices.sustained import SustainedResult
from devices.wording import counted
from pipeline.calibration.report import with_interval

WIDTH = 100
_HEADINGS = ("p50 ms", "+-", *(f"{name.replace('_', '.')} ms" for name in list(PERCENTILES)[1:]))
_MORE = ("per s", "load ms", "first ms", "peak MiB")
_FIRST = 13
_CASE = (8, 6, 8, 8, 8, 9, 8, 8, 9, 9)
_MINUTE = (9, 9, 9, 10, 8, 8, 24)
"""Widths of the columns after the first."""
_STOPPED = {
    "target": "count and time reached",
    "precision": "precise enough",
    "max_time": "time limit reached",
}


def bench_lines(result: BenchmarkResult) -> list[str]:
    """A table with a section for each model, what is known besides, and the verdicts."""
    lines = [
        f"{result.device} ({result.latency_label})",
        _columns("", [*_HEADINGS, *_MORE]),
    ]
    title = None
    for case in result.cases:
        name = case.id.removesuffix(f" x{case.num_threads}")
        if name != title:
            lines.append(name)
            title = name
        lines += _case_lines(case)
    for each in result.comparisons:
        lines += wrapped(each.sentence(), "  ", first="")
    return lines + _device_lines(result)


def _case_lines(case: CaseResult) -> list[str]:
    latency = case.latency_ms
    threads = counted(case.num_threads, "thread")
    if latency is None:
        return [_columns(f"  {threads}", ["failed"])]
    width = f"{100 * relative_half_width(latency.p50_interval):.1f}%"
    places = [_number(getattr(latency, name)) for name in PERCENTILES]
    more = [_number(case.throughput_per_s), _number(case.load_ms), _number(case.first_inference_ms),
            _whole(case.peak_memory_mb)]  # fmt: skip
    return [_columns(f"  {threads}", [places[0], width, *places[1:], *more]), *wrapped(_notes(case), "    ")]


def _notes(case: CaseResult) -> str:
    """What has no column, as one sentence."""
    latency = case.latency_ms
    assert latency is not None  # noqa: S101 (the caller looked)
    stopped = _STOPPED[case.stopped_by] if case.stopped_by else ""
    notes = [f"{counted(latency.count, 'inference')}, {stopped}".rstrip(", ")]
    if len(case.session_p50_ms) > 1:
        notes.append(f"medians of {len(case.session_p50_ms)} sessions {_range(case.session_p50_ms, 3)} ms")
    if case.cores is not None:
        notes.append(f"cores {' '.join(map(str, case.cores))}")
    if case.runtime_memory_mb is not None:
        notes.append(f"the runtime alone {case.runtime_memory_mb:.0f} MiB")
    if case.size_bytes is not None:
        notes.append(f"file {case.size_bytes / 1024:,.0f} KiB")
    if case.energy_mj is not None:
        sensor = f" ({case.energy_sensor})" if case.energy_sensor else ""
        notes.append(f"{case.energy_mj:.2f} mJ each{sensor}")
    if case.end_to_end is not None:
        whole = case.end_to_end
        notes.append(
            f"end to end {whole.latency_ms.p50:.3f} ms (decode {whole.decode_ms:.3f} by {whole.decoder}, preprocess "
            f"{whole.preprocess_ms:.3f}, inference {whole.infer_ms:.3f}, softmax {whole.softmax_ms:.3f})"
        )
        difference = decoder_difference(whole.decoder)
        notes += [] if difference is None else [difference]
    return "; ".join(notes)


def _device_lines(result: BenchmarkResult) -> list[str]:
    """The state of the device meanwhile, and why numbers are missing."""
    temperatures = [each.temperature_c for each in result.samples if each.temperature_c is not None]
    frequencies = [value for each in result.samples for value in each.frequency_mhz]
    counts = [each.throttle_count for each in result.samples if each.throttle_count is not None]
    flags = [each.throttled for each in result.samples if each.throttled is not None]
    limited = sorted({limit for each in flags for limit in each})
    state = [
        f"governor {result.governor or 'not told'}",
        f"{_range(frequencies, 0)} MHz" if frequencies else "frequency not told",
        f"{_range(temperatures, 0)} degrees C" if temperatures else "temperature not told",
    ]
    if counts and counts[-1] > counts[0]:
        limited.append(f"{counted(counts[-1] - counts[0], 'time')} for heat")
    state.append(f"limited: {', '.join(limited) or 'no'}" if counts or flags else "throttling not told")
    lines = wrapped(f"Device meanwhile: {', '.join(state)}.", "  ", first="")
    reasons = sorted({case.energy_reason for case in result.cases if case.energy_reason})
    return lines + [line for reason in reasons for line in wrapped(f"Energy: {reason}.", "  ", first="")]


def sustained_lines(result: SustainedResult) -> list[str]:
    """A row for each minute of each model."""
    lines = [f"{result.device} ({result.latency_label}), {result.seconds:g} s without a pause"]
    for case in result.cases:
        lines += [
            case.id,
            _columns("  minute", ["p50 ms", "p90 ms", "p99 ms", "count", "deg C", "MHz", "limited"], _MINUTE),
        ]
        for number, minute in enumerate(case.minutes, 1):
            state, latency = minute.device, minute.latency_ms
            frequencies = state.frequency_mhz if state else ()
            cells = [
                *(_number(getattr(latency, name)) for name in ("p50", "p90", "p99")),
                str(latency.count),
                _whole(state.temperature_c if state else None),
                _whole(max(frequencies)) if frequencies else "-",
                "-" if state is None or state.throttled is None else ", ".join(state.throttled) or "no",
            ]
            lines.append(_columns(f"  {number}", cells, _MINUTE))
        lines.append(f"  the last minute takes {case.slowdown:.3f} times as long as the first")
    return lines


def profile_lines(profiles: Mapping[str, Mapping[str, Any]], *, most: int = 12) -> list[str]:
    """Where operations run, and those that take most of the time."""
    lines = []
    for name, found in profiles.items():
        lines += ["", *wrapped(f"Where the operations of {name} run:", "  ", first="")]
        if not found["layers"]:
            lines += wrapped(f"not known: {found['reason']}", "  ")
            continue
        counts: dict[str, int] = {}
        for layer in found["layers"]:
            counts[layer["where"]] = counts.get(layer["where"], 0) + 1
        places = ", ".join(f"{count} in {place or '?'}" for place, count in sorted(counts.items(), key=_by_count))
        pieces = "" if found["partitions"] is None else f" ({counted(found['partitions'], 'piece')} for the delegate)"
        lines += wrapped(f"{counted(found['operations'], 'operation')}: {places}{pieces}", "  ")
        timed = found.get("kernels") or found["layers"]
        total = sum(layer["ms"] or 0 for layer in timed)
        if found["partitions"] is not None:
            left = sorted({layer["operation"] for layer in found["layers"] if layer["where"] != "XNNPACK"})
            lines += wrapped(f"outside of XNNPACK: {', '.join(left)}", "  ") if left else []
        if not total:
            lines += wrapped(f"time per layer: {found['reason']}", "  ")
            continue
        if found.get("inference_ms") is not None:
            whole = f"{found['inference_ms']:.4f} ms an inference"
            lines.append(f"  {total:.4f} ms in {counted(len(timed), 'kernel')}, of {whole} (medians, profiler on)")
        for layer in sorted(timed, key=lambda layer: -(layer["ms"] or 0))[:most]:
            share = (layer["ms"] or 0) / total
            lines.append(f"  {layer['ms']:9.4f} ms {share:6.1%}  {layer['operation'][:24]:24}  {layer['name']}"[:WIDTH])
        if len(timed) > most:
            lines.append(f"  and {len(timed) - most} more; --json has all")
    return lines


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


RESULT_COLUMNS = ("time", "device", "case", "threads", "p50 ms", "p90 ms", "accuracy", "kind", "file", "commit")


def result_rows(records: Sequence[ResultRecord]) -> list[tuple[str, ...]]:
    """The cells of `results list`."""
    return [
        (
            record.time[:19].replace("T", " "),
            record.device,
            record.case.id[-40:],
            str(record.case.num_threads),
            _number(record.case.latency_ms.p50 if record.case.latency_ms else None),
            _number(record.mlperf[0].p90_ms if record.mlperf else getattr(record.case.latency_ms, "p90", None)),
            "-" if record.quality is None else f"{record.quality.accuracy:.4f}",
            record.kind if all(run.conforms for run in record.mlperf) else f"{record.kind}, not conforming",
            (record.case.sha256 or "-")[:8],
            (record.commit or "-")[:8] + ("+" if record.dirty else ""),
        )
        for record in records
    ]


NOTHING_TO_COMPARE = (
    "Nothing to compare with yet: on this machine no case has an older result of a commit without changes."
)


def regression_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each case that has an older result of the same machine."""
    lines = []
    for row in rows:
        file = "the same file" if row["same_file"] else "another file"
        base = f"{(row['base_commit'] or row['base_time'])[:10]} ({file})"
        if row["interval"] is None:
            numbers = row["reason"]
        else:
            low, high = row["interval"]
            numbers = f"{row['ratio']:.3f} times as long ({row['confidence']:.0%} interval {low:.3f} to {high:.3f})"
        lines += wrapped(f"{row['verdict']:10}  {row['case']} beside {base}: {numbers}", " " * 12, first="")
    return lines


def accuracy_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each case that has an older accuracy on the same samples."""
    lines = []
    for row in rows:
        file = "the same file" if row["same_file"] else "another file"
        base = f"{(row['base_commit'] or row['base_time'])[:10]} ({file})"
        low, high = row["interval"]
        numbers = (
            f"{row['accuracy']:.4f} and {row['base_accuracy']:.4f}, a difference of {row['difference']:+.4f} "
            f"(95 % interval {low:+.4f} to {high:+.4f})"
        )
        lines += wrapped(f"{row['verdict']:10}  {row['case']} beside {base}: {numbers}", " " * 12, first="")
    return lines


def evaluation_lines(found: Mapping[str, Any]) -> list[str]:
    """What is known of a model on a set of samples."""
    low, high = found["accuracy_interval"]
    if found["metric"] == "top1":
        head = (
            f"{found['correct']} of {found['images']} {found['split']} images correct: {100 * found['accuracy']:.2f} % "
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f}); calibration error {with_interval(found)} %, "
            f"negative log-likelihood {found['nll']:.4f}, Brier score {found['brier']:.4f}"
        )
    else:
        head = (
            f"{found['metric']} {found['accuracy']:.6g} on {found['images']} {found['split']} samples "
            f"(95 % interval {low:.6g} to {high:.6g})"
        )
    if "subset" not in found:
        return [head]
    lines = [head, f"on {found['device']} in {found['seconds']:.1f} s; samples {found['subset'][:12]}"]
    parity, reference = found["parity"], found["reference"]
    if parity is None or reference is None:
        return [*lines, *wrapped(f"no parity: {found['parity_reason']}", "  ", first="")]
    ratio = "equal to the bit" if parity["snr_db"] is None else f"{parity['snr_db']:.1f} dB signal to noise"
    agreement = parity["top1_agreement"]
    classes = "" if agreement is None else f", the same class for {agreement:.2%}"
    text = f"beside {reference['path']} ({reference['precision']}) on this machine: {ratio}, largest difference "
    text += f"{parity['max_logit_difference']:.1e} of the range{classes}"
    if found["accuracy_share"] is not None:
        text += f"; {found['accuracy_share']:.2%} of its accuracy"
    return lines + wrapped(text, "  ", first="")


def _columns(first: str, cells: Sequence[str], widths: Sequence[int] = _CASE) -> str:
    """One row that keeps to 100 columns."""
    text = f"{first:{_FIRST}}"
    return text + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))


def _number(value: float | None) -> str:
    """About four digits."""
    if value is None:
        return "-"
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3
    return f"{value:.{digits}f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def wrapped(text: str, indent: str, *, first: str | None = None) -> list[str]:
    """The text in lines that keep to the width."""
    begin = indent if first is None else first
    return textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=indent)

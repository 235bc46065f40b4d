"""What a report says about the accuracy that quantization costs, and what was done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pipeline.quantization.comparison import AccuracyDrop
from pipeline.quantization.frontier import FRONTIER_PICTURE, faster_than_chosen
from pipeline.quantization.sensitivity import SENSITIVITY_PICTURE, short_name
from pipeline.quantization.temperature import SHIFTED

_WALK_COLUMNS = (
    "remedy", "scheme", "ranges", "float layers", "the last of them", "drop", "95 % interval", "expected",
    "SNR dB", "p50 ms", "of float32", "seconds", "",
)  # fmt: skip


def drop_of(artifact: Mapping[str, Any]) -> AccuracyDrop | None:
    """Returns the paired comparison of an artifact of a report; None where it was not judged by classes."""
    paired = artifact.get("paired")
    if paired is None:
        return None
    intervals = {name: tuple(paired[name]) for name in ("interval", "bootstrap_interval")}
    return AccuracyDrop(**{**paired, **intervals})


def drop_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each integer artifact whose drop the test images don't show to keep to its limit.

    Args:
        report: As a whole.
    """
    limits = {row["artifact"]: row["limit"] for row in report["gates"] if row["name"] == "max_accuracy_drop"}
    lines = []
    for artifact in report["artifacts"]:
        label, drop = f"{artifact['target']}/{artifact['precision']}", drop_of(artifact)
        if drop is None or artifact["precision"].startswith("float") or label not in limits:
            continue
        if drop.verdict(limits[label]) != "held":
            lines.append(f"{label}: {drop.sentence(limits[label])}")
    return lines


def temperature_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each artifact whose confidence quantization shifted: what was done, or why nothing was.

    Args:
        report: As a whole.
    """
    lines = []
    for artifact in report["artifacts"]:
        found = artifact.get("temperature")
        if not found or found["statistic"] is None or found["statistic"] <= SHIFTED:
            continue
        text = (
            f"{artifact['target']}/{artifact['precision']}: quantization shifted the best temperature from "
            f"{found['float_fitted']:.3f} to {found['fitted']:.3f} (likelihood ratio {found['statistic']:.1f} on "
            f"{found['images']} validation images)"
        )
        if found["folded"]:
            change = f"from {found['nll_before']:.4f} to {found['nll_after']:.4f}"
            lines.append(f"{text}; folded into the file, which takes the negative log-likelihood {change}.")
        else:
            lines.append(f"{text}, but nothing was folded. {found['reason']}")
    return lines


def divergence_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each artifact that answers otherwise on a device than on the machine that made it.

    Args:
        report: As a whole.
    """
    lines = []
    for row in report["benchmarks"]:
        found = row.get("divergence")
        if not found or found["snr_db"] is None:
            continue
        text = f"{row['target']}/{row['precision']} answers otherwise on {row['device']} than here: "
        if found["top1_agreement"] is not None:
            text += f"another class for {100 * (1 - found['top1_agreement']):.2f} % of the test images, "
        lines.append(f"{text}largest difference {100 * found['max_logit_difference']:.2g} % of the range.")
    return lines


def speed_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns for each device how long int8 takes beside float32 in the same runtime, and where it does not pay.

    Args:
        report: As a whole.
    """
    searched = {search["target"] for search in report.get("searches", ())}
    medians: dict[str, dict[tuple[str, str], float]] = {}
    for row in report["benchmarks"]:
        if row["latency_ms"]:
            medians.setdefault(row["device"], {})[row["target"], row["precision"]] = row["latency_ms"]["p50"]
    lines = []
    for device, known in medians.items():
        ratios = {
            target: median / known[target, "float32"]
            for (target, precision), median in known.items()
            if precision == "int8" and (target, "float32") in known
        }
        if ratios:
            words = ", ".join(f"{ratio:.2f} in {target}" for target, ratio in ratios.items())
            lines.append(f"On {device} int8 takes so much of the time of float32: {words}.")
        lines += [
            f"{target} int8 is no faster than float32 on {device} ({ratio:.2f} of its time): take float32 there"
            + ("." if target in searched else ", or let quantization.search: device look for another way.")
            for target, ratio in ratios.items()
            if ratio >= 1
        ]
    return lines


def search_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each target whose ways to int8 were measured: all of them, the fastest first.

    Args:
        report: As a whole.
    """
    lines = []
    for search in report.get("searches", ()):  # a report from before there was a search has none
        measured = {row["scheme"]: row["latency_ms"]["p50"] for row in search["candidates"] if row["latency_ms"]}
        ways = ", ".join(f"{scheme} {measured[scheme]:.3f} ms" for scheme in search["schemes"])
        floats = search["float32_latency_ms"]
        text = f"Ways to int8 in {search['target']} on {search['device']} ({search['mode']}): {ways or 'none'}"
        lines.append(f"{text}; float32 {floats['p50']:.3f} ms." if floats else f"{text}.")
        lines += [
            f"{search['target']} {row['scheme']} could not be measured: {row['error']}"
            for row in search["candidates"]
            if row["error"]
        ]
    return lines


def walk_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns for each target with a limit which remedy held, what each tried one gave, and what it cost.

    Args:
        report: As a whole.
    """
    lines = []
    for artifact in report["artifacts"]:
        record = artifact.get("quantization") or {}
        if "attempts" not in record:
            continue
        target, attempts = artifact["target"], _attempts(report, artifact)
        chosen = attempts[record["chosen"]]
        limit = f"the limit of {100 * record['max_drop']:.2f} points"
        verdict = f" keeps to {limit} by" if chosen["holds"] else f": no remedy keeps to {limit}; the best is"
        count = chosen["drop"]["count"]
        lines.append(
            f"{target} int8{verdict} {_what(chosen)}: {_gave(chosen)} "
            f"(95 % interval {_interval(chosen)}{_expected(chosen)}) on {count:,} validation images{_cost(chosen)}."
        )
        tried = [_told(list(group)) for _, group in groupby(attempts, key=lambda row: (row["remedy"], row["scheme"]))]
        lines.append(f"{target} int8, tried in this order: {'; '.join(tried)}.")
        frontier = _frontier_of(report, target)
        if frontier is not None:
            lines += [_faster_line(row, chosen, target) for row in faster_than_chosen(frontier)]
            failed = [row for row in (frontier["float32"], *frontier["attempts"]) if row["error"]]
            lines += [f"{target} {row['remedy']} could not be measured: {row['error']}" for row in failed[:1]]
    return lines


def walk_section(report: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the page's section on remedies: a table of all attempts of each target, and its pictures."""
    parts = []
    for artifact in report["artifacts"]:
        record, target = artifact.get("quantization") or {}, artifact["target"]
        if "attempts" in record:
            parts += ["", f"### {target}", "", _row(_WALK_COLUMNS), f"|{'---|' * len(_WALK_COLUMNS)}"]
            rows, frontier = _attempts(report, artifact), _frontier_of(report, target)
            if frontier is not None and frontier["float32"]["latency_ms"]:
                parts.append(_row(_float_cells(frontier["float32"])))
            parts += [_row(_cells(row, chosen=number == record["chosen"])) for number, row in enumerate(rows)]
            if frontier is not None and any(row["placed_ms"] for row in frontier["attempts"]):
                path = f"artifacts/frontier-{target}/{FRONTIER_PICTURE}"
                parts += ["", f"![Accuracy against latency of each attempt in {target}]({path})"]
        if "sensitivity" in record:
            path = f"artifacts/export-{target}-{artifact['precision']}/{SENSITIVITY_PICTURE}"
            parts += ["", f"![Sensitivity of each layer to int8 in {target}]({path})"]
    if not parts:
        return []
    note = (
        "Drops in points on the validation images, counted and as float's own probabilities expect them; SNR of the "
        "output on calibration images, where ways to choose ranges were compared; seconds to make and judge a file, "
        "and behind a plus those to change the weights, once for all targets."
    )
    return ["", "## int8, remedy by remedy", *parts, "", note]


def sensitivity_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each int8 artifact whose layers were measured: the most sensitive ones.

    Args:
        report: As a whole.
    """
    lines = []
    for artifact in report["artifacts"]:
        found = (artifact.get("quantization") or {}).get("sensitivity")
        if found:
            words = ", ".join(
                f"{short_name(row['layer'])} {_decibels(row['alone_db'])} ({_decibels(row['output_db'])})"
                for row in found["most_sensitive"]
            )
            lines.append(
                f"{artifact['target']} int8: the most sensitive of {found['layers']} layers by the output's "
                f"signal-to-noise ratio in dB with each alone in int8 (of its own output with all in int8): {words}."
            )
    return lines


def _attempts(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the attempts of a walk, with what the frontier measured of each where there is one."""
    attempts, frontier = artifact["quantization"]["attempts"], _frontier_of(report, artifact["target"])
    costs = frontier["attempts"] if frontier is not None else [{}] * len(attempts)
    names = ("latency_ms", "float32_ratio", "on_frontier")
    return [{**row, **{name: cost.get(name) for name in names}} for row, cost in zip(attempts, costs, strict=True)]


def _frontier_of(report: Mapping[str, Any], target: str) -> Mapping[str, Any] | None:
    return next((found for found in report.get("frontiers", ()) if found["target"] == target), None)


def _what(row: Mapping[str, Any]) -> str:
    words = [row["scheme"]]
    if row["range_method"]:
        words.append(f"ranges by {row['range_method']}")
    if row["float_layers"]:
        words.append(f"{_layers(row['float_layers'])} in float")
    return f"{row['remedy']} ({', '.join(words)})"


def _told(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns what attempts of one remedy and one scheme gave and cost; of several, the first and the last."""
    first, last = rows[0], rows[-1]
    text = f"{first['remedy']} ({first['scheme']}): "
    if len(rows) > 1:
        text += f"{_layers(first['float_layers'])} in float {_gave(first)}{_cost(first)}, to "
    if last["float_layers"]:
        text += f"{_layers(last['float_layers'])} in float "
    ratio = last["range_ratios_db"].get(last["range_method"])
    text += _gave(last) + (f", {ratio:.1f} dB" if ratio is not None else "") + _cost(last)
    return f"{text}, {_seconds(rows)} s"


def _gave(row: Mapping[str, Any]) -> str:
    drop = 100 * row["drop"]["drop"]
    return f"a {'drop' if drop >= 0 else 'gain'} of {abs(drop):.2f} points"


def _expected(row: Mapping[str, Any]) -> str:
    expected = row["drop"].get("expected")
    return "" if expected is None else f"; by float's own probabilities {100 * expected:.2f}"


def _cost(row: Mapping[str, Any]) -> str:
    return f", {row['float32_ratio']:.2f} of float32's latency" if row["float32_ratio"] else ""


def _seconds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns how long attempts took, and where weights were changed for them, how long that did."""
    weights = rows[0].get("weights_seconds")
    return f"{sum(row['seconds'] for row in rows):.0f}" + (f" + {weights:.0f}" if weights else "")


def _faster_line(row: Mapping[str, Any], chosen: Mapping[str, Any], target: str) -> str:
    layers = row.get("float_layers") or {"count": 0}
    name = row["remedy"] + (f" with {layers['count']} layers in float" if layers["count"] else "")
    held = "no accuracy" if row["remedy"] == "float32" else "no more accuracy than the limit allows"
    return (
        f"{target} {name} costs {held} and is faster than the int8 chosen ({chosen['remedy']}): its median latency is "
        f"{row['float32_ratio']:.2f} of float32's, the chosen one's {chosen['float32_ratio']:.2f}."
    )


def _cells(row: Mapping[str, Any], *, chosen: bool) -> tuple[str, ...]:
    ratio, latency = row["range_ratios_db"].get(row["range_method"]), row["latency_ms"]
    marks = [("chosen", chosen), ("holds", row["holds"]), ("frontier", row["on_frontier"])]
    return (
        row["remedy"],
        row["scheme"],
        row["range_method"] or "learned",
        str(len(row["float_layers"])),
        short_name(row["float_layers"][-1]) if row["float_layers"] else "-",
        f"{round(100 * row['drop']['drop'], 2) + 0.0:+.2f}",
        _interval(row),
        "-" if row["drop"].get("expected") is None else f"{100 * row['drop']['expected']:.2f}",
        _decibels(ratio),
        f"{latency['p50']:.3f}" if latency else "-",
        f"{row['float32_ratio']:.2f}" if row["float32_ratio"] else "-",
        _seconds([row]),
        ", ".join(name for name, is_so in marks if is_so),
    )


def _float_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    known = (
        "0.00",
        "-",
        "-",
        "-",
        f"{row['latency_ms']['p50']:.3f}",
        "1.00",
        "-",
        "frontier" if row["on_frontier"] else "",
    )
    return ("float32", *("-" * 4), *known)


def _layers(names: Sequence[str]) -> str:
    return f"{len(names)} layer{'' if len(names) == 1 else 's'}"


def _interval(row: Mapping[str, Any]) -> str:
    return " to ".join(f"{round(100 * value, 2) + 0.0:.2f}" for value in row["drop"]["interval"])


def _decibels(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"

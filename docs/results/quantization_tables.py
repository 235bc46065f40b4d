"""The tables of `quantization.py`: reads what it measured, writes `quantization.json` and `quantization.md`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training import DATASETS, NETWORKS

from pipeline.quantization.comparison import AccuracyDrop
from pipeline.quantization.report import drop_of
from pipeline.targets import QUANTIZERS

Row = Mapping[str, Any]


def write_tables(work: Path, out: Path, limit: float) -> None:
    """Writes all rows, the ones measured elsewhere or before included.

    Args:
        work: Has a file of rows for each network.
        out: Gets the tables.
        limit: Of the drop and of the change of the calibration error, 0..1.
    """
    file = out / "quantization.json"
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    measured = [work / dataset / f"{network}.json" for dataset in DATASETS for network in NETWORKS]
    known += [row for path in measured if path.exists() for row in json.loads(path.read_text(encoding="utf-8"))]
    rows = {(row["dataset"], row["network"], row["target"], row["device"]): row for row in known}
    ordered = sorted(rows.values(), key=_order)
    # Where the files lie is this machine's business; their digests say which they are.
    kept = [{name: value for name, value in row.items() if name != "files"} for row in ordered]
    file.write_text(json.dumps({"rows": kept}, indent=1) + "\n", encoding="utf-8")
    (out / "quantization.md").write_text(_markdown(ordered, limit), encoding="utf-8")


def _order(row: Row) -> tuple[int, int, int, str]:
    places = (list(DATASETS).index(row["dataset"]), NETWORKS.index(row["network"]))
    return (*places, list(QUANTIZERS).index(row["target"]), row["device"])


def _markdown(rows: Sequence[Row], limit: float) -> str:
    lines = [
        "# int8: by hand, and with remedies",
        "",
        "Written by `docs/results/quantization.py`; all values are `measured`. **By hand** is what the defaults of the",
        "TFLite converter, `onnxruntime.quantization` and NNCF make of the same network with the same calibration",
        "images. **int8** is what `quantization: {accuracy: {max_drop: 0.005}}` exports: remedies are tried until the",
        "drop on the validation images is at most half a point. Accuracies and calibration errors (ECE, 15 bins) are",
        "those of the test images, in percent. Drops and changes are against float32 in the same runtime, in points,",
        "with the 95 % score interval of paired proportions (Tango 1998) and the p-value of McNemar's exact test.",
        "**Expected** is the drop by the probabilities that float32 itself gives both answers, with a tenth of the",
        "noise (`pipeline.quantization.comparison.expected_drop`). **Smooth** is the calibration error without bins",
        "(`pipeline.calibration.smooth`): that of 15 bins moves where confidences cross a border. By these images no",
        "file was chosen; two rules of choosing ranges were found on these networks (decision 0011).",
    ]
    if not rows:
        return "\n".join([*lines, "", "Nothing is measured yet."]) + "\n"
    lines += ["", "## Accuracy", "", *_accuracies(rows), "", "## Confidence", "", *_confidences(rows)]
    lines += ["", "## The goal", "", *_goal(rows, limit), "", "## What the test images can tell", ""]
    lines += [*_power(rows, limit), "", "## Latency", "", *_latencies(rows)]
    lines += ["", "## What was tried", "", *_attempts(rows)]
    return "\n".join(lines) + "\n"


def _accuracies(rows: Sequence[Row]) -> list[str]:
    columns = ("data set", "network", "runtime", "float32", "by hand", "int8", "drop by hand", "drop", "95 % interval",
               "expected by hand", "expected")  # fmt: skip
    table = []
    for row in rows:
        naive = row["naive"]["paired"]["drop"] if row["naive"] else None
        cells = (_percent(row[name]) for name in ("float32_accuracy", "naive_int8_accuracy", "int8_accuracy"))
        interval = _range(row["drop_interval"])
        p_value = f"{row['paired']['p_value']:.2g}"
        drops = (_points(naive), _points(row["drop"]), interval, *_expected(row))
        table.append((*_names(row), *cells, *drops, p_value, _remedy(row)))
    return _table((*columns, "p", "remedy"), table)


def _expected(row: Row) -> tuple[str, str]:
    naive = row["naive"]["expected_drop"] if row["naive"] else None
    return _points(naive), _points(row["expected_drop"])


def _confidences(rows: Sequence[Row]) -> list[str]:
    columns = ("data set", "network", "runtime", "ECE float32", "by hand", "int8", "change", "95 % interval",
               "smooth float32", "int8", "change", "95 % interval")  # fmt: skip
    table = []
    for row in rows:
        naive = _percent(row["naive"]["ece"]) if row["naive"] else "-"
        change = (_points(row["ece_change"]), _range(row["ece_change_interval"]))
        smooth = [_percent(row[f"smooth_ece_{name}"]) for name in ("float32", "int8")]
        smooth += [_points(row["smooth_ece_change"]), _range(row["smooth_ece_change_interval"])]
        cells = (_percent(row["ece_float32"]), naive, _percent(row["ece_int8"]), *change, *smooth)
        table.append((*_names(row), *cells))
    return _table(columns, table)


def _goal(rows: Sequence[Row], limit: float) -> list[str]:
    points = f"{100 * limit:g} points"
    broken = [row for row in rows if row["drop"] > limit + 1e-12]
    worse = [row for row in rows if row["ece_change"] > limit + 1e-12]
    rougher = [row for row in rows if row["smooth_ece_change"] > limit + 1e-12]
    lines = [
        f"A drop of at most {points}, and a calibration error at most {points} above that of float32. As numbers, the",
        f"first holds in {len(rows) - len(broken)} of {len(rows)} rows, the second in {len(rows) - len(worse)}, and",
        f"without bins (smooth) in {len(rows) - len(rougher)}.",
        _heading(broken, worse, limit),
        "",
    ]
    for row in broken:
        lines.append(
            f"- {' '.join(_names(row))}: a drop of {_points(row['drop'])} ({_range(row['drop_interval'])}), "
            f"{_certainty(row['drop_interval'], limit)}. On the validation images, by which remedies are chosen, it "
            f"was {_points(row['validation']['drop'])}."
        )
    for row in worse:
        lines.append(
            f"- {' '.join(_names(row))}: the calibration error grows by {_points(row['ece_change'])} "
            f"({_range(row['ece_change_interval'])}), {_certainty(row['ece_change_interval'], limit)}; without bins by "
            f"{_points(row['smooth_ece_change'])} ({_range(row['smooth_ece_change_interval'])})."
        )
    return lines if broken or worse else lines[:-1]


def _heading(broken: Sequence[Row], worse: Sequence[Row], limit: float) -> str:
    if not broken and not worse:
        return "Whether that is more than chance is the next section."
    lows = [row["drop_interval"][0] for row in broken] + [row["ece_change_interval"][0] for row in worse]
    if max(lows) > limit:
        return "It does not hold here:"
    return "None is shown to be beyond the limit. As numbers these are:"


def _certainty(interval: Sequence[float], limit: float) -> str:
    """Returns what the images can tell of a value that is beyond the limit as a number."""
    low, _ = interval
    if low > limit:
        return "beyond the limit by more than chance"
    words = "worse by more than chance" if low > 0 else "not told from chance"
    return f"{words}; whether it is beyond the limit these images don't tell"


def _power(rows: Sequence[Row], limit: float) -> list[str]:
    lines = [
        "Only images on which float32 and int8 differ in being right say anything. Where they are as frequent as here,",
        f"a drop of zero is shown to be within {100 * limit:g} points, with a probability of 0.8, by so many images",
        "(Nam 1997):",
        "",
    ]
    table = []
    for row in rows:
        drop = drop_of(row)
        if drop is None:
            continue
        low, high = drop.interval
        cells = (f"{drop.count:,}", f"{100 * (drop.lost + drop.won) / drop.count:.1f} %")
        verdict = {"held": "within", "broken": "beyond", "unclear": "can't tell"}[drop.verdict(limit)]
        needed = _without_drop(drop).images_needed(limit)
        table.append((*_names(row), *cells, f"±{50 * (high - low):.1f}", f"{needed:,}", verdict))
    columns = ("data set", "network", "runtime", "test images", "differ", "drop known to", "images for zero", "here")
    return lines + _table(columns, table)


def _without_drop(drop: AccuracyDrop) -> AccuracyDrop:
    """Returns a comparison with the same discordance and as many images won as lost; at least one of both."""
    half = max(1, math.ceil((drop.lost + drop.won) / 2))
    return replace(drop, lost=half, won=half, drop=0.0)


def _latencies(rows: Sequence[Row]) -> list[str]:
    known = [row for row in rows if row.get("latency") and row["int8_p50_ms"] and row["float32_p50_ms"]]
    if not known:
        return ["Not measured yet: `docs/results/quantization.py --latency`."]
    table = []
    for row in known:
        floats, naive, ours = (row[f"{name}_p50_ms"] for name in ("float32", "naive_int8", "int8"))
        ratios = (f"{ours / floats:.2f}", f"{ours / naive:.2f}" if naive else "-")
        medians = (f"{each:.3f}" if each else "-" for each in (floats, naive, ours))
        table.append((*_names(row), *medians, *ratios, row["scheme"]))
    loads = [load[0] for row in known if (load := row["latency"]["load_average_before"])]
    columns = ("data set", "network", "runtime", "float32", "by hand", "int8", "int8 / float32", "int8 / by hand")
    return [
        f"Medians in milliseconds on {' and '.join(sorted({row['device'] for row in known}))}, one thread, all files",
        "of a network in turn in one run. The load of the machine before was "
        + (f"{min(loads):.1f} to {max(loads):.1f}." if loads else "not to be had."),
        "",
        *_table((*columns, "scheme"), table),
    ]


def _attempts(rows: Sequence[Row]) -> list[str]:
    table = []
    for row in rows:
        last = {attempt["remedy"]: attempt for attempt in row["attempts"]}
        best: dict[str, Row] = {}
        for attempt in row["attempts"]:
            known = best.get(attempt["remedy"])
            if known is None or attempt["drop"] < known["drop"]:
                best[attempt["remedy"]] = attempt
        tried = "; ".join(
            f"{remedy} {_points(best[remedy]['drop'])}"
            + (f" ({last[remedy]['float_layers']} layers in float)" if last[remedy]["float_layers"] else "")
            for remedy in best
        )
        seconds = row["seconds"]
        shared = sum(value for name, value in seconds.items() if name.startswith("remedy/"))
        own = sum(value for name, value in seconds.items() if not name.startswith("remedy/"))
        table.append((*_names(row), tried, "yes" if row["validation_holds"] else "no", f"{own:.0f}", f"{shared:.0f}"))
    columns = ("data set", "network", "runtime", "drop on validation, in points, by remedy", "one holds")
    return [
        "The best drop of each remedy on the validation images, in the order in which they were tried, and the seconds",
        "that all attempts took, those of the remedies that change weights apart: these serve all runtimes.",
        "",
        *_table((*columns, "seconds", "changing weights"), table),
    ]


def _names(row: Row) -> tuple[str, str, str]:
    return row["dataset"], row["network"], row["target"]


def _remedy(row: Row) -> str:
    count = len(row["float_layers"])
    return row["remedy"] + (f", {count} layer{'s' * (count > 1)} in float" if count else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{round(100 * share, 2) + 0.0:+.2f}"


def _range(interval: Sequence[float]) -> str:
    return " to ".join(f"{round(100 * value, 2) + 0.0:.2f}" for value in interval)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in rows)]

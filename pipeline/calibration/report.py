"""What a run's report says about confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.calibration.reliability import PICTURE_FILE

PICTURE = f"artifacts/calibrate/{PICTURE_FILE}"
"""Of the reliability diagram, seen from the run directory."""

_COLUMNS = (
    "artifact", "ECE", "95 % interval", "change", "95 % interval", "adaptive", "class-wise", "MCE", "NLL", "Brier"
)  # fmt: skip
_NOTICEABLE = 5e-5
"""A change that shows in hundredths of a point; float16 makes smaller ones that are certain and mean nothing."""


def confidence_lines(network: Mapping[str, Any]) -> list[str]:
    """Returns what became of the confidence of a network of ours: the method, the error before and after, doubts.

    Args:
        network: Of the report.
    """
    before, after = (network["calibration"]["test"][when] for when in ("before", "after"))
    method = _method(network)
    start = f"Keras reference: {_percent(network['test_accuracy'])} % of the test images; "
    if method == "none":
        return [f"{start}its confidence is not calibrated: calibration error {with_interval(after)} %."]
    text = (
        f"{start}{_named(network)} takes the calibration error from {with_interval(before)} to {with_interval(after)} "
        f"%, the negative log-likelihood from {before['nll']:.4f} to {after['nll']:.4f}"
    )
    if before["accuracy"] != after["accuracy"]:
        text += f", and the accuracy from {_percent(before['accuracy'])} to {_percent(after['accuracy'])} %"
    return [f"{text}.", *network.get("calibration_warnings", ())]


def worse_calibration_lines(artifact: Mapping[str, Any]) -> list[str]:
    """Returns a line where an exported model is worse calibrated than the network, beyond what chance explains.

    Args:
        artifact: Of the report; the interval of its change must lie above zero.
    """
    low, high = artifact.get("ece_change_interval") or (0.0, 0.0)
    if low <= 0 or artifact["ece_change"] < _NOTICEABLE:
        return []
    before, after = _percent(artifact["reference_ece"]), _percent(artifact["ece"])
    text = f"{artifact['target']} {artifact['precision']} worsens the calibration error from {before} to {after} %"
    return [f"{text} (by {_percent(low)} to {_percent(high)} points)."]


def confidence_section(report: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the page's section on confidence: the reliability diagram and the table of the exports."""
    network = report["network"] or {}
    rows = [_cells(row) for row in report["artifacts"] if row.get("ece_interval")]
    pictured = "calibration_method" in network
    if not (rows or pictured):
        return []
    parts = ["", "## Confidence", ""]
    if pictured:
        parts += [
            f"![Reliability diagram of the test images before and after calibration]({PICTURE})",
            "",
            f"The diagram as data: [reliability.json]({PICTURE.replace('.svg', '.json')}).",
            "",
        ]
    if rows:
        parts += [_row(_COLUMNS), f"|{'---|' * len(_COLUMNS)}", *(_row(cells) for cells in rows)]
        parts += [
            "",
            "Calibration errors in percent, changes in points against the trained network on the same images.",
        ]
    return parts


def with_interval(found: Mapping[str, Any]) -> str:
    """Returns a calibration error in percent, with its interval where there is one."""
    interval = found.get("ece_interval")
    return _percent(found["ece"]) + (f" ({_range(interval)})" if interval else "")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    change = row.get("ece_change")
    return (
        f"{row['target']}/{row['precision']}",
        _percent(row["ece"]),
        _range(row["ece_interval"]),
        "-" if change is None else f"{round(100 * change, 2) + 0.0:+.2f}",
        _range(row.get("ece_change_interval")),
        *(_percent(row.get(name)) for name in ("adaptive_ece", "classwise_ece", "mce")),
        *("-" if row.get(name) is None else f"{row[name]:.4f}" for name in ("nll", "brier")),
    )


def _named(network: Mapping[str, Any]) -> str:
    return {
        "temperature": f"temperature {network['temperature'] or 1.0:.3f}",
        "vector": "vector scaling",
        "isotonic": "isotonic regression",
    }[_method(network)]


def _method(network: Mapping[str, Any]) -> str:
    # A report from before there was a choice has a temperature.
    return str(network.get("calibration_method", "temperature"))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _range(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else " to ".join(_percent(value) for value in interval)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{round(100 * share, 2) + 0.0:.2f}"

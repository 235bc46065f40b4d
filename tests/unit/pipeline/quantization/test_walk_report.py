"""What a report says of a walk over the remedies, with and without a device that measured it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pipeline.quantization.comparison import compare_accuracy
from pipeline.quantization.report import sensitivity_lines, walk_lines, walk_section

CORRECT = np.arange(1000) < 900


def attempt(remedy: str, lost: int, *, layers: int = 0, expected: float | None = None, **more: Any) -> dict[str, Any]:
    drop = dataclasses.replace(compare_accuracy(CORRECT, CORRECT & (np.arange(1000) >= lost)), expected=expected)
    return {
        "remedy": remedy, "scheme": "delegated", "range_method": "mse", "range_ratios_db": {},
        "float_layers": [f"block_{number}/Conv2D" for number in range(layers)], "drop": dataclasses.asdict(drop),
        "holds": lost <= 5, "seconds": 10.0, "file": "attempts/0.tflite", **more,
    }  # fmt: skip


def report(attempts: list[dict[str, Any]], ratios: list[float] | None = None) -> dict[str, Any]:
    chosen = next((number for number, row in enumerate(attempts) if row["holds"]), 0)
    record = {"attempts": attempts, "chosen": chosen, "max_drop": 0.005}
    found: dict[str, Any] = {
        "artifacts": [
            {"target": "litert", "precision": "float32"},
            {"target": "litert", "precision": "int8", "quantization": record},
        ]
    }
    if ratios is not None:
        costs = [
            {**row, "float_layers": {"count": len(row["float_layers"]), "last": "x"}, "chosen": number == chosen,
             "latency_ms": {"p50": 2 * ratio}, "float32_ratio": ratio, "placed_ms": 2 * ratio, "on_frontier": False,
             "error": None}
            for number, (row, ratio) in enumerate(zip(attempts, ratios, strict=True))
        ]  # fmt: skip
        floats = {
            "remedy": "float32", "latency_ms": {"p50": 2.0}, "placed_ms": 2.0, "float32_ratio": 1.0, "error": None,
            "on_frontier": True,
        }  # fmt: skip
        found["frontiers"] = [{"target": "litert", "float32": floats, "attempts": costs}]
    return found


WALK = [
    attempt("ranges", 40, range_ratios_db={"mse": 12.34, "min_max": 11.0}),
    attempt("bias", 20, weights_seconds=61.0),
    attempt("mixed", 18, layers=1),
    attempt("mixed", 16, layers=2),
    attempt("mixed", 4, layers=3, expected=0.0031),
]


def test_which_remedy_held_what_each_gave_and_what_it_cost() -> None:
    held, tried = walk_lines(report(WALK, [0.5, 0.5, 0.52, 0.55, 0.6]))
    assert held == (
        "litert int8 keeps to the limit of 0.50 points by mixed (delegated, ranges by mse, 3 layers in float): a drop "
        "of 0.40 points (95 % interval 0.02 to 1.02; by float's own probabilities 0.31) on 1,000 validation images, "
        "0.60 of float32's latency."
    )
    assert tried == (
        "litert int8, tried in this order: ranges (delegated): a drop of 4.00 points, 12.3 dB, 0.50 of float32's "
        "latency, 10 s; bias (delegated): a drop of 2.00 points, 0.50 of float32's latency, 10 + 61 s; mixed "
        "(delegated): 1 layer in float a drop of 1.80 points, 0.52 of float32's latency, to 3 layers in float a drop "
        "of 0.40 points, 0.60 of float32's latency, 30 s."
    )


def test_without_a_device_no_latency_is_told() -> None:
    held, tried = walk_lines(report(WALK))
    assert "of float32" not in held + tried
    assert held.startswith("litert int8 keeps to the limit of 0.50 points by mixed")


def test_where_none_holds_the_best_is_told() -> None:
    (first, _) = walk_lines(report([attempt("ranges", 40)]))
    assert first.startswith("litert int8: no remedy keeps to the limit of 0.50 points; the best is ranges (delegated, ")


def test_what_holds_and_is_faster_is_told() -> None:
    lines = walk_lines(report([attempt("ranges", 40), attempt("mixed", 4, layers=2)], [0.5, 1.25]))
    (line,) = lines[2:]
    assert line == (
        "litert float32 costs no accuracy and is faster than the int8 chosen (mixed): its median latency is 1.00 of "
        "float32's, the chosen one's 1.25."
    )
    lines = walk_lines(report([attempt("bias", 4), attempt("mixed", 3, layers=2)], [0.8, 0.7]))
    (line,) = lines[2:]
    assert line == (
        "litert mixed with 2 layers in float costs no more accuracy than the limit allows and is faster than the int8 "
        "chosen (bias): its median latency is 0.70 of float32's, the chosen one's 0.80."
    )


def test_what_could_not_be_measured_is_told() -> None:
    found = report([attempt("ranges", 4)], [0.5])
    cost = found["frontiers"][0]["attempts"][0]
    cost |= {"latency_ms": None, "float32_ratio": None, "placed_ms": None, "error": "it crashed."}
    assert walk_lines(found)[-1] == "litert ranges could not be measured: it crashed."
    assert "frontier.svg" not in "\n".join(walk_section(found))


def test_the_page_has_a_row_for_each_attempt_and_the_picture() -> None:
    lines = walk_section(report(WALK, [0.5, 0.5, 0.52, 0.55, 0.6]))
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + len(WALK)
    assert rows[1] == "| float32 | - | - | - | - | 0.00 | - | - | - | 2.000 | 1.00 | - | frontier |"
    assert rows[2] == ("| ranges | delegated | mse | 0 | - | +4.00 | 2.95 to 5.40 | - | 12.3 | 1.000 | 0.50 | 10 |  |")
    assert rows[3].endswith("| 10 + 61 |  |")
    assert rows[6] == (
        "| mixed | delegated | mse | 3 | block_2 | +0.40 | 0.02 to 1.02 | 0.31 | - | 1.200 | 0.60 | 10 "
        "| chosen, holds |"
    )
    assert "![Accuracy against latency of each attempt in litert](artifacts/frontier-litert/frontier.svg)" in lines
    assert walk_section({"artifacts": [{"target": "litert", "precision": "int8"}]}) == []
    assert "frontier" not in "\n".join(walk_section(report(WALK)))


def test_the_most_sensitive_layers_are_told() -> None:
    layers = [
        {"layer": "a/Conv2D", "alone_db": 12.34, "output_db": 10.0},
        {"layer": "b", "alone_db": 20.0, "output_db": None},
    ]
    record = {"scheme": "delegated", "sensitivity": {"layers": 54, "most_sensitive": layers}}
    found = {"artifacts": [{"target": "litert", "precision": "int8", "quantization": record}, {"target": "litert"}]}
    (line,) = sensitivity_lines(found)
    assert line.startswith("litert int8: the most sensitive of 54 layers")
    assert line.endswith("a 12.3 (10.0), b 20.0 (-).")
    assert (
        "![Sensitivity of each layer to int8 in litert](artifacts/export-litert-int8/sensitivity.svg)"
        in walk_section(found)
    )

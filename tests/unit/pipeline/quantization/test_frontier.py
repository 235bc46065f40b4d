"""What beats what in accuracy and latency, and the picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quantization.frontier import draw_frontier, faster_than_chosen, on_frontier

Point = tuple[float, float]


@dataclass(frozen=True)
class Case:
    id: str
    points: list[Point | None]
    best: list[bool]


CASES = [
    Case("one", [(1.0, 0.9)], [True]),
    Case("faster-and-better-beats", [(1.0, 0.9), (2.0, 0.8)], [True, False]),
    Case("faster-or-better-stays", [(1.0, 0.8), (2.0, 0.9)], [True, True]),
    Case("as-good-and-faster-beats", [(2.0, 0.9), (1.0, 0.9)], [False, True]),
    Case("as-fast-and-better-beats", [(1.0, 0.9), (1.0, 0.8)], [True, False]),
    Case("the-same-twice", [(1.0, 0.9), (1.0, 0.9)], [True, True]),
    Case("not-measured", [None, (1.0, 0.9)], [False, True]),
    Case("none", [], []),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_none_other_beats(case: Case) -> None:
    assert on_frontier(case.points) == case.best


@given(st.lists(st.tuples(st.integers(1, 9).map(float), st.integers(0, 9).map(float)), min_size=1))
def test_along_the_frontier_more_time_gives_more_accuracy(points: list[Point]) -> None:
    best = {point for point, stays in zip(points, on_frontier(points), strict=True) if stays}
    accuracies = [accuracy for _, accuracy in sorted(best)]
    assert accuracies == sorted(set(accuracies))
    for latency, accuracy in points:
        assert any(other[0] <= latency and other[1] >= accuracy for other in best)


def attempt(remedy: str, ms: float | None, accuracy: float = 0.9, **more: Any) -> dict[str, Any]:
    return {
        "remedy": remedy, "scheme": "plain", "placed_ms": ms, "accuracy": accuracy, "holds": False, "chosen": False,
        "on_frontier": True, "float_layers": {"count": 0, "last": None}, "drop": 0.95 - accuracy,
        "interval": [0.93 - accuracy, 0.97 - accuracy], **more,
    }  # fmt: skip


def frontier(*attempts: dict[str, Any], floats_ms: float | None = 2.0) -> dict[str, Any]:
    floats = {"remedy": "float32", "accuracy": 0.95, "placed_ms": floats_ms, "on_frontier": floats_ms is not None}
    return {
        "target": "litert", "device": "local", "mode": "measured", "max_drop": 0.05, "float32": floats,
        "attempts": list(attempts),
    }  # fmt: skip


def test_what_holds_and_is_clearly_faster_than_the_chosen_one() -> None:
    ranges, bias = attempt("ranges", 0.5), attempt("bias", 0.99, holds=True)
    mixed = attempt("mixed", 1.0, holds=True, chosen=True)
    training = attempt("training", 0.9, holds=True)
    found = faster_than_chosen(frontier(ranges, bias, mixed, training))
    assert found == [training], "not what breaks the limit, and not what is as fast within 2 %"
    slow = frontier(ranges, attempt("mixed", 2.5, holds=True, chosen=True))
    assert [row["remedy"] for row in faster_than_chosen(slow)] == ["float32"]
    unknown = frontier(attempt("mixed", None, holds=True, chosen=True))
    assert faster_than_chosen(unknown) == []
    assert faster_than_chosen(frontier(mixed, floats_ms=None)) == []


def test_the_picture_is_the_same_for_the_same_numbers_and_shows_them(tmp_path: Path) -> None:
    attempts = [
        attempt("ranges", 1.0, 0.8),
        attempt("mixed", 1.2, 0.9, float_layers={"count": 1, "last": "x"}, chosen=True),
        attempt("training", None, 0.9, on_frontier=False),
    ]
    for name in ("one.svg", "two.svg"):
        draw_frontier(frontier(*attempts), tmp_path / name)
    draw_frontier(frontier(*attempts[:1]), tmp_path / "less.svg")
    draw_frontier(frontier(*attempts, floats_ms=None), tmp_path / "without.svg")
    first = (tmp_path / "one.svg").read_bytes()
    assert first == (tmp_path / "two.svg").read_bytes()
    assert first != (tmp_path / "less.svg").read_bytes()
    assert first != (tmp_path / "without.svg").read_bytes()

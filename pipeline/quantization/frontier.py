"""Accuracy against latency of all that a walk over the remedies tried: what beats what, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.pictures import drawing
from pipeline.quantization.remedies import Remedy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONTIER_FILE = "frontier.json"
FRONTIER_PICTURE = "frontier.svg"
CLEARLY_FASTER = 1.02
"""Of two medians that differ by less, neither is called the faster one."""

# Colours that people of every colour vision tell apart (Okabe and Ito 2008); shapes differ too.
_MARKS: Mapping[Remedy, tuple[str, str]] = {
    "ranges": ("D", "#0072B2"),
    "bias": ("s", "#E69F00"),
    "mixed": ("o", "#D55E00"),
    "rounding": ("^", "#009E73"),
    "training": ("v", "#CC79A7"),
}


def on_frontier(points: Sequence[tuple[float, float] | None]) -> list[bool]:
    """Returns for each point whether no other is at least as fast and as accurate, and better in one of both (Pareto).

    Args:
        points: Latency and accuracy; None for what could not be measured, which is on no frontier.
    """
    known = [point for point in points if point is not None]
    return [point is not None and not any(_beats(other, point) for other in known) for point in points]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def faster_than_chosen(frontier: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the rows that keep to the limit and are clearly faster than what was chosen, float32 among them.

    Args:
        frontier: Metrics of the `frontier` stage.
    """
    chosen = next(row for row in frontier["attempts"] if row["chosen"])
    if chosen["placed_ms"] is None:
        return []
    rows = [frontier["float32"], *(row for row in frontier["attempts"] if row["holds"] and not row["chosen"])]
    return [row for row in rows if row["placed_ms"] and CLEARLY_FASTER * row["placed_ms"] < chosen["placed_ms"]]


def draw_frontier(frontier: Mapping[str, Any], path: Path) -> None:
    """Draws accuracy on the validation images against the median latency.

    Args:
        frontier: Metrics of the `frontier` stage; something in it was measured.
        path: Of the file, whose suffix says the format: `.svg` or `.png`.
    """
    with drawing(path, size=(7.0, 5.0), font_size=8.5) as figure:
        axes = figure.subplots()
        floats = frontier["float32"]
        measured = [row for row in frontier["attempts"] if row["placed_ms"] is not None]
        _draw_line([row for row in (floats, *measured) if row["on_frontier"]], axes)
        if floats["placed_ms"] is not None:
            axes.plot(
                [floats["placed_ms"]], [100 * floats["accuracy"]], "*", color="black", markersize=11, linestyle="none",
                label="float32", zorder=4,
            )  # fmt: skip
        latencies = [row["placed_ms"] for row in (floats, *measured) if row["placed_ms"] is not None]
        room = 0.08 * (max(latencies) - min(latencies) or max(latencies))
        axes.set_xlim(min(latencies) - room, max(latencies) + room)
        for remedy, (shape, colour) in _MARKS.items():
            _draw_attempts([row for row in measured if row["remedy"] == remedy], axes, remedy, shape, colour)
        for row in measured:
            if row["chosen"]:
                axes.plot(
                    [row["placed_ms"]], [100 * row["accuracy"]], "o", markersize=15, markerfacecolor="none",
                    markeredgecolor="black", linestyle="none", label="chosen", zorder=5,
                )  # fmt: skip
        limit = 100 * (floats["accuracy"] - frontier["max_drop"])
        axes.axhline(limit, color="#595959", linestyle=":", linewidth=1, label="limit", zorder=1)
        axes.set(
            xlabel=f"median latency on {frontier['device']} ({frontier['mode']}), ms",
            ylabel="accuracy on the validation images, %",
            title=f"What int8 in {frontier['target']} gives and costs",
        )
        axes.grid(linewidth=0.4)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=5, frameon=False)


def _draw_line(rows: Sequence[Mapping[str, Any]], axes: Axes) -> None:
    best = sorted((row["placed_ms"], 100 * row["accuracy"]) for row in rows)
    if best:
        latencies, accuracies = zip(*best, strict=True)
        axes.step(
            latencies, accuracies, where="post", color="#595959", linewidth=1, label="none is better in both", zorder=2
        )


def _draw_attempts(rows: Sequence[Mapping[str, Any]], axes: Axes, remedy: str, shape: str, colour: str) -> None:
    if not rows:
        return
    latencies, accuracies = [row["placed_ms"] for row in rows], [100 * row["accuracy"] for row in rows]
    axes.errorbar(
        latencies,
        accuracies,
        (
            [100 * max(0.0, row["interval"][1] - row["drop"]) for row in rows],
            [100 * max(0.0, row["drop"] - row["interval"][0]) for row in rows],
        ),
        fmt="none", ecolor=colour, alpha=0.35, elinewidth=0.8, zorder=1,
    )  # fmt: skip
    mixed = remedy == "mixed"
    axes.plot(
        latencies, accuracies, shape, color=colour, markersize=9 if mixed else 5.5, linestyle="none",
        markeredgecolor="white" if mixed else colour, label="mixed (layers in float)" if mixed else remedy, zorder=3,
    )  # fmt: skip
    middle = sum(axes.get_xlim()) / 2
    for row, latency, accuracy in zip(rows, latencies, accuracies, strict=True):
        if mixed:  # there are many, side by side
            count = str(row["float_layers"]["count"])
            axes.annotate(count, (latency, accuracy), ha="center", va="center_baseline", fontsize=5.5, color="white")
            continue
        # Towards the middle there is room for words.
        offset, side = ((7, 4), "left") if latency <= middle else ((-7, 4), "right")
        axes.annotate(
            f"{row['remedy']}, {row['scheme']}", (latency, accuracy), xytext=offset, ha=side,
            textcoords="offset points", fontsize=7, color=colour, zorder=4,
        )  # fmt: skip

"""The reliability diagram as a picture, the same bytes for the same data.

Above, the accuracy of the images in each bin of confidence, with its 95 % interval, and the gap to their mean
confidence; below, how many images lie there. Colours are those of Okabe and Ito (2008), which people of every colour
vision tell apart; the two kinds of gap are hatched differently too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.pictures import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _VERMILION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
_LIGHT = {_VERMILION: "#FBE3D2", _GREEN: "#D5F0E6"}
_OVER, _UNDER = "overconfident by", "underconfident by"
_LEGEND = ("accuracy", "95 % interval", _OVER, _UNDER, "perfectly calibrated")


def draw_reliability(panels: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws one diagram beside another.

    Args:
        panels: For each `title`, `ece`, `ece_interval`, `accuracy` and `bins` (of `reliability_bins`).
        path: Of the file, whose suffix says the format: `.svg` or `.png`.
    """
    with drawing(path, size=(4.4 * len(panels) + 0.4, 6.2), font_size=9.0) as figure:
        axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
        for (above, below), panel in zip(axes.T, panels, strict=True):
            _draw_bins(above, panel)
            _draw_histogram(below, panel)
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("share of images")
        shown = {
            label: handle for above in axes[0] for handle, label in zip(*above.get_legend_handles_labels(), strict=True)
        }
        labels = [label for label in _LEGEND if label in shown]
        figure.legend([shown[label] for label in labels], labels, loc="outside lower center", ncols=5, frameon=False)


def _draw_bins(axes: Axes, panel: Mapping[str, Any]) -> None:
    bins = [row for row in panel["bins"] if row["count"]]
    low, high = panel["ece_interval"]
    axes.set_title(
        f"{panel['title']}\nECE {100 * panel['ece']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})",
        fontsize=10,
    )
    centres = [(row["low"] + row["high"]) / 2 for row in bins]
    width = panel["bins"][0]["high"] * 0.94
    accuracy = [row["accuracy"] for row in bins]
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="perfectly calibrated", zorder=3)
    axes.bar(centres, accuracy, width, color=_BLUE, label="accuracy", zorder=1)
    for label, colour, hatch, sign in (
        (_OVER, _VERMILION, "////", 1),
        (_UNDER, _GREEN, "....", -1),
    ):
        gaps = [
            (centre, row["accuracy"], row["confidence"] - row["accuracy"])
            for centre, row in zip(centres, bins, strict=True)
            if sign * (row["confidence"] - row["accuracy"]) > 0
        ]
        if gaps:
            positions, bottoms, heights = zip(*gaps, strict=True)
            axes.bar(
                positions, heights, width, bottom=bottoms, facecolor=_LIGHT[colour], edgecolor=colour, hatch=hatch,
                linewidth=0.8, label=label, zorder=2,
            )  # fmt: skip
    below = [row["accuracy"] - row["accuracy_interval"][0] for row in bins]
    above = [row["accuracy_interval"][1] - row["accuracy"] for row in bins]
    axes.errorbar(
        centres, accuracy, (below, above), fmt="o", color="black", markersize=2.5, elinewidth=0.9, capsize=1.5,
        label="95 % interval", zorder=4,
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _draw_histogram(axes: Axes, panel: Mapping[str, Any]) -> None:
    total = sum(row["count"] for row in panel["bins"])
    centres = [(row["low"] + row["high"]) / 2 for row in panel["bins"]]
    axes.bar(
        centres, [row["count"] / total for row in panel["bins"]], panel["bins"][0]["high"] * 0.94, color=_GREY,
        alpha=0.55,
    )  # fmt: skip
    mean = sum(row["count"] * (row["confidence"] or 0.0) for row in panel["bins"]) / total
    axes.set(xlim=(0, 1), xlabel="confidence")
    accuracy = panel["accuracy"]
    axes.axvline(accuracy, color=_BLUE, linewidth=1.4)
    axes.axvline(mean, color=_VERMILION, linestyle="--", linewidth=1.4)
    axes.set_title(f"accuracy {100 * accuracy:.1f} %", loc="left", color=_BLUE, fontsize=9)
    axes.set_title(f"mean confidence {100 * mean:.1f} %", loc="right", color=_VERMILION, fontsize=9)

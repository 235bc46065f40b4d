"""Pictures: drawn the same way everywhere, the same bytes for the same data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "edgeship",  # ids of shapes are random without it
    "svg.fonttype": "path",
    "hatch.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def drawing(path: Path, *, size: tuple[float, float], font_size: float) -> Iterator[Figure]:
    """Gives an empty figure and writes it at the end.

    Args:
        path: Of the file, whose suffix says the format: `.svg` or `.png`.
        size: Width and height in inches.
        font_size: In points.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A picture must not depend on the user's own matplotlibrc.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_STYLE, "font.size": font_size})
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=120, metadata=metadata, facecolor="white")

"""The learning-rate range test: a short training whose rate grows from step to step until the loss explodes.

Smith (2017, arXiv:1506.01186, section 3.3) lets it grow and reads off where the loss falls and where it rises again.
fastai added what is usual since: the growth is exponential, the test ends at four times the lowest loss, and a tenth of
the rate of the lowest loss is the one to train with. Here the test also ends when the network has become worse than it
was untrained.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.artifacts import write_durably

if TYPE_CHECKING:
    from pipeline.training.loader import Batch
    from pipeline.training.training_model import TrainingModel
    from pipeline.training.trial import Trial

Curve = npt.NDArray[np.float64]

CSV_FILE = "learning_rate.csv"
PLOT_FILE = "learning_rate.png"

_EXPLODED = 4.0
"""The test ends when the running loss is so many times the lowest one ..."""

_WORSE_THAN_UNTRAINED = 1.2
"""... or so many times the first one: batch normalization keeps a loss from exploding that has long run away."""

_FIRST_STEPS = 10

_RUNNING = 0.9
"""Weight of the steps before in the running loss, which decides when to end."""

_SMOOTHING_STEPS = 3.0
"""Standard deviation of the kernel that smooths the curve; it looks to both sides, so that it shifts no minimum."""

_TABLE_ROWS = 12


@dataclass(frozen=True)
class Suggestion:
    """What the curve of a range test says.

    Attributes:
        suggested: A tenth of `lowest`.
        steepest: Where the smoothed loss falls the fastest along the logarithm of the rate.
        lowest: The smallest rate whose smoothed loss is the lowest, but for the standard error of that: where the curve
            has a broad or a ragged floor, its lowest point is one of chance.
        fell: Whether the loss fell by more than it jumps from step to step; if not, the rates above say little.
    """

    suggested: float
    steepest: float
    lowest: float
    fell: bool


def sweep(lowest: float, highest: float, steps: int) -> Curve:
    """Returns rates (steps,) that grow by the same factor from step to step."""
    return np.geomspace(lowest, highest, steps)


def smoothed(losses: npt.ArrayLike) -> Curve:
    """Returns losses (steps,) averaged with their neighbours, by a Gaussian kernel that is cut off at the ends."""
    values = np.asarray(losses, np.float64)
    distance = np.arange(len(values))[:, None] - np.arange(len(values))[None, :]
    kernel = np.exp(-0.5 * (distance / _SMOOTHING_STEPS) ** 2)
    result: Curve = kernel @ values / kernel.sum(axis=1)
    return result


def suggest(rates: npt.ArrayLike, losses: npt.ArrayLike) -> Suggestion:
    """Reads the rates off a curve.

    Args:
        rates: (steps,), growing.
        losses: (steps,), finite, not smoothed.
    """
    known, values = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    curve = smoothed(values)
    at_minimum = int(curve.argmin())
    spread = float(np.std((values - curve)[: at_minimum + 1]))
    error = spread / math.sqrt(2 * math.sqrt(math.pi) * _SMOOTHING_STEPS)
    at_lowest = int(np.flatnonzero(curve <= curve[at_minimum] + error)[0])
    slope = np.gradient(curve, np.log(known))
    at_steepest = int(slope[: at_lowest + 1].argmin())
    lowest = float(known[at_lowest])
    return Suggestion(
        suggested=lowest / 10,
        steepest=float(known[at_steepest]),
        lowest=lowest,
        fell=bool(curve[0] - curve[at_minimum] > spread),
    )


class Explosion:
    """Tells when a loss has exploded: it is no number, or its running mean is far above the lowest or the first one."""

    def __init__(self) -> None:
        self._mean, self._weight, self._best = 0.0, 0.0, math.inf
        self._first: list[float] = []

    def has_come(self, loss: float) -> bool:
        """Takes the loss of a step."""
        if not math.isfinite(loss):
            return True
        self._mean = _RUNNING * self._mean + (1 - _RUNNING) * loss
        self._weight = _RUNNING * self._weight + (1 - _RUNNING)
        running = self._mean / self._weight
        self._best = min(self._best, running)
        if len(self._first) < _FIRST_STEPS:
            self._first.append(loss)
        untrained = sum(self._first) / len(self._first)
        return running > min(_EXPLODED * self._best, _WORSE_THAN_UNTRAINED * untrained)


def find_learning_rate(trial: Trial, out_dir: Path, *, rates: tuple[float, float], steps: int) -> dict[str, Any]:
    """Runs the test, and writes its curve as numbers and as a picture.

    Args:
        trial: A fresh one; it is of no use afterwards.
        out_dir: Gets `learning_rate.csv` and `learning_rate.png`.
        rates: Of the first and the last step.
        steps: Updates of the weights; a step of the training sums up gradients as the recipe says.

    Returns:
        The rates, a table of the curve, and the names of the files.
    """
    config = trial.config
    tried = sweep(*rates, steps)
    losses = list(_losses(trial, tried))
    known = tried[: len(losses)]
    curve = smoothed(losses)
    found = suggest(known, losses)
    if not found.fell:
        trial.tell(
            {
                "warning": f"The loss fell by less than it jumps from batch to batch, at rates from {rates[0]:g} to "
                f"{known[-1]:.2g}: the suggestion says little. Look at the data and the labels."
            }
        )
    scale = config.peak_learning_rate() / config.learning_rate
    _write_csv(out_dir / CSV_FILE, known, losses, curve)
    draw(out_dir / PLOT_FILE, known, losses, found, recipe=config.peak_learning_rate())
    rows = np.unique(np.linspace(0, len(losses) - 1, _TABLE_ROWS).round().astype(int)).tolist()
    exploded = len(losses) < steps
    return {
        "suggested_learning_rate": found.suggested,
        "steepest_learning_rate": found.steepest,
        "lowest_loss_rate": found.lowest,
        "recipe_learning_rate": config.peak_learning_rate(),
        "train_learning_rate": found.suggested / scale,
        "loss_fell": found.fell,
        "steps": len(losses),
        "batch_size": config.batch_size * config.accumulate_steps,
        "ended": f"the loss exploded at {known[-1]:.2g}"
        if exploded
        else f"the loss did not explode up to {rates[1]:g}",
        "table": [
            {"learning_rate": known[row], "loss": losses[row], "smoothed_loss": float(curve[row])} for row in rows
        ],
        "csv": CSV_FILE,
        "plot": PLOT_FILE,
    }


def _losses(trial: Trial, rates: Curve) -> Iterator[float]:
    """Trains a step for each rate and yields its loss, until the loss explodes; that last loss is not yielded."""
    every = trial.config.accumulate_steps
    model = trial.training.model(0)
    model.schedule = _sweep(rates)
    explosion = Explosion()
    batches = _endless(trial)
    for step, rate in enumerate(rates.tolist()):
        loss = sum(_train_on(model, next(batches)) for _ in range(every)) / every
        if explosion.has_come(loss):
            return
        trial.tell(
            {
                "message": f"step {step + 1} of {len(rates)}: learning rate {rate:.2g}, loss {loss:.4f}",
                "done": step + 1,
                "total": len(rates),
            }
        )
        yield loss


def _train_on(model: TrainingModel, batch: Batch) -> float:
    from pipeline.training.training_model import STEP_LOSS

    logs = model.train_on_batch(*batch.as_keras(), return_dict=True)
    return float(logs[STEP_LOSS])


def _sweep(rates: Curve) -> Callable[[Any], None]:
    """Returns what sets an optimizer to one rate after another, one for each update."""
    import keras

    growth = math.log(rates[1] / rates[0])

    def sweep(optimizer: Any) -> None:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        update = keras.ops.cast(inner.iterations, "float32")
        inner.learning_rate = keras.ops.cast(rates[0] * keras.ops.exp(growth * update), "float32")

    return sweep


def _endless(trial: Trial) -> Iterator[Batch]:
    return itertools.chain.from_iterable(trial.training.batches(epoch) for epoch in itertools.count())


def _write_csv(path: Path, rates: Iterable[float], losses: Iterable[float], curve: Iterable[float]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("learning_rate", "loss", "smoothed_loss"))
    rows.writerows(zip(map(float, rates), map(float, losses), map(float, curve), strict=True))
    write_durably(path, text.getvalue())


def draw(path: Path, rates: Curve, losses: Sequence[float], found: Suggestion, *, recipe: float) -> None:
    """Draws the curve with the rates that matter; the file's type goes by its suffix.

    Args:
        path: Of the picture.
        rates: (steps,).
        losses: (steps,).
        found: What is marked.
        recipe: The rate that the recipe has, marked too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curve = smoothed(losses)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="0.8", linewidth=1, label="loss of each step")
    axes.plot(rates, curve, color="#1f4e79", linewidth=2, label="smoothed")
    marks = (
        (found.suggested, "#2e7d32", "-", "suggested: a tenth of the lowest"),
        (found.steepest, "#c05a00", "--", "steepest descent"),
        (recipe, "0.35", ":", "recipe"),
    )
    for rate, color, style, name in marks:
        axes.axvline(rate, color=color, linestyle=style, linewidth=1.5, label=f"{name}, {rate:.2g}")
    low, high = float(curve.min()), float(curve[: int(curve.argmin()) + 1].max())
    margin = 0.15 * (high - low) or 0.1
    # What the explosion reaches would press all that matters into a line.
    axes.set_ylim(low - margin, high + 3 * margin)
    axes.set_xlim(float(rates[0]), float(rates[-1]))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(visible=True, which="major", color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)

"""What int8 in one runtime is made with; a module of `pipeline.targets` for each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.model_source import Sample
from pipeline.quantization.ranges import Range

_MOST_DECIBELS = 200.0
"""What stands for no noise at all, so that a file can hold it; float32 itself has about 140 dB."""
_LEAST_NOISE = 1e-14
"""Of a sample that is equal while others are not, as a share of its signal."""

Tensors = dict[str, npt.NDArray[Any]]


class FloatGraph(Protocol):
    """Reads and runs a runtime's own model files; names are those of the file."""

    def operations(self, path: Path) -> tuple[str, ...]:
        """Returns the names of the operations that can be left in float, convolutions and matrix products among them.

        They are in the order in which they run.
        """

    def layers(self, path: Path) -> Mapping[str, str]:
        """Returns for each convolution and matrix product the tensor that it gives, in the order in which they run."""

    def activations(self, path: Path, samples: Iterable[Sample], names: Collection[str]) -> Iterator[Tensors]:
        """Runs a float or an int8 file and yields the named tensors as float32, sample by sample."""


class Quantizer(FloatGraph, Protocol):
    """Makes int8 files of float ones.

    Attributes:
        SCHEMES: Ways to int8 and what each does, as a sentence; the first is taken where nothing was measured.
            `converter` is what the converter's defaults give.
    """

    SCHEMES: Mapping[str, str]

    def lower(self, float_path: Path, scheme: str, out_path: Path) -> None:
        """Writes a float file in the operations that a scheme wants; the same function."""

    def observed(self, path: Path) -> tuple[str, ...]:
        """Returns the names of the tensors that take a range."""

    def quantize(
        self,
        path: Path,
        scheme: str,
        ranges: Mapping[str, Range],
        float_layers: Collection[str],
        out_path: Path,
        *,
        reduce_range: bool = False,
    ) -> None:
        """Writes the int8 file of a lowered float file; the same bytes for the same arguments."""

    def scale_output(self, path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
        """Writes a file with one float output multiplied by a positive number, in constants alone.

        No operation is added and no stored integer changes, so that the largest value stays the largest. The first
        output is meant unless one is named.

        Raises:
            UnsupportedModelError: No constants can take the factor.
        """


class SignalToNoise:
    """How far a signal stands above its difference from another, where every sample counts alike.

    It is the mean over samples of 10 log10(sum of squared values / sum of squared differences). Summed over all samples
    before they are divided, the few that drive a network far beyond its usual values would be all that counts.
    """

    def __init__(self) -> None:
        self._ratios: list[float] = []
        self._is_equal = True

    def add(self, signal: npt.NDArray[Any], other: npt.NDArray[Any]) -> None:
        """Takes both signals of one sample, of the same shape; one of zeros says how much noise there is to nothing."""
        reference = signal.astype(np.float64)
        power, noise = float((reference**2).sum()), float(((reference - other.astype(np.float64)) ** 2).sum())
        self._is_equal &= noise == 0
        if power > 0:
            self._ratios.append(-10 * float(np.log10(max(noise / power, _LEAST_NOISE))))

    def decibels(self) -> float:
        """Returns the ratio: infinite where both are equal, -infinite for signals of zeros that the others are not.

        Samples whose signal is zero are left out where there are others.
        """
        if self._is_equal:
            return float("inf")
        return float(np.mean(self._ratios)) if self._ratios else float("-inf")


def signal_to_noise(
    graph: FloatGraph, path: Path, other: Path, samples: Sequence[Sample], names: Sequence[str]
) -> dict[str, float | None]:
    """Returns how far each tensor of a float file stands above its difference from that of another file.

    Args:
        graph: Of the runtime.
        path: The float file.
        other: The same model in int8.
        samples: What both are fed with.
        names: Of tensors.

    Returns:
        In decibels, -200 to 200 (`SignalToNoise`); None for a tensor that the other file does not hold.
    """
    ratios = {name: SignalToNoise() for name in names}
    known: set[str] = set()
    pairs = zip(graph.activations(path, samples, names), graph.activations(other, samples, names), strict=True)
    for expected, found in pairs:
        known |= found.keys()
        for name, values in found.items():
            ratios[name].add(expected[name], values)
    return {
        name: float(np.clip(ratios[name].decibels(), -_MOST_DECIBELS, _MOST_DECIBELS)) if name in known else None
        for name in names
    }

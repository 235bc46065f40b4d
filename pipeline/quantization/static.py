"""int8 of a float file: lowered, observed on the calibration samples, and quantized with the ranges that suit it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.model_source import Calibration, Sample
from pipeline.quantization.quantizer import Quantizer, signal_to_noise
from pipeline.quantization.ranges import Observation, Range, RangeMethod, estimate, observe

_MOST_COMPARED = 64
"""Calibration samples on which ways to choose ranges are compared."""


@dataclass(frozen=True)
class Observed:
    """A float file as one scheme wants it, and what its tensors take on.

    Attributes:
        quantizer: Of the runtime.
        path: The lowered float file.
        scheme: Of the quantizer.
        observations: Of the tensors that take a range.
        samples: The calibration samples that ways to int8 are compared on.
        output: The output that is compared.
        reduce_range: Whether weights keep to 7 bits (`pipeline.model_source.Calibration`).
    """

    quantizer: Quantizer
    path: Path
    scheme: str
    observations: Mapping[str, Observation]
    samples: Sequence[Sample]
    output: str
    reduce_range: bool = False

    def ranges(self, method: RangeMethod) -> dict[str, Range]:
        """Returns the range of each tensor by one method."""
        return {name: estimate(observation, method) for name, observation in self.observations.items()}

    def quantize(self, ranges: Mapping[str, Range], out_path: Path, *, float_layers: Collection[str] = ()) -> None:
        """Writes the int8 file."""
        self.quantizer.quantize(self.path, self.scheme, ranges, float_layers, out_path, reduce_range=self.reduce_range)


def lowered_and_observed(
    quantizer: Quantizer, float_path: Path, *, scheme: str, calibration: Calibration, output: str, directory: Path
) -> Observed:
    """Writes a float file in the operations that a scheme wants and runs it over the calibration samples.

    Args:
        quantizer: Of the runtime.
        float_path: The float file of the runtime.
        scheme: Of the quantizer.
        calibration: At least one sample.
        output: Name of the output that ways to int8 are compared on.
        directory: Gets the lowered file.

    Raises:
        DataError: There are no samples.
        StageError: A tensor is NaN or infinite.
        UnsupportedModelError: The runtime's tools refuse the model.
    """
    path = directory / f"lowered-{scheme}{float_path.suffix}"
    quantizer.lower(float_path, scheme, path)
    names = quantizer.observed(path)
    observations = observe(lambda: quantizer.activations(path, calibration, names))
    step = max(1, len(calibration) // _MOST_COMPARED)
    samples = [sample for number, sample in enumerate(calibration) if number % step == 0][:_MOST_COMPARED]
    return Observed(quantizer, path, scheme, observations, samples, output, reduce_range=calibration.reduce_range)


def compare_range_methods(
    observed: Observed, methods: Sequence[RangeMethod], scratch: Path
) -> dict[RangeMethod, float]:
    """Quantizes by each method and returns the signal-to-noise ratio of the output against float, in decibels.

    The best one first; of equal ones the earlier.

    Args:
        observed: The model.
        methods: At least one.
        scratch: A directory for the files in between.
    """
    path = scratch / f"ranges{observed.path.suffix}"
    found: dict[RangeMethod, float] = {}
    for method in methods:
        observed.quantize(observed.ranges(method), path)
        found[method] = signal_to_noise(observed.quantizer, observed.path, path, observed.samples, [observed.output])[
            observed.output
        ] or float("-inf")
    return dict(sorted(found.items(), key=lambda item: -item[1]))

"""int8 in one runtime of a model that is float: lowered, observed and quantized."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.model_source import Calibration
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.ranges import RangeMethod
from pipeline.quantization.sensitivity import sensitivity_of, sensitivity_summary, write_sensitivity
from pipeline.quantization.static import Observed, compare_range_methods, lowered_and_observed


@dataclass(frozen=True)
class Int8Export:
    """What becomes int8, and how.

    Attributes:
        quantizer: Of the runtime.
        float_path: The runtime's file in float32.
        calibration: What ranges come from; its signature's first output is what ways to int8 are compared on.
        schemes: Of the quantizer, the fastest first.
        methods: Ways to choose ranges that are compared; at least one.
        sensitivity: Whether the sensitivity of the layers is written beside the model.
    """

    quantizer: Quantizer
    float_path: Path
    calibration: Calibration
    schemes: Sequence[str]
    methods: Sequence[RangeMethod]
    sensitivity: bool = False

    @property
    def title(self) -> str:
        """Of pictures."""
        return f"Layers in int8, {self.float_path.suffix.lstrip('.')}"

    def observed(self, scheme: str, directory: Path) -> Observed:
        """Writes what a scheme makes of the float file and runs it over the calibration samples.

        Args:
            scheme: Of the quantizer.
            directory: Gets the file.

        Raises:
            UnsupportedModelError: The runtime's tools refuse the model.
        """
        return lowered_and_observed(
            self.quantizer,
            self.float_path,
            scheme=scheme,
            calibration=self.calibration,
            output=self.calibration.signature.outputs[0].name,
            directory=directory,
        )

    def make(self, out_dir: Path, *, float_layers: Collection[str] = ()) -> tuple[Path, dict[str, Any]]:
        """Writes the model by the first scheme, with the ranges that leave its output closest to float.

        Args:
            out_dir: Gets the file.
            float_layers: Operations of the lowered file that stay in float.

        Returns:
            The file, and for the manifest `scheme`, `range_method` and `range_ratios_db` (of each method that was
            compared, the output's signal-to-noise ratio on calibration samples), with `sensitivity` also that.

        Raises:
            UnsupportedModelError: The runtime's tools refuse the model.
        """
        path = out_dir / f"model{self.float_path.suffix}"
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_dir) as scratch:
            observed = self.observed(self.schemes[0], Path(scratch))
            ratios = compare_range_methods(observed, self.methods, Path(scratch)) if len(self.methods) > 1 else {}
            method = next(iter(ratios), self.methods[0])
            observed.quantize(observed.ranges(method), path, float_layers=float_layers)
            record: dict[str, Any] = {
                "scheme": observed.scheme,
                "range_method": method,
                "range_ratios_db": dict(ratios),
            }
            if self.sensitivity:
                layers = sensitivity_of(observed, method, Path(scratch))
                write_sensitivity(layers, out_dir, title=self.title)
                record["sensitivity"] = sensitivity_summary(layers)
        return path, record

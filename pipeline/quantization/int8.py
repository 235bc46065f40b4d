"""int8 in one runtime of a model that is float: lowered, observed, quantized and, where a limit is set, judged."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.model_source import Calibration, ModelSource
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.ranges import RangeMethod
from pipeline.quantization.static import Observed, compare_range_methods, lowered_and_observed
from pipeline.stages.base import Tell
from pipeline.targets.base import Target


@dataclass(frozen=True)
class Int8Export:
    """What is exported and how.

    Attributes:
        target: Writes the float file.
        quantizer: Of the same runtime.
        source: The model.
        calibration: What ranges come from.
        schemes: Of the quantizer, the fastest first.
        methods: Ways to choose ranges that are compared.
        tell: Takes progress events.
    """

    target: Target
    quantizer: Quantizer
    source: ModelSource
    calibration: Calibration
    schemes: Sequence[str]
    methods: Sequence[RangeMethod]
    tell: Tell

    def observed(self, scheme: str, directory: Path) -> Observed:
        """Writes the float file and what a scheme makes of it, and runs it over the calibration samples.

        Args:
            scheme: Of the quantizer.
            directory: Gets the files.

        Raises:
            UnsupportedModelError: The runtime's tools refuse the model.
        """
        floats = directory / "float32"
        if not floats.exists():
            floats.mkdir()
            self.target.export(self.source, "float32", self.calibration, floats)
        return lowered_and_observed(
            self.quantizer,
            floats / f"model{self.target.suffix}",
            scheme=scheme,
            calibration=self.calibration,
            output=self.source.signature.outputs[0].name,
            directory=directory,
        )

    def make(self, out_dir: Path) -> tuple[Path, dict[str, Any]]:
        """Writes the model by the first scheme, with the ranges that leave its output closest to float.

        Returns:
            The file and what stands in the manifest: `scheme`, `range_method`, `range_ratios_db`, `float_layers`.

        Raises:
            UnsupportedModelError: The runtime's tools refuse the model.
        """
        path = out_dir / f"model{self.target.suffix}"
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_dir) as scratch:
            observed = self.observed(self.schemes[0], Path(scratch))
            ratios = compare_range_methods(observed, self.methods, Path(scratch)) if len(self.methods) > 1 else {}
            method = next(iter(ratios), self.methods[0])
            observed.quantize(observed.ranges(method), path)
        return path, {
            "scheme": observed.scheme,
            "range_method": method,
            "range_ratios_db": dict(ratios),
            "float_layers": [],
        }

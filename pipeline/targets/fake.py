"""A target without a runtime: a linear classifier in a NumPy archive, run by `devices/board/runners/fake.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.model_source import Calibration, ModelSource
from pipeline.signature import SourceFormat
from pipeline.targets.base import (
    GraphSummary,
    LinearOperation,
    Reach,
    TensorDescription,
    summarize,
)

WEIGHTS_FILE = "network.npz"


class FakeTarget:
    """Rounds the weights of the fake network to what the precision can hold."""

    sources: Mapping[SourceFormat, Reach] = {"fake": Reach(("float32", "float16", "int8"))}
    suffix = ".fake"
    format_name = "fake"
    precisions: tuple[str, ...] = ("float32", "float16", "int8")
    tools: tuple[str, ...] = ("numpy",)
    runtime = "numpy"
    notes: Mapping[str, str] = {}

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Writes the rounded weights; the calibration set is not needed for weights."""
        del calibration
        with np.load(source.path) as archive:
            fields = {name: archive[name] for name in archive.files}
        weights = fields["weights"]
        if precision == "float16":
            weights = weights.astype(np.float16).astype(np.float32)
        elif precision == "int8":
            scale = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 127
            weights = (np.rint(weights / scale) * scale).astype(np.float32)
        path = out_dir / f"model{self.suffix}"
        with path.open("wb") as stream:
            np.savez(stream, **{**fields, "weights": weights, "kind": np.array(precision)})
        return path

    def inspect(self, path: Path) -> GraphSummary:
        """Reads the archive."""
        with np.load(path, allow_pickle=False) as archive:
            weights, kind = archive["weights"], str(archive["kind"])
            shape = tuple(int(size) for size in archive["shape"])
        stored = {"float32": ("float32", "float"), "float16": ("float16", "float")}.get(kind, ("int8", "int8"))
        return summarize(
            path,
            format_name="fake",
            inputs=[TensorDescription("image", "uint8", (1, *shape))],
            outputs=[TensorDescription("logits", "float32", (1, weights.shape[1]))],
            operations=["LINEAR"],
            tensor_types=[stored[0]],
            weight_bytes={stored[0]: weights.nbytes},
            linear=[LinearOperation("linear", *stored)],
        )

"""The target that ships as a stand-in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.model_source import Calibration, ModelSource
from pipeline.signature import image_signature
from pipeline.targets import TARGETS, inspect_model


def export(folder: Path, precision: str) -> Path:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, 3)).astype(np.float32)
    np.savez(folder / "network.npz", weights=weights, bias=np.zeros(3, np.float32), shape=np.array([2, 2, 3]))
    signature = image_signature((2, 2, 3), 3, source="fake", model="network.npz")
    calibration = Calibration(signature, {"image": np.zeros((1, 2, 2, 3), np.uint8)})
    return TARGETS["fake"].export(ModelSource(folder, signature), precision, calibration, folder)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_contract(tmp_path: Path, precision: str) -> None:
    path = export(tmp_path, precision)
    summary = inspect_model(path)
    assert summary.precision == precision
    assert [(t.name, t.dtype, t.shape) for t in summary.inputs] == [("image", "uint8", (1, 2, 2, 3))]
    assert [(t.name, t.dtype, t.shape) for t in summary.outputs] == [("logits", "float32", (1, 3))]
    first = path.read_bytes()
    assert export(tmp_path, precision).read_bytes() == first


def test_precisions_round_the_weights(tmp_path: Path) -> None:
    weights = {}
    for precision in ("float32", "float16", "int8"):
        with np.load(export(tmp_path, precision)) as archive:
            weights[precision] = archive["weights"]
    assert 0 < np.abs(weights["float32"] - weights["float16"]).max() < 2e-3
    assert len(np.unique(weights["int8"][:, 0] / (np.abs(weights["int8"][:, 0]).max() / 127)).round()) <= 255
    assert 0 < np.abs(weights["float32"] - weights["int8"]).max() < 0.02

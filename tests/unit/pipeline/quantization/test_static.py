"""Lowering, observing and the choice of ranges, on networks that numpy runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.model_source import Calibration
from pipeline.quantization.quantizer import Quantizer, signal_to_noise
from pipeline.quantization.ranges import RANGE_METHODS
from pipeline.quantization.static import Observed, compare_range_methods, lowered_and_observed
from pipeline.signature import InputTensor, OutputTensor, Signature
from tests.unit.pipeline.quantization import fake_quantizer

QUANTIZER: Quantizer = fake_quantizer
SIGNATURE = Signature(
    source="saved_model",
    model="model",
    inputs=(InputTensor(name="x", dtype="float32", shape=(1, 12)),),
    outputs=(OutputTensor(name="second:out", dtype="float32", shape=(1, 12), kind="values"),),
)


def calibration(*, count: int = 200, outlier: float = 0.0, reduce_range: bool = False) -> Calibration:
    rows = np.random.default_rng(0).normal(size=(count, 12)).astype(np.float32)
    if outlier:
        rows[4] = outlier
    return Calibration(SIGNATURE, {"x": rows}, reduce_range)


def observed(directory: Path, samples: Calibration) -> Observed:
    generator = np.random.default_rng(1)
    fake_quantizer.write(
        directory / "float.npz", {name: generator.normal(size=(12, 12)) for name in ("first", "second")}
    )
    return lowered_and_observed(
        QUANTIZER,
        directory / "float.npz",
        scheme="plain",
        calibration=samples,
        output="second:out",
        directory=directory,
    )


def test_a_set_of_samples_is_compared(tmp_path: Path) -> None:
    found = observed(tmp_path, calibration())
    assert set(found.observations) == {"first:out", "second:out"}
    assert len(found.samples) == 64
    assert len(observed(tmp_path, calibration(count=7)).samples) == 7
    assert len(found.observations["first:out"].lows) == 200


def test_the_best_method_comes_first(tmp_path: Path) -> None:
    found = observed(tmp_path, calibration(outlier=60.0))
    ratios = compare_range_methods(found, RANGE_METHODS, tmp_path)
    assert set(ratios) == set(RANGE_METHODS)
    assert list(ratios.values()) == sorted(ratios.values(), reverse=True)
    assert len(set(ratios.values())) > 1
    found.quantize(found.ranges("mse"), tmp_path / "mse.npz")
    alone = signal_to_noise(QUANTIZER, found.path, tmp_path / "mse.npz", found.samples, ["second:out"])
    assert ratios["mse"] == alone["second:out"]


def test_reduced_weights_are_asked_for(tmp_path: Path) -> None:
    whole, reduced = (observed(tmp_path, calibration(reduce_range=reduce)) for reduce in (False, True))
    ratios = [compare_range_methods(each, ["min_max"], tmp_path)["min_max"] for each in (whole, reduced)]
    assert ratios[0] > ratios[1] + 1, "a bit less in the weights; the noise of the activations stays"


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        observed(tmp_path, calibration(count=0))

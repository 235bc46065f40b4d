"""A step of the walk, and the steps after it, on networks that numpy runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.model_source import Calibration
from pipeline.quantization.comparison import AccuracyDrop, compare_accuracy
from pipeline.quantization.int8 import Int8Export
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.remedies import Remedy
from pipeline.quantization.walk import take_step
from pipeline.signature import InputTensor, OutputTensor, Signature
from tests.unit.pipeline.quantization import fake_quantizer

QUANTIZER: Quantizer = fake_quantizer
LAYERS = ("first", "second", "third", "fourth")
SIGNATURE = Signature(
    source="saved_model",
    model="model",
    inputs=(InputTensor(name="x", dtype="float32", shape=(1, 12)),),
    outputs=(OutputTensor(name="fourth:out", dtype="float32", shape=(1, 12), kind="logits"),),
)
CALIBRATION = Calibration(SIGNATURE, {"x": np.random.default_rng(0).random((80, 12)).astype(np.float32)})
VALIDATION = Calibration(SIGNATURE, {"x": np.random.default_rng(9).random((400, 12)).astype(np.float32)})


def network(path: Path, *, bad: bool = True) -> Path:
    """Four layers, whose second channel is always zero; large weights for it give the second layer a coarse grid."""
    generator = np.random.default_rng(1)
    weights = {name: generator.normal(size=(12, 12)) for name in LAYERS}
    for name in LAYERS[:-1]:
        weights[name][:, 1] = -1e-3
    if bad:
        weights["second"][1] = 400.0
    fake_quantizer.write(path, weights)
    return path


def classes(path: Path) -> Any:
    outputs = QUANTIZER.activations(path, VALIDATION, ["fourth:out"])
    return np.concatenate([tensors["fourth:out"] for tensors in outputs]).argmax(axis=1)


class Walker:
    """Takes steps as the export stage does, each in a directory of its own."""

    def __init__(self, directory: Path, *, max_drop: float) -> None:
        self.directory, self.max_drop = directory, max_drop
        self.floats = network(directory / "float.npz")
        self.labels = classes(self.floats)
        self.previous: Path | None = None
        self.record: Mapping[str, Any] | None = None
        self.told: list[str] = []

    def judge(self, path: Path) -> AccuracyDrop:
        return compare_accuracy(np.ones(len(self.labels), bool), classes(path) == self.labels)

    def step(self, remedy: Remedy, *, weights: Path | None = None) -> dict[str, Any]:
        out_dir = self.directory / remedy
        out_dir.mkdir()
        export = Int8Export(QUANTIZER, weights or self.floats, CALIBRATION, ("plain", "converter"), ("min_max", "mse"))
        path, record = take_step(
            export,
            remedy,
            judge=self.judge,
            max_drop=self.max_drop,
            previous=self.previous,
            record=self.record,
            out_dir=out_dir,
            tell=lambda event: self.told.append(event["message"]),
        )
        assert [file.name for file in out_dir.iterdir() if file.name.startswith(".")] == [], "nothing is left over"
        self.previous, self.record = path, json.loads(json.dumps(record))
        return record


def test_the_first_step_tries_ranges_in_every_scheme_until_one_holds(tmp_path: Path) -> None:
    walker = Walker(tmp_path, max_drop=0.15)
    record = walker.step("ranges")
    assert [attempt["scheme"] for attempt in record["attempts"]] == ["plain", "converter"]
    assert not record["holds"]
    assert set(record["range_ratios_db"]) == {"min_max", "mse"}
    assert len(walker.told) == 2


def test_the_step_that_holds_is_kept_with_all_attempts_before_it(tmp_path: Path) -> None:
    walker = Walker(tmp_path, max_drop=0.15)
    walker.step("ranges")
    record = walker.step("mixed")
    assert [attempt["remedy"] for attempt in record["attempts"]] == ["ranges", "ranges", "mixed"]
    assert record["chosen"] == 2
    assert record["holds"]
    assert record["float_layers"] == ["second"]
    assert walker.previous is not None
    drop = walker.judge(walker.previous).drop
    assert drop == record["attempts"][2]["drop"]["drop"] <= 0.15
    assert (tmp_path / "mixed" / "sensitivity.json").is_file()
    assert (tmp_path / "mixed" / "sensitivity.svg").is_file()


def test_a_remedy_that_makes_it_worse_is_not_kept(tmp_path: Path) -> None:
    walker = Walker(tmp_path, max_drop=-1.0)
    walker.floats = network(tmp_path / "good.npz", bad=False)
    walker.labels = classes(walker.floats)
    first = walker.step("ranges")
    kept = walker.previous
    assert kept is not None
    content = classes(kept)
    record = walker.step("rounding", weights=network(tmp_path / "bad.npz"))
    assert record["attempts"][-1]["remedy"] == "rounding"
    assert record["chosen"] == first["chosen"]
    assert record["remedy"] == "ranges"
    assert walker.previous is not None
    np.testing.assert_array_equal(classes(walker.previous), content)


def test_a_remedy_that_helps_without_holding_is_kept(tmp_path: Path) -> None:
    walker = Walker(tmp_path, max_drop=-1.0)
    walker.step("ranges")
    record = walker.step("bias", weights=network(tmp_path / "good.npz", bad=False))
    assert record["remedy"] == "bias"
    assert not record["holds"]
    assert record["chosen"] == len(record["attempts"]) - 1
    assert [attempt["scheme"] for attempt in record["attempts"]] == ["plain", "converter", "plain"]


def test_mixed_can_not_be_first(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="mixed follows ranges"):
        Walker(tmp_path, max_drop=0.1).step("mixed")

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

    def __init__(self, directory: Path, *, max_drop: float, sensitivity: bool = False) -> None:
        self.directory, self.max_drop, self.sensitivity = directory, max_drop, sensitivity
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
        export = Int8Export(
            QUANTIZER,
            weights or self.floats,
            CALIBRATION,
            ("plain", "converter"),
            ("min_max", "mse"),
            sensitivity=self.sensitivity,
        )
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


def test_the_files_of_all_attempts_are_kept_in_the_step_of_their_remedy(tmp_path: Path) -> None:
    walker = Walker(tmp_path, max_drop=0.15)
    walker.step("ranges")
    record = walker.step("mixed")
    assert [attempt["file"] for attempt in record["attempts"]] == [f"attempts/{number}.npz" for number in range(3)]
    for attempt in record["attempts"]:
        drop = walker.judge(tmp_path / attempt["remedy"] / attempt["file"])
        assert drop.drop == attempt["drop"]["drop"]
    kept = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/attempts/*"))
    assert kept == ["mixed/attempts/2.npz", "ranges/attempts/0.npz", "ranges/attempts/1.npz"]
    assert walker.previous is not None
    assert walker.previous.read_bytes() == (tmp_path / "mixed/attempts/2.npz").read_bytes()


def sensitivity_of_step(directory: Path) -> Any:
    return json.loads((directory / "sensitivity.json").read_text())["layers"]


def test_sensitivity_is_that_of_the_network_whose_file_is_kept(tmp_path: Path) -> None:
    walker = Walker(tmp_path, max_drop=-1.0, sensitivity=True)
    bad, good = walker.floats, network(tmp_path / "good.npz", bad=False)
    first = walker.step("ranges")
    assert first["sensitivity"]["layers"] == 4
    assert first["sensitivity"]["most_sensitive"][0]["layer"] == "second"
    helped = walker.step("bias", weights=good)
    assert helped["remedy"] == "bias"
    assert sensitivity_of_step(tmp_path / "bias") != sensitivity_of_step(tmp_path / "ranges")
    beaten = walker.step("rounding", weights=bad)
    assert (beaten["remedy"], beaten["sensitivity"]) == ("bias", helped["sensitivity"])
    assert sensitivity_of_step(tmp_path / "rounding") == sensitivity_of_step(tmp_path / "bias")


def test_mixed_takes_the_sensitivity_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walker = Walker(tmp_path, max_drop=0.15, sensitivity=True)
    walker.step("ranges")
    monkeypatch.setattr("pipeline.quantization.remedies.sensitivity_of", None)  # would fail
    record = walker.step("mixed")
    assert record["float_layers"] == ["second"]
    assert sensitivity_of_step(tmp_path / "mixed") == sensitivity_of_step(tmp_path / "ranges")


def test_without_being_asked_for_only_mixed_measures_sensitivity(tmp_path: Path) -> None:
    walker = Walker(tmp_path, max_drop=0.15)
    assert "sensitivity" not in walker.step("ranges")
    assert not (tmp_path / "ranges" / "sensitivity.json").exists()
    assert walker.step("mixed")["sensitivity"]["most_sensitive"][0]["layer"] == "second"


def test_an_export_without_a_limit_writes_sensitivity_where_asked_for(tmp_path: Path) -> None:
    floats = network(tmp_path / "float.npz")
    for name, asked in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        export = Int8Export(QUANTIZER, floats, CALIBRATION, ("plain",), ("min_max",), sensitivity=asked)
        _, record = export.make(tmp_path / name)
        assert ("sensitivity" in record) == asked
        assert {file.name for file in (tmp_path / name).iterdir()} == {"model.npz"} | (
            {"sensitivity.json", "sensitivity.svg"} if asked else set()
        )
    layers = sensitivity_of_step(tmp_path / "with")
    assert min(layers, key=lambda layer: layer["alone_db"])["layer"] == "second"
    assert all(layer["output_db"] is not None for layer in layers)

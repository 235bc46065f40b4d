"""How far int8 spreads over draws of the calibration set, on networks that numpy runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import pipeline.stages.spread
from devices.errors import DeviceError
from pipeline.errors import StageError
from pipeline.manifest import Artifact, Manifest
from pipeline.model_source import Calibration
from pipeline.network import ModelConfig
from pipeline.quantization.int8 import Int8Export
from pipeline.quantization.section import CalibrationSetConfig, QuantizationConfig
from pipeline.quantization.spread import spread_lines, spread_of
from pipeline.quantizing import Quantizing
from pipeline.recipe import Recipe
from pipeline.reference import write_calibration_set
from pipeline.signature import InputTensor, OutputTensor, Signature, image_signature
from pipeline.stages.base import Stage
from pipeline.stages.spread import SpreadStage, draw_calibration
from tests.unit.pipeline.quantization import fake_quantizer

METHODS = ("min_max", "mse")
SIGNATURE = Signature(
    source="saved_model",
    model="model",
    inputs=(InputTensor(name="x", dtype="float32", shape=(1, 12)),),
    outputs=(OutputTensor(name="second:out", dtype="float32", shape=(1, 12), kind="logits"),),
    metric="top1",
)
HOST = {"cpu": "X"}


def manifest(stage: str, metrics: dict[str, Any], *, key: str = "0" * 32, inputs: dict[str, str] | None = None) -> Any:
    return Manifest(
        stage=stage, key=key, config={}, inputs=inputs or {}, code="", tools={}, fingerprint="", metrics=metrics,
        wall_time_s=1.0,
    )  # fmt: skip


def answers(path: Path, samples: Calibration) -> Any:
    return np.concatenate([each["second:out"] for each in fake_quantizer.activations(path, samples, ["second:out"])])


@dataclass(frozen=True)
class Place:
    directory: Path

    @property
    def inputs(self) -> dict[str, Path]:
        return {name: self.directory / name for name in ("data", "calibrate", "float32", "int8")}

    def export(self, **record: Any) -> str:
        """Writes the export's manifest; returns the digest of the file that the export stage would make."""
        directory = self.directory / "int8"
        directory.mkdir()
        calibration = draw_calibration(self.inputs["data"], SIGNATURE, 64, 7)
        floats = self.inputs["float32"] / "model.npz"
        export = Int8Export(fake_quantizer, floats, calibration, ("plain",), METHODS)
        path, made = export.make(directory)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        metrics = {"precision": "int8", "graph": {"sha256": digest}, "quantization": {**made, **record}}
        (directory / "manifest.json").write_text(manifest("export", metrics).to_json())
        return digest

    def run(self, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "target": "litert", "draws": 3, "calibration_images": 64, "seed": 7, "range_methods": METHODS, "host": HOST,
        }  # fmt: skip
        out_dir = self.directory / "out"
        out_dir.mkdir()
        found = SpreadStage(**(values | changes)).run(self.inputs, out_dir, [].append)
        assert list(out_dir.iterdir()) == [], "files of the draws are not kept"
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path)
    for name in ("data", "calibrate", "float32"):
        (tmp_path / name).mkdir()
    generator = np.random.default_rng(3)
    fake_quantizer.write(
        place.inputs["float32"] / "model.npz", {name: generator.normal(size=(12, 12)) for name in ("first", "second")}
    )
    rows = {"train": generator.normal(size=(300, 12)), "reference": generator.normal(size=(150, 12))}
    rows = {name: values.astype(np.float32) for name, values in rows.items()}
    (place.inputs["data"] / "dataset.json").write_text(json.dumps({"inputs": [{"name": "x"}]}))
    np.save(place.inputs["data"] / "train_inputs_0.npy", rows["train"])
    calibrate, reference = place.inputs["calibrate"], Calibration(SIGNATURE, {"x": rows["reference"]})
    SIGNATURE.write(calibrate)
    logits = answers(place.inputs["float32"] / "model.npz", reference)
    np.save(calibrate / "reference_input_0.npy", rows["reference"])
    np.save(calibrate / "reference_output_0.npy", logits)
    np.save(calibrate / "reference_labels.npy", logits.argmax(axis=1))

    def inspected(path: Path) -> Any:
        return SimpleNamespace(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), weights_sha256=None)

    def run_here(profile: Any, case: Any, *arguments: Any, **options: Any) -> Any:
        return {"second:out": answers(Path(case.path), reference)}

    monkeypatch.setattr(pipeline.stages.spread, "QUANTIZERS", {"litert": fake_quantizer})
    monkeypatch.setattr(
        pipeline.stages.spread, "TARGETS", {"litert": SimpleNamespace(suffix=".npz", inspect=inspected)}
    )
    monkeypatch.setattr(pipeline.stages.spread, "answers_on", run_here)
    return place


def test_the_first_draw_is_the_export_and_the_others_are_not(place: Place) -> None:
    digest = place.export()
    found = place.run()

    first, *others = found["draws"]
    assert first["sha256"] == found["exported_sha256"] == digest
    assert [row["seed"] for row in found["draws"]] == [7, 8, 9]
    assert len({row["sha256"] for row in found["draws"]}) == 3
    assert all(row["range_method"] in METHODS for row in others)
    for row in found["draws"]:
        assert row["accuracy_drop"] == pytest.approx(1 - row["accuracy"])
        assert row["top1_agreement"] == pytest.approx(row["accuracy"]), "the labels are what float answers"
        assert 20 < row["snr_db"] < 80
    assert found["spread"] == spread_of(found["draws"])


def test_layers_that_the_export_left_in_float_stay_there(place: Place) -> None:
    place.export(float_layers=["first"])
    plain = Int8Export(
        fake_quantizer, place.inputs["float32"] / "model.npz", draw_calibration(place.inputs["data"], SIGNATURE, 64, 7),
        ("plain",), METHODS,
    )  # fmt: skip
    (place.directory / "wanted").mkdir()
    path, _ = plain.make(place.directory / "wanted", float_layers=["first"])

    assert place.run(draws=2)["draws"][0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "record", [{"range_method": None}, {"scheme": "unheard-of"}], ids=["no ranges of ours", "unknown scheme"]
)
def test_what_the_converter_made_is_refused(place: Place, record: dict[str, Any]) -> None:
    place.export(**record)
    with pytest.raises(StageError, match="left to the converter"):
        place.run()


def test_a_file_that_the_runtime_refuses_is_an_error_of_the_stage(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise DeviceError("no memory left")

    place.export()
    monkeypatch.setattr(pipeline.stages.spread, "answers_on", refuse)
    with pytest.raises(StageError, match=r"can't be run on this machine: no memory left"):
        place.run()


def test_images_are_drawn_as_the_calibrate_stage_draws_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    images = generator.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    np.save(data / "train_images.npy", images)
    np.save(data / "train_labels.npy", np.arange(200) % 4)
    np.save(data / "test_images.npy", images[:10])
    (data / "dataset.json").write_text(json.dumps({"classes": list("abcd")}))
    lines = [{"split": "train", "row": row, "name": str(row), "digest": str(row)} for row in range(200)]
    (data / "index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    signature = image_signature((8, 8, 3), 4, source="fake", model="model")
    for seed in (0, 5):
        write_calibration_set(data, out, CalibrationSetConfig(calibration_images=64, seed=seed), [].append)
        drawn = draw_calibration(data, signature, 64, seed)
        assert np.array_equal(drawn.samples["image"], np.load(out / "calibration_input_0.npy"))


def test_the_spread() -> None:
    rows = [
        {"accuracy": 0.5, "accuracy_drop": -0.1, "snr_db": 20.0, "top1_agreement": None},
        {"accuracy": 0.7, "accuracy_drop": 0.1, "snr_db": 30.0, "top1_agreement": 1.0},
        {"accuracy": 0.9, "accuracy_drop": 0.0, "snr_db": 40.0, "top1_agreement": 1.0},
    ]
    found = spread_of(rows)
    assert found["accuracy"] == pytest.approx({"min": 0.5, "median": 0.7, "max": 0.9, "standard_deviation": 0.2})
    assert found["snr_db"] == {"min": 20.0, "median": 30.0, "max": 40.0, "standard_deviation": 10.0}
    assert found["top1_agreement"] is None


def reported(metric: str) -> dict[str, Any]:
    rows = [
        {"accuracy": accuracy, "accuracy_drop": 0.5 - accuracy, "snr_db": 25.0, "top1_agreement": None}
        for accuracy in (0.49, 0.5)
    ]
    found = {"target": "litert", "precision": "mixed", "metric": metric, "draws": rows, "spread": spread_of(rows)}
    return {"spreads": [found]}


def test_every_target_is_told() -> None:
    ratio = "signal-to-noise ratio 25.00 to 25.00 dB (median 25.00, standard deviation 0.00)"
    start = "litert/mixed over 2 draws of the calibration set: "
    accuracy = "accuracy 49.00 to 50.00 % (median 49.50, standard deviation 0.71)"
    drop = "drop 0.00 to 1.00 points (median 0.50, standard deviation 0.71)"
    assert spread_lines(reported("top1")) == [f"{start}{accuracy}, {drop}, {ratio}."]
    assert spread_lines(reported("mse")) == [f"{start}{ratio}."]
    assert spread_lines({}) == []


@pytest.mark.parametrize("draws", [1, 21], ids=str)
def test_one_draw_has_no_spread_and_more_than_twenty_are_refused(draws: int) -> None:
    with pytest.raises(ValidationError):
        QuantizationConfig(draws=draws)


class FakeRun:
    """Knows the artifacts of a finished export and notes which stages are asked for."""

    has_own_model = False
    profiles = ()

    def __init__(self, draws: int | None, artifacts: dict[str, Artifact]) -> None:
        section = {} if draws is None else {"draws": draws}
        self.recipe = Recipe.model_validate(
            {
                "name": "r",
                "data": {"source": "digits", "size": (32, 32)},
                "model": {"name": "mobilenet_v2"},
                "quantization": {"seed": 3, **section},
            }
        )
        self.exports = tuple((target, each) for target in ("litert", "openvino") for each in ("float32", "int8"))
        self.artifacts = artifacts
        self.asked: dict[str, tuple[Stage, dict[str, str]]] = {}

    def network(self) -> ModelConfig:
        return ModelConfig(name="mobilenet_v2")

    def attempt(self, name: str, stage: Stage, inputs: Any) -> None:
        self.asked[name] = (stage, dict(inputs))

    def was_tried(self, name: str) -> bool:
        return name in self.artifacts

    def name_again(self, name: str, known: str) -> None:
        self.artifacts[name] = self.artifacts[known]


def artifacts_of(precision: str, record: dict[str, Any], *, weights: str | None = None) -> dict[str, Artifact]:
    """Returns what an export of LiteRT left, walked over the remedies where the record names one."""
    inputs = {"calibrate": "c", **({"weights": weights} if weights else {})}
    step = manifest("export", {"quantization": record}, key="step", inputs=inputs)
    named = {
        "export/litert/float32": manifest("export", {}, key="floats"),
        **({f"int8/litert/{record['remedy']}": step} if "remedy" in record else {}),
        f"export/litert/{precision}": step,
        "remedy/bias": manifest("remedy", {}, key="bias-key"),
    }
    return {name: Artifact(Path("/store") / name, found) for name, found in named.items()}


@dataclass(frozen=True)
class Asked:
    id: str
    draws: int | None
    artifacts: dict[str, Artifact]
    inputs: dict[str, str] | None


FLOATS = {"data": "data", "calibrate": "calibrate", "float32": "export/litert/float32"}
ASKED = [
    Asked("not asked for", None, artifacts_of("int8", {"range_method": "mse"}), None),
    Asked("plain", 5, artifacts_of("int8", {"range_method": "mse"}), FLOATS | {"int8": "export/litert/int8"}),
    Asked("left to the converter", 5, artifacts_of("int8", {"scheme": "converter"}), None),
    Asked(
        "layers in float",
        5,
        artifacts_of("mixed", {"range_method": "mse", "remedy": "mixed", "float_layers": ["a"]}),
        FLOATS | {"int8": "int8/litert/mixed"},
    ),
    Asked(
        "changed weights",
        5,
        artifacts_of("int8", {"range_method": "mse", "remedy": "bias"}, weights="bias-key"),
        FLOATS | {"int8": "int8/litert/bias", "weights": "remedy/bias"},
    ),
]


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.id)
def test_which_draws_a_run_asks_for(case: Asked) -> None:
    run = FakeRun(case.draws, case.artifacts)
    Quantizing(run).export()

    spreads = {name: asked for name, asked in run.asked.items() if name.startswith("spread/")}
    assert set(spreads) == ({"spread/litert"} if case.inputs else set())
    if case.inputs:
        stage, inputs = spreads["spread/litert"]
        assert isinstance(stage, SpreadStage)
        assert (stage.draws, stage.seed, stage.calibration_images) == (5, 3, 200)
        assert inputs == case.inputs

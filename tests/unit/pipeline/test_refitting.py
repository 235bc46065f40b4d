"""Which stages make an int8 export, without running any."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.calibration.methods import Method
from pipeline.quantization.section import AccuracyConfig, QuantizationConfig
from pipeline.quantizing import Quantizing
from pipeline.reference import CalibrateConfig
from pipeline.signature import OutputKind, image_signature
from pipeline.stages.base import Stage


@dataclasses.dataclass
class Recorded:
    """A run that makes nothing but notes what it is told to make."""

    directory: Path
    recipe: Any
    exports: Any
    has_own_model: bool = False
    refuses: tuple[str, ...] = ()
    precision: str = "int8"
    artifacts: dict[str, Any] = dataclasses.field(default_factory=dict)
    made: dict[str, tuple[str, dict[str, str]]] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    profiles: tuple[Any, ...] = ()

    def attempt(self, name: str, stage: Stage, inputs: Mapping[str, str]) -> None:
        assert set(inputs.values()) <= set(self.artifacts)
        self.made[name] = (stage.stage, dict(inputs))
        if name not in self.refuses:
            precision = "float32" if name.endswith("float32") else self.precision
            self.artifacts[name] = artifact(self.directory, precision=precision, quantization={"holds": True})

    def name_again(self, name: str, known: str) -> None:
        self.names[name] = known
        self.artifacts[name] = self.artifacts[known]

    def was_tried(self, name: str) -> bool:
        return name in self.made

    def network(self) -> Any:
        raise NotImplementedError


def artifact(directory: Path, **metrics: Any) -> Any:
    return SimpleNamespace(directory=directory, manifest=SimpleNamespace(metrics=metrics))


@dataclasses.dataclass(frozen=True)
class Case:
    """A run, and whether its int8 gets a look at the confidence."""

    id: str
    refits: bool
    method: Method = "temperature"
    kind: OutputKind = "logits"
    asked: bool = True
    validation: int = 100
    own: bool = False
    floats: bool = True

    def run(self, directory: Path, **options: Any) -> Recorded:
        signature = image_signature((8, 8, 3), 5, source="saved_model", model="model")
        output = signature.outputs[0].model_copy(update={"kind": self.kind})
        signature.model_copy(update={"outputs": (output,)}).write(directory)
        accuracy = options.pop("accuracy", None)
        recipe = SimpleNamespace(
            quantization=QuantizationConfig(refit_temperature=self.asked, accuracy=accuracy),
            calibrate=CalibrateConfig(method=self.method),
        )
        precisions = ("float32", "int8") if self.floats else ("int8",)
        run = Recorded(directory, recipe, [("litert", each) for each in precisions], self.own, **options)
        run.artifacts["data"] = artifact(directory, num_validation_images=self.validation)
        run.artifacts["calibrate"] = artifact(directory)
        if self.own:
            run.artifacts["model"] = artifact(directory)
        return run


CASES = [
    Case("network", refits=True),
    Case("float32-is-not-exported", refits=True, floats=False),
    Case("isotonic", refits=False, method="isotonic"),
    Case("not-calibrated", refits=False, method="none"),
    Case("probabilities", refits=False, kind="probabilities"),
    Case("not-asked-for", refits=False, asked=False),
    Case("no-validation-images", refits=False, validation=0),
    Case("own-model", refits=True, own=True),
    Case("own-model-alone", refits=False, own=True, floats=False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_which_runs_look_at_the_confidence_of_int8(case: Case, tmp_path: Path) -> None:
    run = case.run(tmp_path)
    Quantizing(run).export()
    assert "export/litert/int8" in run.artifacts
    if not case.refits:
        assert run.made["export/litert/int8"][0] == "export"
        assert "int8/litert" not in run.made
        return
    stage, inputs = run.made["export/litert/int8"]
    floats = {"float32": "export/litert/float32"} if case.floats else {}
    assert (stage, inputs) == (
        "temperature",
        {"export": "int8/litert", "calibrate": "calibrate", "data": "data", **floats},
    )
    assert run.made["int8/litert"][0] == "export"


def test_a_walk_refits_its_last_step_alone_by_what_it_holds(tmp_path: Path) -> None:
    run = Case("walk", refits=True).run(tmp_path, accuracy=AccuracyConfig(), precision="mixed")
    Quantizing(run).export()
    assert [name for name, (stage, _) in run.made.items() if stage == "temperature"] == ["export/litert/mixed"]
    assert run.made["export/litert/mixed"][1]["export"] == "int8/litert/ranges"
    assert run.names == {}


@pytest.mark.parametrize("accuracy", [None, AccuracyConfig()], ids=["alone", "walk"])
def test_an_export_outlives_a_temperature_that_fails(tmp_path: Path, accuracy: AccuracyConfig | None) -> None:
    run = Case("fails", refits=True).run(tmp_path, accuracy=accuracy, refuses=("export/litert/int8",))
    Quantizing(run).export()
    assert run.names == {"export/litert/int8": "int8/litert" if accuracy is None else "int8/litert/ranges"}


def test_an_int8_that_fails_has_no_export(tmp_path: Path) -> None:
    run = Case("fails", refits=True).run(tmp_path, refuses=("int8/litert",))
    Quantizing(run).export()
    assert "export/litert/int8" not in run.artifacts

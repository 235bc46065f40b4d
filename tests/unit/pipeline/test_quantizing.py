"""In which order int8 is made, and what is measured of it: a run that only notes what it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.profile import DeviceProfile, load_profile
from pipeline.manifest import Artifact, Manifest
from pipeline.network import ModelConfig
from pipeline.quantizing import Quantizing
from pipeline.recipe import Recipe
from pipeline.stages.base import Stage
from pipeline.stages.export import ExportStage
from pipeline.stages.frontier import FrontierStage
from pipeline.targets.base import Precision, TargetName


def recipe(**quantization: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "data": {"source": "digits", "size": (32, 32)},
            "model": {"name": "mobilenet_v2"},
            "quantization": quantization,
            "devices": ("local",),
        }
    )


@dataclass
class NotingRun:
    """Makes an artifact of every stage but those named.

    Attributes:
        recipe: What is run.
        profiles: The devices.
        exports: Targets and precisions.
        held_by: The remedy that keeps to the limit; none where it is empty.
        failing: Names of stage records that fail.
    """

    recipe: Recipe
    profiles: Sequence[DeviceProfile]
    exports: Sequence[tuple[TargetName, Precision]] = (("litert", "float32"), ("litert", "int8"))
    held_by: str = "bias"
    failing: tuple[str, ...] = ()
    has_own_model: bool = False
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    asked: dict[str, tuple[Stage, dict[str, str]]] = field(default_factory=dict)

    def network(self) -> ModelConfig:
        return ModelConfig(name="mobilenet_v2")

    def attempt(self, name: str, stage: Stage, inputs: Mapping[str, str]) -> None:
        assert set(inputs.values()) <= {"calibrate", "data", "model", *self.artifacts}
        self.asked[name] = stage, dict(inputs)
        if name not in self.failing:
            metrics = {"precision": "int8", "quantization": {"holds": name.endswith(self.held_by), "remedy": "ranges"}}
            manifest = Manifest(
                stage=stage.stage, key=name, config={}, inputs={}, code="", tools={}, fingerprint="", metrics=metrics,
                wall_time_s=1.0,
            )  # fmt: skip
            self.artifacts[name] = Artifact(Path("/store") / name, manifest)

    def was_tried(self, name: str) -> bool:
        return name in self.asked

    def name_again(self, name: str, known: str) -> None:
        self.artifacts[name] = self.artifacts[known]


def asked(run: NotingRun) -> list[str]:
    Quantizing(run).export()
    return list(run.asked)


LOCAL = (load_profile("local"),)
LIMIT = {"accuracy": {"max_drop": 0.01}}


def test_what_a_walk_tried_is_measured_beside_float32() -> None:
    run = NotingRun(recipe(**LIMIT), LOCAL)
    assert asked(run) == [
        "export/litert/float32", "int8/litert/ranges", "remedy/bias", "int8/litert/bias", "frontier/litert",
    ]  # fmt: skip
    stage, inputs = run.asked["frontier/litert"]
    assert isinstance(stage, FrontierStage)
    assert (stage.target, stage.profile.name, "cpu" in stage.host) == ("litert", "local", True)
    assert inputs == {"float32": "export/litert/float32", "ranges": "int8/litert/ranges", "bias": "int8/litert/bias"}
    assert "export/litert/int8" in run.artifacts


def test_a_step_that_failed_is_left_out() -> None:
    run = NotingRun(recipe(**LIMIT), LOCAL, held_by="mixed", failing=("int8/litert/bias",))
    asked(run)
    assert set(run.asked["frontier/litert"][1]) == {"float32", "ranges", "mixed"}


def test_float32_is_made_for_the_comparison_where_the_recipe_does_not_ask_for_it() -> None:
    run = NotingRun(recipe(**LIMIT), LOCAL, exports=(("litert", "int8"),))
    assert asked(run)[-2:] == ["float32/litert", "frontier/litert"]
    stage, inputs = run.asked["float32/litert"]
    assert isinstance(stage, ExportStage)
    assert (stage.precision, inputs) == ("float32", {"calibrate": "calibrate"})
    assert run.asked["frontier/litert"][1]["float32"] == "float32/litert"
    assert "export/litert/float32" not in run.artifacts


def test_nothing_is_measured_without_a_device_a_limit_or_a_file() -> None:
    assert "frontier/litert" not in asked(NotingRun(recipe(**LIMIT), ()))
    assert "frontier/litert" not in asked(NotingRun(recipe(), LOCAL))
    assert "frontier/litert" not in asked(NotingRun(recipe(**LIMIT), LOCAL, failing=("int8/litert/ranges",)))


def test_a_device_that_fails_leaves_the_export() -> None:
    run = NotingRun(recipe(**LIMIT), LOCAL, failing=("frontier/litert",))
    asked(run)
    assert "export/litert/int8" in run.artifacts
    assert "frontier/litert" not in run.artifacts


def test_sensitivity_is_asked_for_by_the_recipe() -> None:
    for wanted in (True, False):
        for limit, name in ((LIMIT, "int8/litert/ranges"), ({}, "export/litert/int8")):
            run = NotingRun(recipe(sensitivity=wanted, **limit), LOCAL)
            asked(run)
            stage = run.asked[name][0]
            assert isinstance(stage, ExportStage)
            assert stage.sensitivity is wanted

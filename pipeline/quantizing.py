"""Runs the stages that make int8: the search for the fastest way, the exports, the walk over remedies, its frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from devices.profile import DeviceProfile
from pipeline.making import host_facts
from pipeline.manifest import Artifact
from pipeline.network import ModelConfig
from pipeline.quantization.remedies import REMEDIES, Remedy
from pipeline.quantization.section import AccuracyConfig
from pipeline.recipe import Recipe
from pipeline.signature import read_signature
from pipeline.stages.base import Stage
from pipeline.stages.export import ExportStage
from pipeline.stages.frontier import FrontierStage
from pipeline.stages.remedy import RemedyStage
from pipeline.stages.search import SearchStage, image_size_and_classes
from pipeline.stages.spread import SpreadStage
from pipeline.stages.temperature import TemperatureStage, gives_logits
from pipeline.targets import QUANTIZERS
from pipeline.targets.base import Precision, TargetName


class Run(Protocol):
    """The run that these stages are part of."""

    @property
    def recipe(self) -> Recipe:
        """What is run."""

    @property
    def profiles(self) -> Sequence[DeviceProfile]:
        """The devices."""

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """Made so far, by the name of the stage record."""

    @property
    def exports(self) -> Sequence[tuple[TargetName, Precision]]:
        """Targets and precisions, float32 before what is made of it."""

    @property
    def has_own_model(self) -> bool:
        """Whether the model is not a network of ours."""

    def network(self) -> ModelConfig:
        """Returns the network that is trained."""

    def attempt(self, name: str, stage: Stage, inputs: Mapping[str, str]) -> None:
        """Makes an artifact of those named, by role; a failure of its own is noted, and the run goes on."""

    def was_tried(self, name: str) -> bool:
        """Whether a stage ran, in vain or not."""

    def name_again(self, name: str, known: str) -> None:
        """Gives an artifact a second name."""


class Quantizing:
    """Makes what a run exports.

    Args:
        run: Is told to make the artifacts.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def search(self) -> None:
        """Looks for the fastest way to int8 in each target on the first device, where the recipe asks for it."""
        recipe, artifacts = self._run.recipe, self._run.artifacts
        if recipe.quantization.search == "none" or not self._run.profiles:
            return
        model, size, classes, roles = None, (0, 0), 0, {"model": "model", "calibrate": "calibrate"}
        if not self._run.has_own_model:
            model, roles = self._run.network(), {}
            size, classes = image_size_and_classes(artifacts["data"].directory)
        profile = self._run.profiles[0]
        for target, precision in self._run.exports:
            if precision == "int8" and target in QUANTIZERS:
                stage = SearchStage(
                    target=target,
                    model=model,
                    image_size=size,
                    num_classes=classes,
                    benchmark=recipe.benchmark,
                    profile=profile,
                    host=_host(profile),
                    reduce_range=self._reduce_range(target),
                )
                self._run.attempt(f"search/{target}", stage, roles)

    def _schemes(self, target: TargetName) -> tuple[str, ...]:
        """Returns the ways to int8 that were measured, the fastest first; none where none was."""
        found = self._run.artifacts.get(f"search/{target}")
        return tuple(found.manifest.metrics["schemes"]) if found else ()

    def export(self) -> None:
        """Exports every target in every precision."""
        roles = {"calibrate": "calibrate"} | ({"model": "model"} if self._run.has_own_model else {})
        for target, precision in self._run.exports:
            name = f"export/{target}/{precision}"
            if precision != "int8":
                self._run.attempt(name, ExportStage(target=target, precision=precision), roles)
                continue
            floats = f"export/{target}/float32"
            known = {"float32": floats} if floats in self._run.artifacts else {}
            accuracy = self._run.recipe.quantization.accuracy
            if accuracy is None or target not in QUANTIZERS:
                made = f"int8/{target}" if self._refits(target) else name
                self._run.attempt(made, self._int8(target), roles | known)
                if made != name and made in self._run.artifacts:
                    self._finish(target, made)
            else:
                self._walk(target, accuracy, roles | known | {"data": "data"})
        self._spread(roles)

    def _spread(self, roles: Mapping[str, str]) -> None:
        """Draws the calibration set anew for each int8 export, where the recipe asks for it."""
        settings, artifacts = self._run.recipe.quantization, self._run.artifacts
        for target in dict.fromkeys(target for target, _ in self._run.exports):
            name = next((each for each in (f"export/{target}/int8", f"export/{target}/mixed") if each in artifacts), "")
            record = artifacts[name].manifest.metrics.get("quantization") if name else None
            # What was left to the converter has ranges that are none of ours.
            if settings.draws is None or not record or not record.get("range_method"):
                continue
            stage = SpreadStage(
                target=target,
                draws=settings.draws,
                calibration_images=settings.calibration_images,
                seed=settings.seed,
                range_methods=settings.range_methods(),
                reduce_range=self._reduce_range(target),
                host=host_facts(),
            )
            # The step that made the file, not the export: what is folded into it later would differ from a fresh draw.
            steps = (f"int8/{target}/{record.get('remedy', '')}", f"int8/{target}", name)
            made = next(step for step in steps if step in artifacts)
            floats = f"export/{target}/float32"
            known = {"float32": floats} if floats in artifacts else {}
            known |= self._weights_of(artifacts[made])
            self._run.attempt(f"spread/{target}", stage, {**roles, **known, "data": "data", "int8": made})

    def _weights_of(self, step: Artifact) -> dict[str, str]:
        """Returns the network that a step of a walk quantized, as a role; nothing where it is the trained one."""
        key = step.manifest.inputs.get("weights")
        names = [name for name, artifact in self._run.artifacts.items() if artifact.manifest.key == key]
        return {"weights": names[0]} if names else {}

    def _int8(self, target: TargetName, **judged: Any) -> ExportStage:
        return ExportStage(
            target=target,
            precision="int8",
            reduce_range=self._reduce_range(target),
            range_methods=self._run.recipe.quantization.range_methods(),
            schemes=self._schemes(target),
            sensitivity=self._run.recipe.quantization.sensitivity,
            **judged,
        )

    def _walk(self, target: TargetName, accuracy: AccuracyConfig, roles: Mapping[str, str]) -> None:
        """Tries remedies until int8 keeps to the limit; the last step becomes the export, by what its file holds."""
        artifacts, last = self._run.artifacts, ""
        for remedy in accuracy.remedies:
            weights = self._weights(remedy, last, accuracy)
            if weights is None:
                continue
            name = f"int8/{target}/{remedy}"
            stage = self._int8(target, max_drop=accuracy.max_drop, remedy=remedy)
            self._run.attempt(name, stage, {**roles, **({"previous": last} if last else {}), **weights})
            if name not in artifacts:
                if not last:
                    return
                continue
            last = name
            if artifacts[name].manifest.metrics["quantization"]["holds"]:
                break
        if last:
            self._finish(target, last)
            self._frontier(target, roles)

    def _frontier(self, target: TargetName, roles: Mapping[str, str]) -> None:
        """Measures on the first device what each attempt of a walk costs; does nothing without a device."""
        if not self._run.profiles:
            return
        artifacts, floats, profile = self._run.artifacts, f"export/{target}/float32", self._run.profiles[0]
        if floats not in artifacts:  # the recipe does not ask for it
            floats = f"float32/{target}"
            sources = {role: name for role, name in roles.items() if role in {"calibrate", "model"}}
            self._run.attempt(floats, ExportStage(target=target, precision="float32"), sources)
        if floats in artifacts:
            stage = FrontierStage(
                target=target, benchmark=self._run.recipe.benchmark, profile=profile, host=_host(profile)
            )
            steps: dict[str, str] = {remedy: f"int8/{target}/{remedy}" for remedy in REMEDIES}
            made = {role: name for role, name in steps.items() if name in artifacts}
            self._run.attempt(f"frontier/{target}", stage, {"float32": floats} | made)

    def _finish(self, target: TargetName, made: str) -> None:
        """Makes an int8 file an export, by what it holds; with a temperature of its own where it needs one."""
        artifacts = self._run.artifacts
        name, floats = f"export/{target}/{artifacts[made].manifest.metrics['precision']}", f"export/{target}/float32"
        if self._refits(target):
            roles = {"export": made, "calibrate": "calibrate", "data": "data"}
            roles |= {"float32": floats} if floats in artifacts else {}
            self._run.attempt(name, TemperatureStage(target=target), roles)
        if name not in artifacts:
            self._run.name_again(name, made)

    def _refits(self, target: TargetName) -> bool:
        """Whether the confidence of int8 is looked at: of a classifier whose own is a matter of the temperature."""
        recipe, artifacts = self._run.recipe, self._run.artifacts
        if not recipe.quantization.refit_temperature or recipe.calibrate.method != "temperature":
            return False
        if target not in QUANTIZERS or "data" not in artifacts:
            return False
        # What temperature a model of one's own has is known from its float file alone.
        known = not self._run.has_own_model or f"export/{target}/float32" in artifacts
        has_images = artifacts["data"].manifest.metrics.get("num_validation_images", 0) > 0
        return known and has_images and gives_logits(read_signature(artifacts["calibrate"].directory))

    def _weights(self, remedy: Remedy, last: str, accuracy: AccuracyConfig) -> dict[str, str] | None:
        """Returns the network that a remedy is tried on, as a role; None where there is none to be had."""
        artifacts = self._run.artifacts
        if remedy == "mixed":
            found = artifacts[last].manifest.metrics["quantization"]["remedy"] if last else "ranges"
            return {"weights": f"remedy/{found}"} if f"remedy/{found}" in artifacts else {}
        if remedy == "ranges":
            return {}
        name = f"remedy/{remedy}"
        if self._run.has_own_model:
            return None  # the weights of a model of one's own are not ours to change
        if name not in artifacts and not self._run.was_tried(name):
            training = accuracy.training if remedy == "training" else None
            roles = {"calibrate": "calibrate"} | ({"data": "data"} if training else {})
            self._run.attempt(name, RemedyStage(remedy=remedy, training=training), roles)
        return {"weights": name} if name in artifacts else None

    def _reduce_range(self, target: str) -> bool:
        """Whether a device of this run is an x86 processor whose 8-bit products saturate in 16 bits."""
        if target != "onnxruntime":
            return False
        return any(_saturates(profile) for profile in self._run.profiles)


def _host(profile: DeviceProfile) -> dict[str, Any]:
    """Returns what tells this machine from another, where it is the device."""
    return host_facts() if profile.transport.kind == "local" else {}


def _saturates(profile: DeviceProfile) -> bool:
    if profile.transport.kind == "local":
        features: Sequence[str] = host_facts()["features"]
    else:
        features = profile.cpu_features or ()
    return "avx2" in features and not {"avx512_vnni", "avx_vnni"} & set(features)

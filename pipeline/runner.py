"""Runs a recipe: the one place that knows the order of the stages.

    data -> train -> calibrate -> search (each target) -> export (each target x precision) -> verify (each) -> compile
    (each device) -> benchmark (each device) -> select (each device)

An export to int8 that has a limit to keep to is a walk over remedies (`pipeline.quantizing`), and `frontier` (each
target) measures what it tried. Where int8 shifted the confidence, `temperature` takes that back; its artifact is then
the export.

A recipe with a budget has the stage `model` before `train`, which finds the network that fits. A model of one's own has
`model`, which imports it, in place of `train`, and its own answers in place of `calibrate`.
A stage whose artifact is in the store does no work. The report is written by `pipeline.run_directory`.
Where several processes train together (`pipeline.training.distribution`), process 0 alone publishes and goes on after
`train`; the others prepare the data as it does, train along, and end.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.doctor import ask_facts
from devices.errors import ERRORS as DEVICE_ERRORS
from devices.errors import DeviceError
from devices.profile import DeviceProfile, load_profile
from pipeline.artifacts import ArtifactStore
from pipeline.errors import DataError, EdgeshipError, GateError, InputError, StageError
from pipeline.executor import StageExecutor
from pipeline.imports.description import ModelDescription
from pipeline.making import host_facts, plan_of, take_or_make
from pipeline.manifest import Artifact
from pipeline.model_config import BudgetModelConfig, OwnModelConfig
from pipeline.network import FAKE_NETWORK, ModelConfig
from pipeline.quantizing import Quantizing
from pipeline.reach import exports_of, reachable_exports
from pipeline.recipe import Recipe
from pipeline.reference import MIN_PARITY_IMAGES
from pipeline.sources.samples import ArraysConfig, RandomConfig
from pipeline.stages.base import Stage, Tell
from pipeline.stages.benchmark import BenchmarkStage
from pipeline.stages.calibrate import CalibrateStage
from pipeline.stages.compile import CompileStage, binding_facts, forms_for
from pipeline.stages.data import DataStage
from pipeline.stages.fake import FakeCalibrateStage, FakeTrainStage
from pipeline.stages.fit import FitStage
from pipeline.stages.import_model import ImportStage
from pipeline.stages.reference_model import ReferenceStage
from pipeline.stages.samples import SamplesStage
from pipeline.stages.select import SelectStage
from pipeline.stages.train import TrainStage
from pipeline.stages.verify import VerifyStage
from pipeline.targets.base import RANGED, Precision, TargetName
from pipeline.training.backends import expects_gpu, resolve_backend
from pipeline.training.distribution import read_cluster

STAGES = ("data", "model", "train", "calibrate", "search", "export", "verify", "compile", "benchmark", "select",
          "report")  # fmt: skip
"""In the order in which they run."""


@dataclass(frozen=True)
class StageRecord:
    """What became of one stage.

    Attributes:
        name: Such as `train`, `export/litert/int8`, `benchmark/local`.
        key: Of its artifact; empty where it failed before it had one.
        cached: Whether the artifact was there already.
        seconds: That this run spent on it.
        error: Why there is no artifact; None where there is.
    """

    name: str
    key: str
    cached: bool
    seconds: float
    error: str | None = None


@dataclass
class RunResult:
    """What a run made.

    Attributes:
        recipe: What was run.
        profiles: The devices, in the recipe's order.
        artifacts: By the name of the stage record.
        stages: Records, in the order of the run.
        failures: Errors of single exports, verifications and devices; the rest of the run went on.
        trained_along: Whether this process trained for another one, which has what came of it: the run ended after
            `train`, and there may be no artifact of it here.
    """

    recipe: Recipe
    profiles: tuple[DeviceProfile, ...]
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    failures: list[EdgeshipError | DeviceError] = field(default_factory=list)
    trained_along: bool = False


def run_recipe(
    recipe: Recipe,
    store: ArtifactStore,
    *,
    devices: Sequence[str] = (),
    until: str = "report",
    tell: Tell,
) -> RunResult:
    """Runs the stages of a recipe up to `until`.

    Args:
        recipe: What to run.
        store: Where artifacts are looked up and published.
        devices: Instead of the recipe's.
        until: The last stage of `STAGES` that runs.
        tell: Takes progress events; each names its `stage`.

    Returns:
        All artifacts. Failures of single exports, verifications and devices are in it; they don't end the run.

    Raises:
        EdgeshipError: A stage that everything else hangs on failed.
        DeviceError: A device profile can't be used.
    """
    profiles = tuple(load_profile(name) for name in (devices or recipe.devices))
    names = [profile.name for profile in profiles]
    if len(set(names)) != len(names):
        raise InputError(f"The devices {', '.join(names)} name one twice; name each once.")
    result = RunResult(recipe, profiles)
    with _Run(store, result, tell) as run:
        run.until(until)
    return result


def check_sizes(recipe: Recipe, data: Mapping[str, Any]) -> None:
    """Refuses what a data set is too small for, before the hours of training that would come first.

    Args:
        recipe: What is to be run.
        data: Metrics of the data stage.

    Raises:
        DataError: The batch or the calibration set is larger than the training split, or too few images are left
            to verify with.
    """
    train, validation, test = (data[f"num_{split}_images"] for split in ("train", "validation", "test"))
    if not _is_fake(recipe) and recipe.train.batch_size > train:
        raise DataError(
            f"train.batch_size is {recipe.train.batch_size}, but the training split has {train} images. "
            f"Make the batch smaller or give more images."
        )
    if recipe.quantization.calibration_images > train:
        raise DataError(
            f"quantization.calibration_images is {recipe.quantization.calibration_images}, but the training split "
            f"has {train} images. Lower it or give more images."
        )
    if validation + test < MIN_PARITY_IMAGES:
        raise DataError(
            f"The test split has {test} images and validation {validation}; verifying needs at least "
            f"{MIN_PARITY_IMAGES} in both together. Give more images or larger test and validation fractions."
        )


def _is_fake(recipe: Recipe) -> bool:
    return isinstance(recipe.model, ModelConfig) and recipe.model.name == FAKE_NETWORK


def case_failures(device: str, cases: Sequence[Mapping[str, Any]]) -> list[DeviceError]:
    """Returns an error for each model that failed on a device; one whose runtime the device lacks is no failure."""
    hint = "Its numbers are missing from the report; --set benchmark.seed=N measures all anew."
    failures = []
    for case in cases:
        error = case["error"]
        if error is not None and error["kind"] != "RuntimeMissingError":
            kind = DEVICE_ERRORS.get(error["kind"], DeviceError)
            failures.append(
                kind(f"{case['id']} failed on {device}: {error['message']} {hint}", details=error["details"])
            )
        elif case.get("accuracy_reason"):
            failures.append(DeviceError(f"{case['id']} failed on {device}: {case['accuracy_reason']} {hint}"))
    return failures


def train_stage(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> TrainStage:
    """Returns the stage that trains the network of a recipe.

    Args:
        recipe: What is run; its model is a network, by name or by budget.
        artifacts: Of a recipe with a budget: `model`, the network that was found to fit.
    """
    backend = resolve_backend(recipe.train.backend)
    model = network_of(recipe, artifacts)
    return TrainStage(model=model, train=recipe.train, backend=backend, on_gpu=expects_gpu(backend))


def network_of(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> ModelConfig:
    """Returns the network of a recipe: the one it names, or the one that was found to fit its budget."""
    if isinstance(recipe.model, ModelConfig):
        return recipe.model
    return ModelConfig.model_validate(artifacts["model"].manifest.metrics["model"])


class _Run:
    """One run of a recipe."""

    def __init__(self, store: ArtifactStore, result: RunResult, tell: Tell) -> None:
        self._store, self._result, self._tell = store, result, tell
        self._name = ""
        self._own: list[tuple[TargetName, Precision]] = []
        """What a model of one's own is exported to; empty for a network."""
        self._executor = StageExecutor(lambda event: tell({"stage": self._name, **event}))

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.close()

    def until(self, last: str) -> None:
        """Runs the stages in order."""
        quantizing = Quantizing(self)
        steps = {
            "data": self._data,
            "model": self._model,
            "train": self._train,
            "calibrate": self._calibrate,
            "search": quantizing.search,
            "export": quantizing.export,
            "verify": self._verify,
            "compile": self._compile,
            "benchmark": self._benchmark,
            "select": self._select,
        }
        for name in STAGES[: STAGES.index(last) + 1]:
            if name in steps and not self._result.trained_along:
                steps[name]()

    def _data(self) -> None:
        data = self.recipe.data
        if isinstance(data, ArraysConfig):
            self._make("data", SamplesStage(source=data), {})
        elif not isinstance(data, RandomConfig):
            self._make("data", DataStage(source=data), {})

    def _model(self) -> None:
        model, artifacts = self.recipe.model, self._result.artifacts
        if isinstance(model, OwnModelConfig):
            self._own = reachable_exports(self.recipe, model)
            description = ModelDescription.model_validate(model.model_dump(exclude={"path"}))
            self._make("model", ImportStage(path=model.path, description=description), {})
            self._own = exports_of(self.recipe, self._own, artifacts["model"].manifest.metrics)
        elif isinstance(model, BudgetModelConfig):
            check_sizes(self.recipe, artifacts["data"].manifest.metrics)
            self._make("model", FitStage(model=model), {"data": "data"})

    def _train(self) -> None:
        recipe, artifacts = self.recipe, self._result.artifacts
        if isinstance(recipe.model, OwnModelConfig):
            return
        check_sizes(recipe, artifacts["data"].manifest.metrics)
        stage = FakeTrainStage() if _is_fake(recipe) else train_stage(recipe, artifacts)
        if read_cluster().is_primary:
            self._make("train", stage, {"data": "data"})
        else:
            self._train_along(stage)

    def _train_along(self, stage: Stage) -> None:
        """Trains with process 0, which publishes; takes no lock and leaves nothing. Does nothing where that is done."""
        self._name, started = "train", time.monotonic()
        data = self._result.artifacts["data"]
        plan = plan_of(stage, {"data": data})
        artifact = self._store.get(plan.stage, plan.key)
        if artifact is not None:
            self._result.artifacts["train"] = artifact
        else:
            self._tell({"stage": "train", "state": "running", "key": plan.key})
            self._store.verify(data)
            with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
                self._executor.run(stage, {"data": data.directory}, Path(scratch))
        seconds, cached = time.monotonic() - started, artifact is not None
        self._result.stages.append(StageRecord("train", plan.key, cached=cached, seconds=seconds))
        self._result.trained_along = True
        self._tell({"stage": "train", "state": "cached" if cached else "done", "seconds": seconds, "key": plan.key})

    def _calibrate(self) -> None:
        recipe = self.recipe
        if isinstance(recipe.model, OwnModelConfig):
            random = recipe.data if isinstance(recipe.data, RandomConfig) else None
            roles = {"model": "model"} if random else {"model": "model", "data": "data"}
            quantized = any(precision in RANGED for _, precision in self._own) and random is None
            quantization = recipe.quantization.calibration_set() if quantized else None
            self._make("calibrate", ReferenceStage(quantization=quantization, random=random), roles)
            return
        kind = FakeCalibrateStage if _is_fake(recipe) else CalibrateStage
        stage = kind(calibrate=recipe.calibrate, quantization=recipe.quantization.calibration_set())
        self._make("calibrate", stage, {"data": "data", "train": "train"})

    @property
    def recipe(self) -> Recipe:
        """What is run."""
        return self._result.recipe

    @property
    def profiles(self) -> tuple[DeviceProfile, ...]:
        """The devices."""
        return self._result.profiles

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """What was made so far, by name."""
        return self._result.artifacts

    @property
    def exports(self) -> Sequence[tuple[TargetName, Precision]]:
        """Targets and precisions, float32 before what is made of it."""
        if self._own:
            return self._own
        precisions = sorted(self.recipe.export.precisions, key=lambda precision: precision != "float32")
        return tuple(itertools.product(self.recipe.export.targets, precisions))

    @property
    def has_own_model(self) -> bool:
        """Whether the model is not a network of ours."""
        return isinstance(self.recipe.model, OwnModelConfig)

    def network(self) -> ModelConfig:
        """Returns the network that is trained."""
        return network_of(self.recipe, self.artifacts)

    def was_tried(self, name: str) -> bool:
        """Whether a stage ran, in vain or not."""
        return any(record.name == name for record in self._result.stages)

    def name_again(self, name: str, known: str) -> None:
        """Gives an artifact a second name."""
        artifact = self._result.artifacts[known]
        self._result.artifacts[name] = artifact
        self._result.stages.append(StageRecord(name, artifact.manifest.key, cached=True, seconds=0.0))

    def _verify(self) -> None:
        for name in self._exported():
            label = name.removeprefix("export/")
            stage = VerifyStage(target=label.split("/")[0], host=host_facts())
            self.attempt(f"verify/{label}", stage, {"calibrate": "calibrate", "export": name})

    def _compile(self) -> None:
        config = self.recipe.compile
        for profile in self._result.profiles if config.forms else ():
            try:
                facts = binding_facts(ask_facts(profile))
            except DeviceError as error:  # it may do without for Vela, and the benchmark says the same again
                self._result.failures.append(error)
                facts = {}
            for name in self._exported():
                metrics = self.artifacts[name].manifest.metrics
                for form in forms_for(metrics["target"], metrics["precision"], profile, config.forms):
                    if not facts and form != "vela":
                        continue
                    stage = CompileStage(
                        form=form,
                        compile=config,
                        num_threads=self.recipe.benchmark.num_threads,
                        profile=profile,
                        facts={} if form == "vela" else facts,
                    )
                    label = f"compile/{profile.name}/{name.removeprefix('export/')}/{form}"
                    self.attempt(label, stage, {"export": name})

    def _benchmark(self) -> None:
        for profile in self._result.profiles:
            host = host_facts() if profile.transport.kind == "local" else {}
            placed = self.recipe.gates.min_delegated_share is not None
            stage = BenchmarkStage(benchmark=self.recipe.benchmark, profile=profile, host=host, placed=placed)
            inputs = [name for name in ("data", "calibrate") if name in self._result.artifacts]
            # What this machine answered is compared with what another device answers.
            answered = [name for name in self._result.artifacts if name.startswith("verify/") and not host]
            roles = {name: name for name in (*inputs, *self._exported(), *answered)}
            self.attempt(f"benchmark/{profile.name}", stage, roles)
            measured = self._result.artifacts.get(f"benchmark/{profile.name}")
            if measured is not None:
                self._result.failures += case_failures(profile.name, measured.manifest.metrics["cases"])

    def _select(self) -> None:
        for profile in self._result.profiles:
            benchmark = f"benchmark/{profile.name}"
            if benchmark not in self._result.artifacts:
                continue
            stage = SelectStage(
                gates=self.recipe.gates,
                select=self.recipe.select,
                device=profile.name,
                budgets=profile.budgets.model_dump(),
            )
            roles = {name: name for name in self._result.artifacts if name.startswith(("export/", "verify/"))}
            self.attempt(f"select/{profile.name}", stage, {"benchmark": benchmark, **roles})

    def _exported(self) -> list[str]:
        return [name for name in self._result.artifacts if name.startswith("export/")]

    def attempt(self, name: str, stage: Stage, inputs: Mapping[str, str]) -> None:
        """Makes an artifact; where that fails for a reason of its own, notes it and lets the run go on."""
        started = time.monotonic()
        try:
            self._make(name, stage, inputs)
        except (StageError, GateError, DeviceError) as error:
            seconds = time.monotonic() - started
            self._result.failures.append(error)
            self._result.stages.append(StageRecord(name, "", cached=False, seconds=seconds, error=error.message))
            self._tell({"stage": name, "state": "failed", "seconds": seconds, "message": error.message})

    def _make(self, name: str, stage: Stage, inputs: Mapping[str, str]) -> None:
        """Takes an artifact from the store, or makes and publishes it, under the lock of its key."""
        self._name = name
        started = time.monotonic()
        sources = {role: self._result.artifacts[source] for role, source in inputs.items()}
        artifact, cached = take_or_make(
            name, stage, sources, store=self._store, executor=self._executor, tell=self._tell
        )
        self._result.artifacts[name] = artifact
        seconds, key = time.monotonic() - started, artifact.manifest.key
        self._result.stages.append(StageRecord(name, key, cached=cached, seconds=seconds))
        self._tell({"stage": name, "state": "cached" if cached else "done", "seconds": seconds, "key": key})

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.executor
import pipeline.making
import pipeline.runner
from devices.errors import AgentCrashedError, ProfileError
from pipeline.artifacts import ArtifactStore
from pipeline.errors import CorruptArtifactError, InputError, StageCrashError, StageError, StoreError
from pipeline.making import make_artifact
from pipeline.recipe import load_recipes
from pipeline.report import report_of
from pipeline.runner import STAGES, RunResult, run_recipe
from pipeline.stages.base import Stage
from pipeline.stages.data import DataStage

ALL = [
    "data",
    "train",
    "calibrate",
    *(f"export/fake/{precision}" for precision in ("float32", "float16", "int8")),
    *(f"verify/fake/{precision}" for precision in ("float32", "float16", "int8")),
    "benchmark/fake",
    "select/fake",
]


@pytest.fixture
def run(finished: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RunResult, list[dict[str, Any]]]]:
    """Runs the recipe in the workplace of a whole run."""
    monkeypatch.chdir(finished.directory)

    def call(*overrides: str, **options: Any) -> tuple[RunResult, list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        [recipe] = load_recipes(finished.recipe, overrides)
        return run_recipe(recipe, ArtifactStore(finished.store), tell=events.append, **options), events

    return call


def summary(result: RunResult) -> dict[str, bool]:
    return {record.name: record.cached for record in result.stages}


def write_profile(path: Path, **transport: str) -> str:
    lines = [f"  {name}: {value}" for name, value in {"kind": "fake", **transport}.items()]
    path.write_text("\n".join(["extends: fake", f"name: {path.stem}", "transport:", *lines]) + "\n")
    return str(path)


def test_a_second_run_does_no_work_and_starts_no_process(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.executor.StageExecutor, "run", None)

    result, events = run()

    assert summary(result) == dict.fromkeys(ALL, True)
    assert [event["state"] for event in events] == ["cached"] * len(ALL)
    assert list(result.artifacts) == ALL
    assert result.failures == []
    assert all(record.key == result.artifacts[record.name].manifest.key for record in result.stages)


def test_inputs_are_the_keys_of_what_was_read(run: Any) -> None:
    result, _ = run()
    keys = {name: artifact.manifest.key for name, artifact in result.artifacts.items()}

    inputs = {name: artifact.manifest.inputs for name, artifact in result.artifacts.items()}

    exports = {name: key for name, key in keys.items() if name.startswith("export/")}
    verified = {name: key for name, key in keys.items() if name.startswith("verify/")}
    assert inputs["data"] == {}
    assert inputs["train"] == {"data": keys["data"]}
    assert inputs["calibrate"] == {"data": keys["data"], "train": keys["train"]}
    assert inputs["export/fake/float32"] == {"calibrate": keys["calibrate"]}
    assert inputs["export/fake/int8"] == {"calibrate": keys["calibrate"], "float32": keys["export/fake/float32"]}
    assert inputs["verify/fake/int8"] == {"calibrate": keys["calibrate"], "export": keys["export/fake/int8"]}
    assert inputs["benchmark/fake"] == {"data": keys["data"], "calibrate": keys["calibrate"], **exports, **verified}
    cases = result.artifacts["benchmark/fake"].manifest.metrics["cases"]
    assert [case["divergence"]["top1_agreement"] for case in cases] == [1.0] * len(exports)
    assert inputs["select/fake"] == {"benchmark": keys["benchmark/fake"], **exports, **verified}


def test_a_change_remakes_what_hangs_on_it_and_nothing_else(run: Any) -> None:
    result, events = run("benchmark.min_count=20")

    remade = ["benchmark/fake", "select/fake"]
    assert [name for name, cached in summary(result).items() if not cached] == remade
    states = [(event["stage"], event["state"]) for event in events if event["stage"] in remade and "state" in event]
    states = [state for state in states if state[1] in {"waiting", "running", "done"}]
    assert states == [(name, state) for name in remade for state in ("waiting", "running", "done")]
    again, _ = run("benchmark.min_count=20")
    assert all(summary(again).values())
    before, _ = run()
    assert all(summary(before).values()), "a changed key overwrites nothing"


@pytest.mark.parametrize("last", STAGES)
def test_until_stops_after_a_stage(run: Any, last: str) -> None:
    result, _ = run(until=last)

    names = list(dict.fromkeys(name.split("/")[0] for name in summary(result)))
    # A network by name has no stage of its own before training; nothing is searched or compiled unless the recipe asks.
    absent = ("model", "search", "compile", "report")
    assert names == [stage for stage in STAGES[: STAGES.index(last) + 1] if stage not in absent]
    assert json.dumps(report_of(result))


def test_several_devices_each_have_their_measurement_and_choice(run: Any, tmp_path: Path) -> None:
    slow = write_profile(tmp_path / "slow.yaml", latency_ms="50")

    result, _ = run(devices=["fake", slow])

    assert [name for name in summary(result) if name.startswith(("benchmark", "select"))] == [
        "benchmark/fake",
        "benchmark/slow",
        "select/fake",
        "select/slow",
    ]
    report = report_of(result)
    assert set(report["selected"]) == {"fake", "slow"}
    p50 = {device: max(r["latency_ms"]["p50"] for r in report["benchmarks"] if r["device"] == device)
           for device in ("fake", "slow")}  # fmt: skip
    assert p50["slow"] > 10 * p50["fake"]


def test_a_device_given_twice_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name one twice"):
        run(devices=["fake", "fake"])
    twin = tmp_path / "twin.yaml"
    twin.write_text("extends: fake\n")
    with pytest.raises(InputError, match="name one twice"):
        run(devices=["fake", str(twin)])


def test_an_unknown_device_is_refused_before_any_work(run: Any) -> None:
    with pytest.raises(ProfileError, match="did you mean 'fake'"):
        run(devices=["fakke"])


class Interfere:
    """Stands in for `StageExecutor.run`: raises for one export, works for all else."""

    def __init__(self, name: str, error: Exception) -> None:
        self.real, self.name, self.error = pipeline.executor.StageExecutor.run, name, error

    def __get__(self, executor: Any, kind: Any = None) -> Callable[..., Any]:
        def run(stage: Stage, inputs: Any, out_dir: Path) -> Any:
            label = "/".join([stage.stage, *filter(None, [getattr(stage, "precision", None)])])
            if label == self.name:
                (out_dir / "half").write_text("done")
                raise self.error
            return self.real(executor, stage, inputs, out_dir)

        return run


@pytest.mark.slow
@pytest.mark.parametrize("error", [StageError("refused"), StageCrashError("died")], ids=["fails", "crashes"])
def test_an_export_that_fails_loses_only_itself(
    run: Any, without_stages: Any, monkeypatch: pytest.MonkeyPatch, error: StageError
) -> None:
    place = without_stages("export", "verify", "benchmark", "select")
    with monkeypatch.context() as context:
        context.setattr(pipeline.executor.StageExecutor, "run", Interfere("export/float16", error))
        result, events = run()

    assert result.failures == [error]
    assert [record.name for record in result.stages] == [
        "data", "train", "calibrate", "export/fake/float32", "export/fake/float16", "export/fake/int8",
        "verify/fake/float32", "verify/fake/int8", "benchmark/fake", "select/fake",
    ]  # fmt: skip
    [failed] = [record for record in result.stages if record.error]
    assert (failed.name, failed.key, failed.error) == ("export/fake/float16", "", error.message)
    assert [event["message"] for event in events if event.get("state") == "failed"] == [error.message]
    report = report_of(result)
    assert report["failures"] == [error.message]
    assert len(report["artifacts"]) == 2
    again, _ = run()
    assert again.failures == []
    assert {"export/fake/float16": False, "export/fake/int8": True}.items() <= summary(again).items()
    assert not list((place.store / "artifacts").rglob("half"))


def test_an_error_of_the_store_ends_the_run(run: Any, without_stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_stages("export", "verify", "benchmark", "select")
    monkeypatch.setattr(pipeline.executor.StageExecutor, "run", Interfere("export/float16", StoreError("full")))

    with pytest.raises(StoreError, match="full"):
        run()


@pytest.mark.parametrize("request_name", ["facts", "predict"])
def test_a_device_that_dies_loses_only_its_own_numbers(run: Any, tmp_path: Path, request_name: str) -> None:
    dying = write_profile(tmp_path / "dying.yaml", die_on=request_name)

    result, _ = run(devices=[dying, "fake"])

    if request_name == "facts":
        assert [type(error) for error in result.failures] == [AgentCrashedError]
        assert result.failures[0].exit_code == 3
        assert "benchmark/dying" not in result.artifacts
    else:
        cases = result.artifacts["benchmark/dying"].manifest.metrics["cases"]
        assert all("SIGSEGV" in case["accuracy_reason"] for case in cases)
    assert report_of(result)["selected"]["fake"]["selected"]


def test_a_changed_artifact_is_named_once_and_made_anew_by_the_next_run(run: Any, finished: Any) -> None:
    before, _ = run()
    [train] = finished.artifacts("train")
    path = train / "network.npz"
    path.chmod(0o644)
    path.write_bytes(b"\0" + path.read_bytes()[1:])

    with pytest.raises(CorruptArtifactError, match=r"train/.*network\.npz has SHA-256"):
        run()
    after, _ = run()

    assert [name for name, cached in summary(after).items() if not cached] == ["train"]
    assert after.artifacts["train"].digests == before.artifacts["train"].digests
    assert [record.key for record in after.stages] == [record.key for record in before.stages]


def test_a_source_that_was_changed_is_not_worked_on(
    run: Any, without_stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and time are as before; only reading it in full tells."""
    place = without_stages("calibrate", "export", "verify", "benchmark", "select")
    run(until="train")
    [train] = place.artifacts("train")
    path = train / "network.npz"
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(CorruptArtifactError, match="network"):
        run()


def test_what_shapes_an_artifact_is_in_its_manifest(run: Any, finished: Any) -> None:
    result, _ = run()
    data, verify = (result.artifacts[name].manifest for name in ("data", "verify/fake/int8"))

    assert data.config["source"]["size"] == [8, 8]
    assert data.fingerprint
    assert data.tools["numpy"] == np.__version__
    assert verify.config["host"]["cpu"]
    assert len(data.code) == 64
    assert data.code != verify.code


def test_the_key_follows_the_data_not_its_name(run: Any, finished: Any) -> None:
    with np.load(finished.directory / "tiny.npz") as arrays:
        np.savez(finished.directory / "tiny.npz", images=arrays["images"][:-6], labels=arrays["labels"][:-6])

    result, _ = run(until="data")

    assert summary(result) == {"data": False}


def test_the_code_that_runs_on_the_board_is_in_the_keys_of_what_it_measured(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    covered: dict[str, tuple[str, ...]] = {}
    real = pipeline.making.code_digest

    def seen(*roots: str) -> str:
        covered[roots[0].rpartition(".")[2]] = roots[1:]
        return real(*roots)

    monkeypatch.setattr(pipeline.making, "code_digest", seen)
    run()

    assert covered["verify"] == covered["benchmark"] == ("devices.board.*",)


def test_one_artifact_alone_is_taken_or_made(finished: Any, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    result, _ = run(until="data")
    [recipe] = load_recipes(finished.recipe)
    events: list[dict[str, Any]] = []
    store = ArtifactStore(finished.store)

    assert make_artifact(DataStage(source=recipe.data), store, events.append) == result.artifacts["data"]
    assert events == []


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((50, 100, 100), "train.batch_size is 64"),
        ((150, 100, 100), "quantization.calibration_images is 200"),
        ((1000, 60, 60), "at least 128 in both"),
    ],
    ids=["batch", "calibration", "verify"],
)
def test_a_data_set_that_is_too_small_is_refused_before_training(counts: tuple[int, int, int], message: str) -> None:
    from pipeline.errors import DataError
    from pipeline.recipe import load_recipes
    from pipeline.runner import check_sizes

    (recipe,) = load_recipes(Path(__file__).parents[3] / "models" / "recipes" / "digits_mobilenet_v2.yaml")
    metrics = {
        f"num_{split}_images": count for split, count in zip(("train", "validation", "test"), counts, strict=True)
    }
    with pytest.raises(DataError, match=message):
        check_sizes(recipe, metrics)
    check_sizes(recipe, {"num_train_images": 200, "num_validation_images": 28, "num_test_images": 100})


def as_process(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"EDGESHIP_COORDINATOR": "127.0.0.1:1", "EDGESHIP_PROCESSES": "2", "EDGESHIP_PROCESS": str(index)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_only_the_first_process_publishes_what_several_train(
    run: Any, without_stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = without_stages("train", "calibrate")
    as_process(1, monkeypatch)
    result, events = run()
    assert result.trained_along
    assert summary(result) == {"data": True, "train": False}, "trained, and not gone on with"
    assert "train" not in result.artifacts
    assert not place.artifacts("train")
    assert not list((place.store / "work").glob("*"))
    assert events[-1]["stage"] == "train"
    assert events[-1]["state"] == "done"

    as_process(0, monkeypatch)
    result, _ = run()
    assert not result.trained_along
    assert summary(result)["train"] is False
    assert len(place.artifacts("train")) == 1
    assert "select/fake" in summary(result)

    as_process(1, monkeypatch)
    result, _ = run()
    assert summary(result) == {"data": True, "train": True}, "there is nothing to train along with"
    assert result.artifacts["train"].directory == place.artifacts("train")[0]


def test_processes_that_do_not_fit_together(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(2, monkeypatch)
    with pytest.raises(InputError, match="number the processes from 0 to 1"):
        run()

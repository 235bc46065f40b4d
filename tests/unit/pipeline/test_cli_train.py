from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import ArtifactStore
from pipeline.making import find_artifact
from pipeline.rehearsal import dry_run_lines, learning_rate_lines, learning_rate_rows
from pipeline.stages.fake import FakeTrainStage
from pipeline.training_summary import training_lines

HEAVY = {"tensorflow", "keras", "jax", "openvino", "onnxruntime", "sklearn", "scipy", "matplotlib", "mlflow"}
LOADED = """
import sys
from pipeline.cli import main
try:
    main()
finally:
    print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""
DIGITS = ("--set", "model.name=mobilenet_v2", "--set", "export.targets=[litert]", "--set", "data.size=[32, 32]")


@dataclass(frozen=True)
class Misuse:
    id: str
    arguments: tuple[str, ...]
    words: str


MISUSES = [
    Misuse("two-trials", ("--dry-run", "--find-learning-rate"), "give one of them"),
    Misuse("fake-dry-run", ("--dry-run",), "choose a network to try out its training"),
    Misuse("fake-finder", ("--find-learning-rate",), "choose a network to try out its training"),
    Misuse(
        "no-epochs", ("--dry-run", *DIGITS, "--set", "train.epochs=0", "--set", "model.weights=x"), "Set train.epoch"
    ),
    Misuse("half-a-cluster", ("--processes", "2"), "belong together"),
    Misuse("no-such-process", ("--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"), "from 0 to 1"),
    Misuse("no-address", ("--coordinator", "here", "--processes", "2", "--process", "1"), "host:port"),
    Misuse("unknown-tracker", ("--set", "track.wandb=true"), "unknown key track.wandb"),
    Misuse("no-server", ("--set", "track.mlflow={}"), "track.mlflow"),
    Misuse("too-large-a-batch", ("--dry-run", *DIGITS, "--set", "train.batch_size=4096"), "Make the batch smaller"),
    Misuse("no-file", ("--set", "data.path=nowhere.npz"), "nowhere.npz"),
]


@pytest.mark.parametrize("misuse", MISUSES, ids=lambda misuse: misuse.id)
def test_bad_usage_is_2_and_one_message(misuse: Misuse, workplace: Any) -> None:
    outcome = workplace.edgeship("train", "tiny.yaml", *misuse.arguments, env={"MLFLOW_TRACKING_URI": ""})

    assert outcome.code == 2, outcome.stderr
    assert misuse.words in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""


def test_a_model_of_ones_own_is_not_trained(workplace: Any) -> None:
    (workplace.directory / "own.yaml").write_text("name: own\nmodel: {path: model.onnx}\n")
    for flags in ((), ("--dry-run",)):
        outcome = workplace.edgeship("train", "own.yaml", *flags)
        assert outcome.code == 2
        assert "model.path" in outcome.stderr


def test_train_ends_with_the_accuracy_and_the_calibration(workplace: Any) -> None:
    outcome = workplace.edgeship("train", "tiny.yaml")

    assert outcome.code == 0, outcome.stderr
    for words in ("test accuracy", "95 % interval", "calibration error", "from", "by temperature", "parameters"):
        assert words in outcome.stdout
    assert (workplace.runs / "tiny" / "report.json").exists()
    assert not (workplace.runs / "tiny" / "history.csv").exists()  # the fake network has no epochs


@pytest.mark.slow
def test_a_cached_training_says_so_and_loads_no_runtime(finished: Any) -> None:
    outcome = finished.python("import subprocess\nsubprocess.Popen = None\n" + LOADED, "train", "tiny.yaml", "--json")

    assert outcome.code == 0, outcome.stderr
    found = outcome.json()
    assert found["cached"] is True
    assert 0 <= found["test_accuracy_interval"][0] <= found["test_accuracy"] <= found["test_accuracy_interval"][1] <= 1
    assert Path(found["artifacts"]["train"]).is_dir()
    line = next(line for line in outcome.stderr.splitlines() if line.startswith("LOADED"))
    assert set(line.split()) & HEAVY == set()
    assert "nothing was trained" in finished.edgeship("train", "tiny.yaml").stdout


def test_what_a_stage_made_before_is_found(finished: Any) -> None:
    store = ArtifactStore(finished.store)
    (data,) = (store.get("data", path.name) for path in finished.artifacts("data"))
    assert data is not None

    assert find_artifact(FakeTrainStage(), store, {"data": data}) is not None
    assert find_artifact(FakeTrainStage(ridge=3.0), store, {"data": data}) is None


@pytest.mark.slow
def test_a_matrix_trains_one_after_another(workplace: Any) -> None:
    text = workplace.recipe.read_text() + "matrix: {calibrate.method: [temperature, none]}\n"
    (workplace.directory / "matrix.yaml").write_text(text)

    outcome = workplace.edgeship("train", "matrix.yaml", "--json")

    assert [run["cached"] for run in outcome.json()["runs"]] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic", "none"])
def test_every_method_of_calibration_is_said(workplace: Any, method: str) -> None:
    outcome = workplace.edgeship("train", "tiny.yaml", "--set", f"calibrate.method={method}")

    assert outcome.code == 0, outcome.stderr
    line = next(line for line in outcome.stdout.splitlines() if "calibration error" in line)
    assert f"by {method}" in line
    assert line.count("(") == 2, "an interval before and after"


def test_deploy_is_the_business_of_the_first_process(workplace: Any) -> None:
    cluster = {"EDGESHIP_COORDINATOR": "127.0.0.1:1", "EDGESHIP_PROCESSES": "2", "EDGESHIP_PROCESS": "1"}
    outcome = workplace.edgeship("deploy", "tiny.yaml", "--root", "root", env=cluster)

    assert outcome.code == 2, outcome.stderr
    assert "process 0 has the network" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (workplace.directory / "root").exists()


DRY_RUN: dict[str, Any] = {
    "recipe": "tiny",
    "cached": False,
    "artifact": None,
    "network": {"name": "mobilenet_v2", "parameters": 423018, "trainable_parameters": 12810,
                "multiply_adds": 15_600_000, "input_shape": [32, 48, 3]},
    "data": {"training_images": 1169, "validation_images": 269, "classes": 10},
    "training": {
        "preset": "finetune", "epochs": 18, "batch_size": 64, "accumulate_steps": 2, "steps_per_epoch": 18,
        "total_steps": 324, "optimizer": "adamw", "weight_decay": 0.02, "label_smoothing": 0.1,
        "learning_rate": {"schedule": "cosine", "peak": 0.004, "end": 1e-7, "warmup_steps": 36},
        "augmentation": ["flip"], "extras": ["class weights"], "may_end_sooner": True,
    },
    "hardware": {"backend": "jax", "device": "NVIDIA X", "devices": 2, "processes": 1, "precision": "bfloat16",
                 "compiled": True, "workers": 14},
    "memory": {"weights_bytes": 2**21, "gradients_bytes": 2**20, "optimizer_bytes": 2**21, "averages_bytes": 0,
               "teacher_bytes": 0, "activations_bytes": 2**29, "estimate_bytes": 2**29 + 5 * 2**20,
               "measured_peak_bytes": 2**30, "measured_before_bytes": None, "limit_bytes": 2**37,
               "measured_as": "in use on the device at the peak"},
    "time": {"steps": 10, "first_step_seconds": 27.0, "step_seconds": 0.3634, "step_seconds_quartiles": [0.34, 0.4],
             "validation_seconds": 0.44, "total_seconds": 5400.0, "total_seconds_interval": [5000.0, 6000.0]},
    "throughput": {"loader_images_per_second": 6339.4, "step_images_per_second": 184.0,
                   "both_images_per_second": 176.2, "loader_share": 0.042},
}  # fmt: skip


def test_a_dry_run_in_words() -> None:
    lines = dict(dry_run_lines(DRY_RUN))

    assert lines["network"].startswith("mobilenet_v2, 423.0 k parameters, 12.8 k of them trained, 15.6 M multiply-adds")
    assert "32 x 48" in lines["network"]
    assert lines["steps"] == "324 = 18 epochs of 18, 64 images each; weights move every 2 steps, after 128"
    assert lines["learning rate"] == "up to 0.004 over 36 steps, then cosine from 0.004 to 1e-07 in the last step"
    assert lines["preset"] == "finetune"
    assert lines["hardware"] == "jax on 2 x NVIDIA X, bfloat16, compiled by XLA"
    assert "averages" not in lines["memory"]
    assert "1.0 GiB of 128.0 GiB in use on the device" in lines["memory"]
    assert lines["throughput"].startswith("176 images/s; loader alone 6,339, step alone 184")
    assert lines["time"].startswith("at most 1 h 30 min (1 h 23 min to 1 h 40 min), from 10 steps of 363 ms")
    assert "cached" not in lines
    assert "cached" in dict(dry_run_lines({**DRY_RUN, "cached": True, "artifact": "/store/train/x"}))


def test_a_search_in_words() -> None:
    found = {
        "suggested_learning_rate": 0.0069, "steepest_learning_rate": 0.0169, "lowest_loss_rate": 0.069,
        "recipe_learning_rate": 0.004, "train_learning_rate": 0.0138, "steps": 120, "batch_size": 64,
        "ended": "the loss exploded at 1.1", "csv": "runs/x/learning_rate.csv", "plot": "runs/x/learning_rate.png",
        "table": [{"learning_rate": 1e-6, "loss": 2.41, "smoothed_loss": 2.5}],
    }  # fmt: skip
    lines = dict(learning_rate_lines(found))

    assert lines["suggested"].startswith("0.0069, a tenth of")
    assert lines["to take it"] == "--set train.learning_rate=0.014"
    assert learning_rate_rows(found) == [("1.0e-06", "2.4100", "2.5000")]


def test_a_process_that_trained_along_says_who_has_the_network() -> None:
    lines = training_lines({"recipe": "tiny", "trained_along": True, "process": 1})

    assert json.dumps(lines) == '[["done", "process 1 trained along; process 0 has the network"]]'

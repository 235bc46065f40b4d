"""Trainings that are tried out, and trainings that are watched while they are killed and go on."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "models" / "recipes" / "digits_mobilenet_v2.yaml"

pytestmark = pytest.mark.slow


def run(workplace: Any, *arguments: str) -> Any:
    return workplace.execute(workplace.command(*arguments), timeout_s=280)


def test_a_dry_run_says_what_a_training_would_be_and_leaves_nothing(module_workplace: Any) -> None:
    outcome = run(module_workplace, "train", str(RECIPE), "--dry-run", "--json")

    assert outcome.code == 0, outcome.stderr
    found = outcome.json()
    assert found["cached"] is False
    assert found["network"]["parameters"] == 408_938
    assert found["data"] == {"training_images": 1169, "validation_images": 269, "classes": 10}
    training = found["training"]
    assert (training["steps_per_epoch"], training["total_steps"]) == (18, 324)
    assert training["learning_rate"] == {
        "schedule": "cosine",
        "peak": 0.004,
        "end": pytest.approx(0, abs=1e-6),
        "warmup_steps": 36,
    }
    memory = found["memory"]
    # Activations of a batch of 64 and the networks: hundreds of MiB, and the process holds at least that.
    assert 100 * 2**20 < memory["estimate_bytes"] < memory["measured_peak_bytes"] < memory["limit_bytes"]
    assert memory["optimizer_bytes"] > 2 * memory["gradients_bytes"] * 0.99
    time = found["time"]
    assert time["steps"] == 10
    low, high = time["total_seconds_interval"]
    assert low <= time["total_seconds"] <= high
    assert time["total_seconds"] == pytest.approx(
        time["first_step_seconds"] + 324 * time["step_seconds"] + 18 * time["validation_seconds"]
    )
    speed = found["throughput"]
    assert speed["loader_images_per_second"] > speed["both_images_per_second"] > 0
    assert 0 <= speed["loader_share"] < 1
    assert module_workplace.artifacts("train") == []
    assert not (module_workplace.runs).exists()


def test_a_dry_run_on_jax(module_workplace: Any) -> None:
    """JAX hands steps over and goes on; its steps are timed to their ends all the same."""
    few = ("train.backend=jax", "train.batch_size=8", "train.epochs=2", "train.warmup_epochs=1")

    outcome = run(module_workplace, "train", str(RECIPE), "--dry-run", "--json", *(f"--set={each}" for each in few))

    assert outcome.code == 0, outcome.stderr
    found = outcome.json()
    assert (found["hardware"]["backend"], found["hardware"]["compiled"]) == ("jax", True)
    assert found["training"]["total_steps"] == 2 * found["training"]["steps_per_epoch"] == 292
    time = found["time"]
    assert time["steps"] == 10
    assert time["first_step_seconds"] > time["step_seconds"] > 0, "the first one compiles"
    assert found["throughput"]["both_images_per_second"] == pytest.approx(8 / time["step_seconds"])


def test_the_learning_rate_is_found_where_training_works(module_workplace: Any) -> None:
    outcome = run(module_workplace, "train", str(RECIPE), "--find-learning-rate", "--json")

    assert outcome.code == 0, outcome.stderr
    found = outcome.json()
    assert found["loss_fell"] is True
    # The recipe trains well at 0.004.
    assert 0.0004 < found["suggested_learning_rate"] < 0.04
    with (module_workplace.directory / found["csv"]).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == found["steps"] > 80
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-6)
    assert (module_workplace.directory / found["plot"]).read_bytes().startswith(b"\x89PNG")
    assert module_workplace.artifacts("train") == []


WATCHED = """\
name: watched
data: {source: npz, path: tiny.npz, size: [32, 32]}
model: {name: resnet8}
train: {epochs: 4, warmup_epochs: 1, batch_size: 48}
track: {mlflow: {uri: "file:mlruns", experiment: tests}}
"""


def test_a_killed_training_goes_on_and_no_tracker_doubles_or_loses_an_epoch(
    workplace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    (workplace.directory / "watched.yaml").write_text(WATCHED)
    process = workplace.start(workplace.command("train", "watched.yaml"))
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "epoch 2/4" in line and "validation accuracy" in line:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    directory = workplace.runs / "watched"
    assert epochs_of(directory / "history.csv") in ([1], [1, 2]), "".join(lines)

    outcome = run(workplace, "train", "watched.yaml", "--json")

    assert outcome.code == 0, outcome.stderr
    found = outcome.json()
    history = json.loads((Path(found["artifacts"]["train"]) / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert epochs_of(directory / "history.csv") == [1, 2, 3, 4]
    with (directory / "history.csv").open(newline="") as stream:
        assert [float(row["loss"]) for row in csv.DictReader(stream)] == [record["loss"] for record in history]
    (events,) = (directory / "tensorboard").iterdir()
    assert steps_by_tensorflow(events) == [1, 2, 3, 4]
    monkeypatch.chdir(workplace.directory)
    assert_one_mlflow_run(found)


def epochs_of(path: Path) -> list[int]:
    with path.open(newline="") as stream:
        return [int(row["epoch"]) for row in csv.DictReader(stream)]


def steps_by_tensorflow(directory: Path) -> list[int]:
    """Reads the one event file as TensorFlow does, whose format it is."""
    import tensorflow as tf

    (path,) = directory.iterdir()
    events = tf.compat.v1.train.summary_iterator(str(path))
    return [event.step for event in events for value in event.summary.value if value.tag == "train/loss"]


def assert_one_mlflow_run(found: dict[str, Any]) -> None:
    import warnings

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri="file:mlruns")
        (logged,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
        steps = [metric.step for metric in client.get_metric_history(logged.info.run_id, "validation_accuracy")]
        names = {each.path for each in client.list_artifacts(logged.info.run_id)}
    assert sorted(steps) == [1, 2, 3, 4]
    assert logged.info.status == "FINISHED"
    assert logged.data.params["model.name"] == "resnet8"
    assert logged.data.metrics["test/accuracy_after"] == found["test_accuracy"]
    assert {"history.csv", "report.json", "network"} <= names

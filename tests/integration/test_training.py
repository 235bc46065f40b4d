"""Small real trainings in processes of their own: the same weights to the bit, killed or not, and on other backends."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.executor import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SCRIPT = """
import json, os, signal, sys
from functools import partialmethod
from pathlib import Path
import numpy as np
from pipeline.errors import EdgeshipError
from pipeline.network import load_network, predict_logits
from pipeline.stages.train import TrainStage
from pipeline.training import checkpoint, loop, supervision

data = Path(sys.argv[1])
config = {
    "model": {
        "name": "mobilenet_v1", "width": 0.25, "early_stride": True, "batch_norm_momentum": 0.9, "dropout": 0.2
    },
    "train": {
        "epochs": 3,
        "batch_size": 16,
        "warmup_epochs": 1.0,
        "weight_decay": 0.5,
        "workers": 0,
        "averaging": {"decay": 0.9, "every_steps": 2},
        "augmentation": {"mixup": 0.4, "flip": True},
    },
    "backend": os.environ["KERAS_BACKEND"],
}
steps = []
writes = []
run = loop.Training.run
on_batch_end = supervision.Supervisor.on_train_batch_end
write = checkpoint._write


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def train(job):
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    stage = TrainStage.model_validate({**config, "train": {**config["train"], **job.get("train", {})}})

    def batch_end(self, batch, logs=None):
        on_batch_end(self, batch, logs)
        steps.append([self._place.epoch, self._place.first_step + batch])
        if steps[-1] == job.get("kill_after_step"):
            kill()

    def write_some(path, arrays):
        writes.append(path)
        if len(writes) == job.get("kill_in_write"):
            path.write_bytes(b"PK" * 5000)
            kill()
        write(path, arrays)

    def tell(event):
        if "kill_after_epoch" in job and event.get("epoch_done", {}).get("epoch") == job["kill_after_epoch"]:
            kill()

    loop.Training.run = partialmethod(run, checkpoint_steps=job.get("checkpoint_steps", 4))
    supervision.Supervisor.on_train_batch_end = batch_end
    checkpoint._write = write_some
    steps.clear()
    try:
        metrics = stage.run({"data": data}, out, tell)
        (out / "metrics.json").write_text(json.dumps({**metrics, "steps_run": steps}))
    except EdgeshipError as error:
        (out / "error.json").write_text(json.dumps([type(error).__name__, str(error), error.details]))
    else:
        network = load_network(out)
        np.savez(out / "weights.npz", *[np.asarray(weight) for weight in network.get_weights()])
        np.save(out / "logits.npy", predict_logits(network, np.load(data / "test_images.npy")))


for job in json.loads(sys.argv[2]):
    if "load" in job:
        logits = predict_logits(load_network(Path(job["load"])), np.load(data / "test_images.npy"))
        np.save(job["out"], logits)
    else:
        train(job)
"""


def train(data: Path, *jobs: dict[str, Any], backend: str = "tensorflow") -> int:
    environment = child_environment(backend) | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data), json.dumps(jobs)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode in {0, -9}, done.stderr[-4000:]
    return done.returncode


def weights(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "weights.npz") as archive:
        return [archive[name] for name in archive.files]


def assert_same_to_the_bit(first: Path, second: Path) -> None:
    for one, other in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(one, other)
    history, again = (json.loads((folder / "history.json").read_text()) for folder in (first, second))
    for one, other in zip(history, again, strict=True):
        assert {**one, "seconds": 0, "images_per_second": 0} == {**other, "seconds": 0, "images_per_second": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "dataset.json").write_text(
        json.dumps({"classes": list("abcd"), "preprocess": {"size": [32, 32]}, "cache": {"kind": "decoded"}})
    )
    lines = []
    for split, count in (("train", 100), ("validation", 40), ("test", 130)):
        labels = rng.integers(0, 4, count)
        images = rng.integers(0, 100, (count, 32, 32, 3)) + labels[:, None, None, None] * 50
        np.save(folder / f"{split}_images.npy", images.astype(np.uint8))
        np.save(folder / f"{split}_labels.npy", labels)
        lines += [json.dumps({"split": split, "row": row, "name": f"{split}-{row}.png"}) for row in range(count)]
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training without interruption, one of another seed, and one whose loss runs away."""
    folder = tmp_path_factory.mktemp("straight")
    train(
        data,
        {"out": str(folder / "run")},
        {"out": str(folder / "other"), "train": {"seed": 1}},
        {"out": str(folder / "away"), "train": {"learning_rate": 1e30, "schedule": "constant", "warmup_epochs": 0.0}},
    )
    return folder


def interrupt(data: Path, out: Path, backend: str) -> dict[str, Any]:
    """A training killed in the middle of an epoch, while it writes a checkpoint, and at an epoch's end."""
    job: dict[str, Any] = {"out": str(out)}
    # Six steps an epoch and a checkpoint after each fourth: the fifth of the first epoch is lost.
    assert train(data, {**job, "kill_after_step": [0, 4]}, backend=backend) == -9
    # Writes from there: the end of the epoch with the best weights (1, 2), then the checkpoint within the next (3).
    assert train(data, {**job, "kill_in_write": 3}, backend=backend) == -9
    assert (out / ".resume" / "fresh").exists()
    assert train(data, {**job, "kill_after_epoch": 2}, backend=backend) == -9
    assert not (out / "metrics.json").exists()
    assert train(data, job, backend=backend) == 0
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_killed_three_times_gives_the_same_weights(straight: Path, data: Path, tmp_path: Path) -> None:
    metrics = interrupt(data, tmp_path / "run", "tensorflow")
    assert metrics["resumed_after_epoch"] == 2
    assert metrics["steps_run"] == [[2, step] for step in range(6)], "only what was lost runs again"
    assert_same_to_the_bit(straight / "run", tmp_path / "run")


def test_killed_three_times_on_jax(data: Path, tmp_path: Path) -> None:
    train(data, {"out": str(tmp_path / "straight")}, backend="jax")
    interrupt(data, tmp_path / "run", "jax")
    assert_same_to_the_bit(tmp_path / "straight", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["backend"] == "jax"
    train(data, {"load": str(tmp_path / "run"), "out": str(tmp_path / "logits.npy")})
    expected, logits = np.load(tmp_path / "run" / "logits.npy"), np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))


def test_another_seed_gives_other_weights(straight: Path) -> None:
    pairs = zip(weights(straight / "run"), weights(straight / "other"), strict=True)
    assert any((one != other).any() for one, other in pairs)


def test_a_loss_that_runs_away_is_a_clear_error(straight: Path) -> None:
    kind, message, details = json.loads((straight / "away" / "error.json").read_text())
    assert kind == "StageError"
    assert "The training loss became" in message
    assert "of epoch 1, at a learning rate of 1e+30. Its batch: train-" in message
    assert " and 11 more." in message
    assert "train.learning_rate (1e+30)" in message
    assert len(details.splitlines()) == 16


def test_the_best_epoch_is_what_the_history_says(straight: Path) -> None:
    for name in ("run", "other"):
        history = json.loads((straight / name / "history.json").read_text())
        metrics = json.loads((straight / name / "metrics.json").read_text())
        best = max(history, key=lambda record: (record["validation_accuracy"], -record["validation_loss"]))
        assert metrics["best_epoch"] == best["epoch"]
        assert metrics["validation_accuracy"] == best["validation_accuracy"]
        assert len(history) == 3
        with (straight / name / "history.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [float(row["validation_loss"]) for row in rows] == [record["validation_loss"] for record in history]


def test_what_is_measured_of_a_training(straight: Path) -> None:
    metrics = json.loads((straight / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 18
    assert metrics["averaged"] is True
    assert metrics["stopped_early"] is False
    assert metrics["precision"] == "float32"
    assert metrics["learning_rate"] == 0.003
    assert metrics["images_per_second"] > 1


def test_only_weights_are_published(straight: Path) -> None:
    size = sum(array.nbytes for array in weights(straight / "run"))
    assert (straight / "run" / "network.weights.h5").stat().st_size < 1.6 * size, "the optimizer's state is inside"

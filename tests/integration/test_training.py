"""Small real trainings in processes of their own: the same weights to the bit, killed or not, and on other backends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.executor import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
import pipeline.stages.train as train
from pipeline.errors import StageError
from pipeline.network import load_network, predict_logits

data = Path(sys.argv[1])
config = {
    "model": {"name": "mobilenet_v2", "width": 0.35, "early_stride": True, "batch_norm_momentum": 0.9},
    "train": {"epochs": 3, "batch_size": 32, "warmup_epochs": 1.0, "weight_decay": 0.5},
    "backend": os.environ["KERAS_BACKEND"],
}
real = train.epoch_of_batches
steps = []


def run(job):
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    stage = train.TrainStage.model_validate({**config, "train": {**config["train"], **job.get("train", {})}})

    def batches(*arguments, **options):
        for step, batch in enumerate(real(*arguments, **options)):
            if (options["epoch"], step) == tuple(job.get("kill_at", ())):
                os.kill(os.getpid(), signal.SIGKILL)
            steps.append(options["epoch"])
            yield batch

    def tell(event):
        if "stop_after" in job and event.get("epoch_done", {}).get("epoch") == job["stop_after"]:
            raise KeyError("stopped")

    train.epoch_of_batches = lambda *arguments, **options: batches(*arguments, **options)
    steps.clear()
    try:
        metrics = stage.run({"data": data}, out, tell)
        (out / "metrics.json").write_text(json.dumps({**metrics, "epochs_run": sorted(set(steps))}))
    except (KeyError, StageError) as error:
        (out / "error.json").write_text(json.dumps([type(error).__name__, str(error)]))
    else:
        network = load_network(out)
        np.savez(out / "weights.npz", *[np.asarray(weight) for weight in network.get_weights()])
        np.save(out / "logits.npy", predict_logits(network, np.load(data / "test_images.npy")))


for job in json.loads(sys.argv[2]):
    if "load" in job:
        logits = predict_logits(load_network(Path(job["load"])), np.load(data / "test_images.npy"))
        np.save(job["out"], logits)
    else:
        run(job)
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
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "dataset.json").write_text(json.dumps({"classes": list("abcd")}))
    for split, count in (("train", 100), ("validation", 40), ("test", 130)):
        labels = rng.integers(0, 4, count)
        images = rng.integers(0, 100, (count, 32, 32, 3)) + labels[:, None, None, None] * 50
        np.save(folder / f"{split}_images.npy", images.astype(np.uint8))
        np.save(folder / f"{split}_labels.npy", labels)
    return folder


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training without interruption, one of another seed, and one whose loss runs away."""
    folder = tmp_path_factory.mktemp("straight")
    train(
        data,
        {"out": str(folder / "run")},
        {"out": str(folder / "other"), "train": {"seed": 1}},
        {"out": str(folder / "away"), "train": {"learning_rate": 1e30, "warmup_epochs": 0.0}},
    )
    return folder


@pytest.fixture(scope="module")
def interrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training stopped at the end of its second epoch, gone on, killed in its third, gone on in a new process."""
    folder = tmp_path_factory.mktemp("interrupted")
    out = str(folder / "run")
    assert train(data, {"out": out, "stop_after": 2}, {"out": out, "kill_at": [2, 1]}) == -9
    assert json.loads((folder / "run" / "error.json").read_text()) == ["KeyError", "'stopped'"]
    assert not (folder / "run" / "metrics.json").exists()
    train(data, {"out": out})
    return folder


def test_two_processes_give_the_same_weights_interrupted_or_not(straight: Path, interrupted: Path) -> None:
    metrics = json.loads((interrupted / "run" / "metrics.json").read_text())
    assert metrics["resumed_after_epoch"] == 2
    assert metrics["epochs_run"] == [2], "only the epoch that was lost runs again"
    assert_same_to_the_bit(straight / "run", interrupted / "run")


def test_another_seed_gives_other_weights(straight: Path) -> None:
    pairs = zip(weights(straight / "run"), weights(straight / "other"), strict=True)
    assert any((one != other).any() for one, other in pairs)


def test_a_loss_that_runs_away_is_a_clear_error(straight: Path) -> None:
    kind, message = json.loads((straight / "away" / "error.json").read_text())
    assert kind == "StageError"
    assert "loss became" in message
    assert "in epoch 1" in message
    assert "train.learning_rate (1e+30)" in message


def test_the_best_epoch_is_what_the_history_says(straight: Path) -> None:
    for name in ("run", "other"):
        history = json.loads((straight / name / "history.json").read_text())
        metrics = json.loads((straight / name / "metrics.json").read_text())
        best = max(history, key=lambda record: (record["validation_accuracy"], -record["validation_loss"]))
        assert metrics["best_epoch"] == best["epoch"]
        assert metrics["validation_accuracy"] == best["validation_accuracy"]
        assert len(history) == 3


def test_only_weights_are_published(straight: Path) -> None:
    size = sum(array.nbytes for array in weights(straight / "run"))
    assert (straight / "run" / "network.weights.h5").stat().st_size < 1.6 * size, "the optimizer's state is inside"


def test_trains_on_jax_and_loads_under_tensorflow(data: Path, tmp_path: Path) -> None:
    train(data, {"out": str(tmp_path / "jax"), "train": {"epochs": 2}}, backend="jax")
    assert json.loads((tmp_path / "jax" / "metrics.json").read_text())["backend"] == "jax"
    train(data, {"load": str(tmp_path / "jax"), "out": str(tmp_path / "logits.npy")})
    expected, logits = np.load(tmp_path / "jax" / "logits.npy"), np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))

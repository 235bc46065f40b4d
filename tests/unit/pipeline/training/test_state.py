"""Which epoch is kept, what may be asked for, and which backends the code names."""

from __future__ import annotations

import ast
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import StageError, StoreError
from pipeline.training.checkpoint import (
    BEST_FILE,
    LAST_FILE,
    STATE_FILE,
    CheckpointDirectory,
    TrainingState,
    arrays_of,
)
from pipeline.training.config import TrainConfig

ROOT = Path(__file__).parents[4]


def test_accuracy_then_loss_decides() -> None:
    state = TrainingState(best_accuracy=0.9, best_loss=0.5)
    assert state.is_better(0.91, 9.0)
    assert state.is_better(0.9, 0.4)
    assert not state.is_better(0.9, 0.5), "of equal epochs the first is kept"
    assert not state.is_better(0.89, 0.0)
    assert TrainingState().is_better(0.0, 1e9), "the first epoch is the best so far"


def test_momentum_and_warm_up_are_checked() -> None:
    TrainConfig(epochs=2, warmup_epochs=1.99)
    with pytest.raises(ValidationError, match="make warmup_epochs smaller"):
        TrainConfig(epochs=2, warmup_epochs=2)
    with pytest.raises(ValidationError, match="momentum belongs to optimizer: sgd"):
        TrainConfig(momentum=0.5)


class Network:
    """A network of one weight, as far as checkpoints look at it."""

    def __init__(self, size: int = 2) -> None:
        import keras

        self.weight = keras.Variable(np.arange(size) + 1.0)
        self.seed = keras.random.SeedGenerator(7)
        self.optimizer = keras.optimizers.SGD(momentum=0.9)
        self.optimizer.build([self.weight])
        self.variables = [self.weight, self.seed.state, *self.optimizer.variables]

    def values(self) -> list[object]:
        import keras

        return [keras.ops.convert_to_numpy(variable.value).tolist() for variable in self.variables]


@pytest.fixture
def saved(tmp_path: Path) -> CheckpointDirectory:
    network, checkpoints = Network(), CheckpointDirectory(tmp_path)
    best = arrays_of([network.weight])
    checkpoints.save(network.variables, TrainingState(epochs_done=1, best_epoch=1), best=best)
    network.weight.assign([3.0, 4.0])
    network.seed.next()
    network.optimizer.variables[0].assign(17)
    checkpoints.save(network.variables, TrainingState(epochs_done=2, best_epoch=1))
    return checkpoints


def test_all_that_shapes_the_next_step_comes_back(saved: CheckpointDirectory, tmp_path: Path) -> None:
    fresh = Network()
    before = fresh.values()
    assert saved.state() == TrainingState(epochs_done=2, best_epoch=1)
    saved.load(fresh.variables)
    after = fresh.values()
    assert after[0] == [3.0, 4.0]
    assert after[1] != before[1], "the state of random numbers"
    assert after[2] == 17, "the optimizer's step"
    saved.load_best([fresh.weight])
    assert fresh.values()[0] == [1.0, 2.0], "those of the epoch that was best"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointDirectory(tmp_path / "none").state() is None


@pytest.mark.parametrize("left", ["fresh half written", "killed between the renames"])
def test_what_a_kill_leaves(saved: CheckpointDirectory, tmp_path: Path, left: str) -> None:
    if left == "fresh half written":
        (tmp_path / "fresh").mkdir()
        (tmp_path / "fresh" / LAST_FILE).write_bytes(b"PK")
    else:
        (tmp_path / "current").rename(tmp_path / "previous")
    network = Network()
    state = saved.state()
    assert state is not None
    assert state.epochs_done == 2
    saved.load(network.variables)
    saved.save(network.variables, TrainingState(epochs_done=3, best_epoch=1))
    saved.load_best([network.weight])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current"]


def test_a_file_system_without_hard_links(
    saved: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    network = Network()
    saved.save(network.variables, TrainingState(epochs_done=3, best_epoch=1))
    saved.load_best([network.weight])
    assert (tmp_path / "current" / BEST_FILE).stat().st_nlink == 1


@pytest.mark.parametrize("name", [LAST_FILE, STATE_FILE, BEST_FILE])
@pytest.mark.parametrize("damage", ["empty", "half", "rubbish", "missing"])
def test_damage_is_one_clear_error(saved: CheckpointDirectory, tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / "current" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "rubbish": b"\x00" * 200}[damage])
    network = Network()
    if damage == "missing" and name == STATE_FILE:
        assert saved.state() is None
        return
    read: dict[str, Callable[[], object]] = {
        STATE_FILE: saved.state,
        BEST_FILE: lambda: saved.load_best([network.weight]),
        LAST_FILE: lambda: saved.load(network.variables),
    }
    with pytest.raises(StageError, match="Remove that directory to train from the start"):
        read[name]()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_what_can_t_be_written(
    saved: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="the one before it is whole") as caught:
        saved.save(Network().variables, TrainingState(epochs_done=3))
    assert ("No space left" in caught.value.message) == (error in {errno.ENOSPC, errno.EDQUOT})
    with pytest.raises(StoreError, match="there is none before it"):
        CheckpointDirectory(tmp_path / "first").save(Network().variables, TrainingState())
    state = saved.state()
    assert state is not None
    assert state.epochs_done == 2


def test_a_checkpoint_of_another_network(saved: CheckpointDirectory) -> None:
    with pytest.raises(StageError, match="can't be read: an array is"):
        saved.load(Network(size=3).variables)


def test_a_checkpoint_of_another_recipe(tmp_path: Path) -> None:
    recipe = {"model": {"width": None}, "train": {"seed": 0, "averaging": None}}
    network = Network()
    CheckpointDirectory(tmp_path, recipe=recipe).save(network.variables, TrainingState(epochs_done=1))
    assert CheckpointDirectory(tmp_path, recipe=json.loads(json.dumps(recipe))).state() is not None
    other = {"model": {"width": None}, "train": {"seed": 0, "averaging": {"decay": 0.9}}}
    with pytest.raises(StageError, match=r'train\.averaging was null and is \{"decay": 0\.9\}'):
        CheckpointDirectory(tmp_path, recipe=other).state()


def test_state_survives_json() -> None:
    state = TrainingState(epochs_done=1, history=[{"epoch": 1, "loss": 0.5}])
    assert TrainingState(**json.loads(json.dumps(vars(state)))) == state


BACKEND_FREE = [
    *sorted((ROOT / "models").rglob("*.py")),
    *sorted((ROOT / "pipeline" / "training").rglob("*.py")),
    *(ROOT / "pipeline" / path for path in ("stages/train.py", "stages/calibrate.py", "network.py", "metrics.py")),
]

NAMED_IN = {"backends.py": {"tensorflow", "jax", "torch"}, "distribution.py": {"jax"}}
"""What only a backend tells of itself: its devices, their memory, the processes that train together."""


@pytest.mark.parametrize("path", BACKEND_FREE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_backend_is_imported_by_name(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert not imported & {"tensorflow", "jax", "torch", "tf_keras"} - NAMED_IN.get(path.name, set())

"""Which epoch is kept, what may be asked for, and which backends the code names."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import StageError
from pipeline.training.checkpoint import BEST_FILE, LAST_FILE, STATE_FILE, CheckpointDirectory, TrainingState
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

    def __init__(self) -> None:
        import keras

        self.weight = keras.Variable([1.0, 2.0])
        self.seed = keras.random.SeedGenerator(7)
        self.optimizer = keras.optimizers.SGD(momentum=0.9)
        self.optimizer.build([self.weight])
        self.trainable_variables = self.weights = [self.weight]
        self.variables = [self.weight, self.seed.state]
        self.metrics_variables: list[object] = []

    def values(self) -> list[object]:
        import keras

        known = [*self.variables, *self.optimizer.variables]
        return [keras.ops.convert_to_numpy(variable.value).tolist() for variable in known]


@pytest.fixture
def saved(tmp_path: Path) -> CheckpointDirectory:
    network, checkpoints = Network(), CheckpointDirectory(tmp_path)
    checkpoints.save(network, TrainingState(epochs_done=1, best_epoch=1), is_best=True)
    network.weight.assign([3.0, 4.0])
    network.seed.next()
    network.optimizer.variables[0].assign(17)
    checkpoints.save(network, TrainingState(epochs_done=2, best_epoch=1), is_best=False)
    return checkpoints


def test_all_that_shapes_the_next_step_comes_back(saved: CheckpointDirectory, tmp_path: Path) -> None:
    fresh = Network()
    before = fresh.values()
    state = saved.load(fresh)
    assert state == TrainingState(epochs_done=2, best_epoch=1)
    after = fresh.values()
    assert after[0] == [3.0, 4.0]
    assert after[1] != before[1], "the state of random numbers"
    assert after[2] == 17, "the optimizer's step"
    saved.load_best(fresh)
    assert fresh.values()[0] == [1.0, 2.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointDirectory(tmp_path / "none").load(Network()) is None


@pytest.mark.parametrize("left", ["fresh half written", "killed between the renames"])
def test_what_a_kill_leaves(saved: CheckpointDirectory, tmp_path: Path, left: str) -> None:
    if left == "fresh half written":
        (tmp_path / "fresh").mkdir()
        (tmp_path / "fresh" / LAST_FILE).write_bytes(b"PK")
    else:
        (tmp_path / "current").rename(tmp_path / "previous")
    network = Network()
    state = saved.load(network)
    assert state is not None
    assert state.epochs_done == 2
    saved.save(network, TrainingState(epochs_done=3, best_epoch=1), is_best=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current"]


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
        assert saved.load(network) is None
        return
    with pytest.raises(StageError, match="Remove that directory to train from the start"):
        saved.load_best(network) if name == BEST_FILE else saved.load(network)


def test_a_checkpoint_of_another_network(saved: CheckpointDirectory, tmp_path: Path) -> None:
    import keras

    other = Network()
    other.weight = keras.Variable([1.0, 2.0, 3.0])
    other.trainable_variables = other.weights = [other.weight]
    other.variables = [other.weight, other.seed.state]
    with pytest.raises(StageError, match="can't be read"):
        saved.load(other)


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

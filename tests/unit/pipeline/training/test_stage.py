"""What the train stage refuses before it trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.runner
import pipeline.stages.train
from pipeline.errors import DataError, InputError, StageError
from pipeline.network import ModelConfig
from pipeline.recipe import load_recipes
from pipeline.runner import train_stage
from pipeline.stages.train import TrainStage
from pipeline.training.config import RUNTIME_FIELDS, TrainConfig
from pipeline.training.history import history_csv


def stage(batch_size: int = 8, **train: Any) -> TrainStage:
    config = TrainConfig.model_validate({"batch_size": batch_size, **train})
    return TrainStage(model=ModelConfig(name="mobilenet_v2"), train=config, backend="tensorflow")


def data(folder: Path, labels: list[int]) -> Path:
    described = {"classes": ["a", "b"], "preprocess": {"size": [32, 32]}, "cache": {"kind": "decoded"}}
    (folder / "dataset.json").write_text(json.dumps(described))
    for split in ("train", "validation"):
        np.save(folder / f"{split}_images.npy", np.zeros((len(labels), 32, 32, 3), np.uint8))
        np.save(folder / f"{split}_labels.npy", np.array(labels))
    return folder


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(StageError, match=r"train\.backend is tensorflow, but keras is not installed"):
        stage().run({"data": tmp_path}, tmp_path, lambda _: None)


def test_a_batch_larger_than_the_training_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch_size is 8, but the training split has 7 images"):
        stage().run({"data": data(tmp_path, [0] * 7)}, tmp_path, lambda _: None)


def test_a_label_that_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 8 training labels are outside 0\.\.1, the first is 2 in row 7"):
        stage().run({"data": data(tmp_path, [0, 1, 0, 1, 0, 1, 0, 2])}, tmp_path, lambda _: None)


def test_a_gpu_that_lies_idle_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    for warning in (None, "This machine has a GPU"):
        monkeypatch.setattr(pipeline.stages.train, "overlooked_gpu", lambda _, said=warning: said)
        with pytest.raises(DataError):
            stage().run({"data": data(tmp_path, [0] * 7)}, tmp_path, events.append)
    assert events == [{"warning": "This machine has a GPU"}]


def test_the_backend_belongs_to_the_tools() -> None:
    assert stage().tool_names() == ("grain", "keras", "numpy", "tensorflow")


def test_what_only_changes_the_speed_is_no_part_of_the_key() -> None:
    plain = stage().key_config()
    assert stage(workers=3, checkpoint_minutes=1.0, devices=1).key_config() == plain
    assert stage(seed=1).key_config() != plain
    assert not set(RUNTIME_FIELDS) & set(plain["train"])


def test_a_gpu_makes_another_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = Path(__file__).parents[4] / "models" / "recipes"
    (recipe,) = load_recipes(recipes / "digits_mobilenet_v2.yaml", ("train.backend=jax",))
    keys = []
    for has_gpu in (False, True):
        monkeypatch.setattr(pipeline.runner, "expects_gpu", lambda _, there=has_gpu: there)
        planned = train_stage(recipe, {})
        assert (planned.backend, planned.on_gpu) == ("jax", has_gpu)
        keys.append(planned.key_config())
    assert keys[0] != keys[1]


def test_the_teacher_is_in_the_key_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "one.keras").write_bytes(b"one")
    (tmp_path / "same.keras").write_bytes(b"one")
    (tmp_path / "other.keras").write_bytes(b"other")
    one, same, other = (stage(teacher={"path": str(tmp_path / f"{name}.keras")}) for name in ("one", "same", "other"))
    assert one.key_config() == same.key_config() == other.key_config()
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert one.fingerprint() != stage().fingerprint()
    with pytest.raises(InputError, match=r"train\.teacher\.path"):
        stage(teacher={"path": str(tmp_path / "none.keras")}).fingerprint()


def test_the_history_as_csv() -> None:
    records = [{"epoch": 1, "loss": 0.5, "note": None}, {"epoch": 2, "loss": 0.25, "note": None}]
    assert history_csv(records) == "epoch,loss,note\n1,0.5,\n2,0.25,\n"
    assert history_csv([]) == "epoch\n"
    assert history_csv([{"epoch": 1}, {"epoch": 2, "loss": 0.25}]) == "epoch,loss\n1,\n2,0.25\n"

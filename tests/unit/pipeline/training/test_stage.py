"""What the train stage refuses before it trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError, StageError
from pipeline.network import ModelConfig
from pipeline.stages.train import TrainStage
from pipeline.training.config import TrainConfig


def stage(batch_size: int = 8) -> TrainStage:
    return TrainStage(model=ModelConfig(name="mobilenet_v2"), train=TrainConfig(batch_size=batch_size), backend="torch")


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(StageError, match=r"train\.backend is torch, but keras is not installed"):
        stage().run({"data": tmp_path}, tmp_path, lambda _: None)


def test_a_batch_larger_than_the_training_split(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b"]}))
    np.save(tmp_path / "train_images.npy", np.zeros((7, 32, 32, 3), np.uint8))
    np.save(tmp_path / "train_labels.npy", np.zeros(7, np.int64))
    with pytest.raises(DataError, match="batch_size is 8, but the training split has 7 images"):
        stage().run({"data": tmp_path}, tmp_path, lambda _: None)


def test_the_backend_belongs_to_the_tools() -> None:
    assert stage().tool_names() == ("grain", "keras", "numpy", "torch")

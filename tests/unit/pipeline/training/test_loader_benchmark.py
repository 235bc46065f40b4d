"""Rates of the loader, of the step and of both: the slower one decides."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from devices.board.preprocess import Preprocess
from pipeline.training.config import TrainConfig
from pipeline.training.loader import Batch, Loader
from pipeline.training.loader_benchmark import measure_loader

BATCH = 4


@dataclass
class SlowImages:
    seconds_an_image: float
    classes: tuple[str, ...] = ("ant", "bee")
    size: tuple[int, int] = (4, 4)
    preprocess: Preprocess = field(default_factory=lambda: Preprocess((4, 4)))
    encoded: bool = False

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(20, np.int64)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> np.ndarray:
        time.sleep(self.seconds_an_image)
        return np.zeros((4, 4, 3), np.uint8)


def measured(seconds_an_image: float, seconds_a_step: float) -> dict[str, float]:
    def step(batch: Batch) -> None:
        assert batch.inputs["image"].shape == (BATCH, 4, 4, 3)
        time.sleep(seconds_a_step)

    config = TrainConfig.model_validate(
        {"workers": 0, "batch_size": BATCH, "augmentation": {"shift": 0}, "epochs": 100}
    )
    with Loader(SlowImages(seconds_an_image), config, on_accelerator=False) as loader:
        return measure_loader(loader, step, seconds=0.4)


def test_a_slow_loader_is_waited_for() -> None:
    found = measured(0.01, 0.002)
    assert found["loader_images_per_second"] <= 2 / 0.01  # two threads
    assert found["step_images_per_second"] <= BATCH / 0.002
    assert found["both_images_per_second"] == pytest.approx(found["loader_images_per_second"], rel=0.4)
    assert found["loader_share"] > 0.6


def test_a_slow_step_hides_the_loader() -> None:
    found = measured(0.0, 0.03)
    assert found["loader_images_per_second"] > 3 * found["step_images_per_second"]
    assert found["both_images_per_second"] == pytest.approx(BATCH / 0.03, rel=0.3)
    assert found["loader_share"] < 0.3


def test_tensors_of_the_last_step_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    waited = []
    monkeypatch.setattr(keras.ops, "convert_to_numpy", waited.append)
    config = TrainConfig.model_validate({"workers": 0, "batch_size": BATCH, "augmentation": {"shift": 0}})
    with Loader(SlowImages(0.0), config, on_accelerator=False) as loader:
        measure_loader(loader, lambda batch: {"loss": len(batch.rows)}, seconds=0.01)
    assert waited == [BATCH] * 4  # before and after both measurements with a step

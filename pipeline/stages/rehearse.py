"""Tries out a training for a few steps: how long it will take, how much memory it needs, which learning rate suits it.

These are no stages of a run: nothing of them is published, and no checkpoint is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pipeline.network import ModelConfig
from pipeline.stages.base import Stage, Tell
from pipeline.training.config import Backend, TrainConfig


class DryRunStage(Stage):
    """Reads `data`; writes nothing.

    Attributes:
        model: Of the train stage.
        train: The same.
        backend: The same.
        steps: How many are timed, after those that trace and warm up.
    """

    stage: ClassVar[str] = "rehearse"

    model: ModelConfig
    train: TrainConfig
    backend: Backend = "tensorflow"
    steps: int = Field(default=10, ge=3)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Builds all that the training would, runs the steps, and returns what was counted and measured."""
        from pipeline.training.rehearsal import rehearse

        del out_dir
        return rehearse(
            inputs["data"], model=self.model, train=self.train, backend=self.backend, steps=self.steps, tell=tell
        )


class LearningRateStage(Stage):
    """Reads `data`; writes `learning_rate.csv` and `learning_rate.png`.

    Attributes:
        model: Of the train stage.
        train: The same.
        backend: The same.
        lowest: Rate of the first step.
        highest: Rate of the last step.
        steps: How many there are, unless the loss explodes before.
    """

    stage: ClassVar[str] = "rehearse"

    model: ModelConfig
    train: TrainConfig
    backend: Backend = "tensorflow"
    lowest: float = Field(default=1e-6, gt=0)
    highest: float = Field(default=10.0, gt=0)
    steps: int = Field(default=120, ge=20)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Trains with a rate that grows from step to step."""
        from pipeline.training.learning_rate import find_learning_rate

        return find_learning_rate(
            inputs["data"],
            out_dir,
            model=self.model,
            train=self.train,
            backend=self.backend,
            rates=(self.lowest, self.highest),
            steps=self.steps,
            tell=tell,
        )

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
from pipeline.training.backends import loads_keras
from pipeline.training.config import Backend, TrainConfig


class _TrialStage(Stage):
    """What the trials of a training share.

    Attributes:
        model: Of the train stage.
        train: The same.
        backend: The same.
    """

    stage: ClassVar[str] = "rehearse"

    model: ModelConfig
    train: TrainConfig
    backend: Backend = "tensorflow"


class DryRunStage(_TrialStage):
    """Reads `data`; writes nothing.

    Attributes:
        steps: How many are timed, after those that trace and warm up.
    """

    steps: int = Field(default=10, ge=3)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Builds all that the training would, runs the steps, and returns what was counted and measured."""
        del out_dir
        with loads_keras(self.backend):
            from pipeline.training.backends import device_memory
            from pipeline.training.rehearsal import rehearse
            from pipeline.training.trial import trial

            before = device_memory().get("in_use_bytes")
        with trial(inputs["data"], model=self.model, train=self.train, backend=self.backend, tell=tell) as made:
            return rehearse(made, steps=self.steps, memory_before=before)


class LearningRateStage(_TrialStage):
    """Reads `data`; writes `learning_rate.csv` and `learning_rate.png`.

    Attributes:
        lowest: Rate of the first step.
        highest: Rate of the last step.
        steps: How many there are, unless the loss explodes before.
    """

    lowest: float = Field(default=1e-6, gt=0)
    highest: float = Field(default=10.0, gt=0)
    steps: int = Field(default=150, ge=20)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Trains with a rate that grows from step to step."""
        with loads_keras(self.backend):
            from pipeline.training.learning_rate import find_learning_rate
            from pipeline.training.trial import trial
        with trial(inputs["data"], model=self.model, train=self.train, backend=self.backend, tell=tell) as made:
            return find_learning_rate(made, out_dir, rates=(self.lowest, self.highest), steps=self.steps)

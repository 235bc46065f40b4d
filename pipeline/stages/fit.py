"""Finds the largest network of a family that keeps to a recipe's budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from models.scaling import Budget, fit_budget
from pipeline.errors import InputError
from pipeline.model_config import BudgetModelConfig
from pipeline.network import ModelConfig
from pipeline.stages.base import Stage, Tell

_SHAPING = ("activation", "squeeze_excite", "early_stride")
"""The options that change what a network costs."""


class FitStage(Stage):
    """Reads `data` for the image size and the number of classes; writes only metrics.

    Attributes:
        model: Family, budget and options.
        backend: Of Keras: the one that builds networks soonest.
    """

    stage: ClassVar[str] = "model"
    tools: ClassVar[tuple[str, ...]] = ("keras",)

    model: BudgetModelConfig
    backend: Literal["openvino"] = "openvino"

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Counts members of the family until the largest that fits is known.

        Raises:
            InputError: Not even the smallest fits.
        """
        del out_dir
        dataset = json.loads((inputs["data"] / "dataset.json").read_text(encoding="utf-8"))
        height, width = dataset["preprocess"]["size"]
        limits = self.model.budget.limits()
        tell({"message": f"looking for the largest {self.model.family} within {_words(limits)}"})
        try:
            member = fit_budget(
                self.model.family,
                Budget(**limits, precision=self.model.budget.precision),
                input_shape=(height, width, 3),
                num_classes=len(dataset["classes"]),
                **{name: value for name, value in self.model.options().items() if name in _SHAPING},
            )
        except ValueError as error:
            raise InputError(f"model.budget can't be kept: {error}") from error
        options = self.model.model_dump(include=set(ModelConfig.model_fields), exclude_none=True)
        chosen = ModelConfig(name=member.name, width=member.width, depth=member.depth, **options)
        return {
            "model": chosen.model_dump(mode="json"),
            "budget": limits,
            "multiply_adds": member.multiply_adds,
            "parameters": member.parameters,
            "size_bytes": member.size_bytes,
        }


def _words(limits: Mapping[str, int]) -> str:
    return " and ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in limits.items())

"""The three forms of a recipe's model section: a network by name, the member of a family that fits, one's own file."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from models.memory import Precision
from models.scaling import networks_of, parse_amount
from pipeline.imports.description import ModelDescription
from pipeline.network import ModelConfig, NetworkOptions
from pipeline.stages.base import FrozenConfig

Amount = int | float | str


class BudgetConfig(FrozenConfig):
    """What the network may cost; at least one limit. Amounts may be written 60M, 1.2G or 2MiB.

    Attributes:
        multiply_adds: For one image of `data.size`.
        parameters: Of the network.
        size_bytes: Of its weights in a file.
        peak_activation_bytes: Of its activations.
        precision: Of the file that the two limits in bytes are for.
    """

    multiply_adds: Amount | None = None
    parameters: Amount | None = None
    size_bytes: Amount | None = None
    peak_activation_bytes: Amount | None = None
    precision: Precision = "int8"

    @model_validator(mode="after")
    def _is_a_budget(self) -> Self:
        limits = self.limits()
        if not limits:
            names = ", ".join(name for name in BudgetConfig.model_fields if name != "precision")
            raise ValueError(f"model.budget sets no limit: give at least one of {names}.")
        return self

    def limits(self) -> dict[str, int]:
        """Returns the limits that are set, as whole numbers.

        Raises:
            ValueError: One is no amount above 0.
        """
        found = {}
        for name, value in self.model_dump(exclude={"precision"}, exclude_none=True).items():
            try:
                found[name] = parse_amount(value)
            except ValueError as error:
                raise ValueError(f"model.budget.{name}: {error}") from error
        return found


class BudgetModelConfig(NetworkOptions):
    """The largest network of a family that keeps to a budget.

    Attributes:
        family: A family of `models.MODELS`, or one of its networks.
        budget: What it may cost.
    """

    family: str
    budget: BudgetConfig

    @model_validator(mode="after")
    def _is_a_family(self) -> Self:
        try:
            networks_of(self.family)
        except ValueError as error:
            raise ValueError(f"model.family: {error}") from error
        return self


class OwnModelConfig(ModelDescription):
    """A model of one's own, taken as it is: nothing is trained.

    Attributes:
        path: A .keras file, the directory of a SavedModel, an .onnx, a .tflite or an OpenVINO .xml file.
    """

    path: str = Field(min_length=1)


def form_of_model(value: Any) -> str:
    """Returns which of the three forms a model section has, by its keys."""
    if isinstance(value, BaseModel):
        return {OwnModelConfig: "by path", BudgetModelConfig: "by budget"}.get(type(value), "by name")
    keys = set(value) if isinstance(value, dict) else set()
    if "path" in keys:
        return "by path"
    return "by budget" if keys & {"family", "budget"} else "by name"


AnyModelConfig = Annotated[
    Annotated[ModelConfig, Tag("by name")]
    | Annotated[BudgetModelConfig, Tag("by budget")]
    | Annotated[OwnModelConfig, Tag("by path")],
    Discriminator(form_of_model),
]
"""The model section of a recipe: `name`, or `family` with `budget`, or `path`."""

"""What a model of one's own is exported to: what its format reaches, what its file holds, what the recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.imports.formats import TITLES, format_of
from pipeline.model_config import OwnModelConfig
from pipeline.recipe import Recipe
from pipeline.sources.samples import RandomConfig
from pipeline.targets import reachable
from pipeline.targets.base import RANGED, Precision, TargetName

_OWN_RUNTIME = {"tflite": "litert", "onnx": "onnxruntime", "openvino": "openvino"}
"""Which target a file of a runtime belongs to."""


def reachable_exports(recipe: Recipe, model: OwnModelConfig) -> list[tuple[TargetName, Precision]]:
    """Returns the targets and precisions that can be made from a model of one's own.

    What the recipe names must be among them; where it leaves the choice, all of them are taken.

    Raises:
        InputError: There is no such model, or the recipe names what can't be reached from its format, and why.
    """
    kind = format_of(Path(model.path))
    chosen = recipe.export.model_fields_set
    found: list[tuple[TargetName, Precision]] = []
    reasons = []
    reach = reachable("saved_model" if kind == "keras" else kind)
    for target in recipe.export.targets:
        possible = reach[target]
        if isinstance(possible, str):
            if "targets" in chosen:
                raise InputError(f"export.targets names {target}, but {model.path} can't go there: {possible}")
            reasons.append(f"{target}: {possible}")
            continue
        refused = [precision for precision in recipe.export.precisions if precision not in possible]
        if "precisions" in chosen and refused:
            raise InputError(
                f"export.precisions names {refused[0]}, but {target} makes {', '.join(possible)} from {TITLES[kind]}."
            )
        found += [(target, precision) for precision in recipe.export.precisions if precision in possible]
    if not found:
        raise InputError(f"{model.path} can't be exported to anything the recipe names. {' '.join(reasons)}")
    return found


def exports_of(
    recipe: Recipe, found: list[tuple[TargetName, Precision]], imported: Mapping[str, Any]
) -> list[tuple[TargetName, Precision]]:
    """Returns what of the reachable exports fits what the imported file turned out to hold.

    A file that is quantized already stays as it is. Integer precisions need samples to take their ranges from.

    Args:
        recipe: What is run.
        found: Of `reachable_exports`.
        imported: Metrics of the model stage.

    Raises:
        InputError: The recipe names a precision that can't be made.
    """
    chosen = "precisions" in recipe.export.model_fields_set
    held = imported.get("precision")
    if held not in (None, "none", "float32"):
        own = _OWN_RUNTIME.get(imported["format"])
        named = recipe.export.targets if "targets" in recipe.export.model_fields_set else (own,)
        kept = [(target, precision) for target, precision in found if precision == held and target in named]
        if not kept or (chosen and len(kept) < len(found)):
            raise InputError(
                f"The model file holds {held}, from which no other precision can be made, but the recipe asks for "
                f"{', '.join(dict.fromkeys(precision for _, precision in found))}; give the float32 model it came "
                f"from, or set export.precisions to [{held}]."
            )
        return kept
    if isinstance(recipe.data, RandomConfig):
        ranged = [precision for precision in recipe.export.precisions if precision in RANGED]
        if chosen and ranged:
            raise InputError(
                f"export.precisions has {ranged[0]}, which takes its ranges from samples, but the data are random: "
                f"give samples, such as data: {{source: arrays, path: samples.npz}}, or leave {ranged[0]} out."
            )
        return [(target, precision) for target, precision in found if precision not in RANGED]
    return found

"""What options of a command say about a model file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.imports.description import ModelDescription


def description_of(
    *,
    layout: str | None,
    scale: str | None,
    offset: str | None,
    shapes: Sequence[str],
    metric: str | None,
) -> ModelDescription:
    """Returns what the options of a command say about a model.

    Args:
        layout: NHWC or NCHW, of its image input.
        scale: One number, or one for each channel between commas.
        offset: The same.
        shapes: `NAME=1,64,9` or, for a model with one input, `1,64,9`.
        metric: top1, mse or auc.

    Raises:
        InputError: An option has another form.
    """
    inputs: list[dict[str, Any]] = []
    for text in shapes:
        name, _, numbers = text.rpartition("=")
        try:
            shape = [int(number) for number in numbers.split(",")]
        except ValueError:
            raise InputError(
                f"--shape is {text}; expected NAME=1,64,9 with the batch of 1 in front, or 1,64,9 where the model "
                f"has one input."
            ) from None
        inputs.append({"name": name or None, "shape": shape})
    given = {
        name: value
        for name, value in (
            ("layout", layout),
            ("scale", _one_or_all("scale", scale)),
            ("offset", _one_or_all("offset", offset)),
        )
        if value is not None
    }
    if given and len(inputs) > 1:
        raise InputError(f"--{next(iter(given))} belongs to a model with one input; describe several in a recipe.")
    if given:
        inputs = [{**(inputs[0] if inputs else {}), **given}]
    try:
        return ModelDescription.model_validate_json(json.dumps({"inputs": inputs, "metric": metric}), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"The model can't be described so: {first['msg'].removeprefix('Value error, ')}") from error


def _one_or_all(option: str, text: str | None) -> float | list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise InputError(
            f"--{option} is {text}; expected a number, or one for each channel: 0.017,0.018,0.017."
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers

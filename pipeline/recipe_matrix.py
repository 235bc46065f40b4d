"""The `matrix` of a recipe: which combinations of values it stands for, and what they are called."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import RecipeError
from pipeline.yaml_source import YamlSource, shown

MAX_MATRIX = 1000


def combinations(source: YamlSource, matrix: Any) -> list[tuple[str, dict[str, Any]]]:
    """Returns the suffix of the name and the values of every combination, the last key varying fastest."""
    where = source.place_of(["matrix"])
    if not isinstance(matrix, dict) or not matrix:
        raise RecipeError(f"{where}: matrix is {shown(matrix)}; expected dotted keys, each with a list of values.")
    for key, values in matrix.items():
        _check_matrix_key(source, key, values, matrix)
    size = math.prod(len(values) for values in matrix.values())
    if size > MAX_MATRIX:
        raise RecipeError(f"{where}: the matrix has {size} combinations; at most {MAX_MATRIX} are allowed.")
    words = {key: _short_key(key, list(matrix)) for key in matrix}
    slugs = {key: _slugs(values) for key, values in matrix.items()}
    result = []
    for indices in itertools.product(*(range(len(values)) for values in matrix.values())):
        chosen = dict(zip(matrix, indices, strict=True))
        suffix = "-".join(f"{words[key]}_{slugs[key][index]}" for key, index in chosen.items())
        result.append((suffix, {key: matrix[key][index] for key, index in chosen.items()}))
    return result


def _check_matrix_key(source: YamlSource, key: str, values: Any, matrix: Mapping[str, Any]) -> None:
    place = source.place_of(["matrix", key])
    if not all(key.split(".")):
        raise RecipeError(f"{place}: matrix has the key {key!r}; expected a dotted key, such as train.epochs.")
    if key.partition(".")[0] in {"matrix", "name"}:
        raise RecipeError(f"{place}: the matrix can't vary {key}. Names are made from the values that vary.")
    if not isinstance(values, list) or not values:
        raise RecipeError(f"{place}: matrix.{key} is {shown(values)}; expected a list of values.")
    texts = [json.dumps(value, sort_keys=True) for value in values]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise RecipeError(f"{place}: matrix.{key} names {twice} twice; two combinations would be the same.")
    above = next((other for other in matrix if key.startswith(other + ".")), None)
    if above is not None:
        raise RecipeError(f"{place}: the matrix varies {above} and, inside it, {key}. Leave one of them out.")


def _short_key(key: str, keys: Sequence[str]) -> str:
    """Returns the last parts of a dotted key, as few as tell it from the matrix's other keys."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        short = ".".join(parts[-length:])
        if sum(f".{other}".endswith(f".{short}") for other in keys) == 1:
            return _slug(short)
    return _slug(key)


def _slugs(values: Sequence[Any]) -> list[str]:
    """Returns a text for each value that a file name may hold; no two are the same."""
    slugs: list[str] = []
    for number, value in enumerate(values, start=1):
        slug = _slug(value)
        slugs.append(f"{slug}_{number}" if slug in slugs else slug)
    return slugs


def _slug(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
    return re.sub(r"[^a-z0-9.-]+", "_", text.lower()).strip("_") or "none"

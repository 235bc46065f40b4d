"""Recipes: YAML in, a frozen and validated `Recipe` out.

Every message names the file and the line, or the `--set` that brought the value.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from models.spec import MIN_RESOLUTION
from pipeline.errors import RecipeError
from pipeline.gates import GatesConfig
from pipeline.network import FAKE_NETWORK, ModelConfig
from pipeline.sources import DataConfig
from pipeline.stages.base import FrozenConfig
from pipeline.stages.benchmark import BenchmarkConfig
from pipeline.stages.calibrate import CalibrateConfig, QuantizationConfig
from pipeline.stages.export import ExportConfig
from pipeline.stages.select import SelectConfig
from pipeline.training.config import TrainConfig
from pipeline.yaml_source import KeyPath, YamlSource, parse_scalar, read_yaml

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]*$")
MAX_MATRIX = 1000


class Recipe(FrozenConfig):
    """Everything that shapes a run.

    Attributes:
        name: Names the directory under `runs/`.
        data: Where the images come from and how they are split and resized.
        model: The network.
        train: How it is trained.
        calibrate: How its confidence is calibrated.
        quantization: What int8 takes its ranges from.
        export: Targets and precisions.
        benchmark: How long is measured.
        gates: What must hold.
        select: What is made small.
        devices: Names of device profiles, or paths of their files.
    """

    name: Annotated[str, Field(pattern=_NAME.pattern, max_length=100)]
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    export: ExportConfig = ExportConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    gates: GatesConfig = GatesConfig()
    select: SelectConfig = SelectConfig()
    devices: Annotated[tuple[str, ...], Field(min_length=1)] = ("local",)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        fake_targets = [target for target in self.export.targets if target == "fake"]
        if self.model.name == FAKE_NETWORK:
            if len(fake_targets) != len(self.export.targets):
                raise ValueError(
                    f"model.name is fake, which only the target fake can run, but export.targets is "
                    f"{', '.join(self.export.targets)}: set export.targets to [fake], or choose a real network."
                )
            return self
        if fake_targets:
            raise ValueError(
                f"export.targets names fake, which runs the network fake alone, but model.name is "
                f"{self.model.name}: leave fake out."
            )
        if min(self.data.size) < MIN_RESOLUTION:
            raise ValueError(
                f"data.size is {list(self.data.size)}, but {self.model.name} takes at least {MIN_RESOLUTION} pixels "
                f"a side: set data.size to [{MIN_RESOLUTION}, {MIN_RESOLUTION}] or more; smaller images are enlarged."
            )
        if len(set(self.devices)) != len(self.devices):
            raise ValueError(f"devices names one twice: {', '.join(self.devices)}.")
        return self


def load_recipes(path: Path, overrides: Sequence[str] = ()) -> list[Recipe]:
    """Reads a recipe file and returns the recipes it stands for: one, or all that its `matrix` expands to.

    Args:
        path: A YAML file.
        overrides: `KEY=VALUE` texts such as `train.epochs=3`; values are read as YAML.

    Raises:
        RecipeError: The file, an override or a combination can't be used.
    """
    source = read_yaml(path)
    for override in overrides:
        _override(source, override)
    matrix = source.data.pop("matrix", None)
    if matrix is None:
        return [_validate(source)]
    recipes = []
    for suffix, values in _combinations(source, matrix):
        data = json.loads(json.dumps(source.data))
        places = dict(source.places)
        for key, value in values.items():
            _place(data, key.split("."), value)
            places[tuple(key.split("."))] = source.places.get(("matrix", key), "matrix")
        data["name"] = f"{data.get('name', '')}-{suffix}"
        recipes.append(_validate(YamlSource(source.name, data, places)))
    names = [recipe.name for recipe in recipes]
    if len(set(names)) != len(names):
        raise RecipeError(f"{source.place_of(['matrix'])}: two combinations of the matrix have the same name.")
    return recipes


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe file, `matrix` included, for editors that complete YAML."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Edgeship recipe"
    schema["properties"]["matrix"] = {
        "type": "object",
        "description": "Dotted keys, each with a list of values: one recipe for every combination.",
        "additionalProperties": {"type": "array", "minItems": 1},
    }
    return schema


def _validate(source: YamlSource) -> Recipe:
    try:
        text = json.dumps(source.data)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source.name}: a value is no number, text, list or mapping: {error}.") from error
    try:
        return Recipe.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_explain(source, problem) for problem in error.errors(include_url=False)]
        raise RecipeError("\n".join(dict.fromkeys(problems))) from error


def _override(source: YamlSource, override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key or not all(key.split(".")):
        raise RecipeError(f"--set {override}: expected KEY=VALUE with a dotted key, such as train.epochs=3.")
    try:
        value = parse_scalar(text)
    except RecipeError as error:
        raise RecipeError(f"--set {override}: {error.message}") from error
    try:
        _place(source.data, key.split("."), value)
    except TypeError as error:
        raise RecipeError(f"--set {override}: {error}") from error
    source.places[tuple(key.split("."))] = f"--set {override}"


def _place(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise TypeError(f"{'.'.join(keys[: depth + 1])} is {inner!r}, which has no keys below it.")
        data = inner
    data[keys[-1]] = value


def _combinations(source: YamlSource, matrix: Any) -> list[tuple[str, dict[str, Any]]]:
    where = source.place_of(["matrix"])
    if not isinstance(matrix, dict) or not matrix:
        raise RecipeError(f"{where}: matrix is {matrix!r}; expected dotted keys, each with a list of values.")
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            place = source.place_of(["matrix", key])
            raise RecipeError(f"{place}: matrix.{key} is {values!r}; expected a list of values.")
    size = 1
    for values in matrix.values():
        size *= len(values)
    if size > MAX_MATRIX:
        raise RecipeError(f"{where}: the matrix has {size} combinations; at most {MAX_MATRIX} are allowed.")
    result = []
    for values in itertools.product(*matrix.values()):
        chosen = dict(zip(matrix, values, strict=True))
        suffix = "-".join(f"{key.rpartition('.')[2]}_{_slug(value)}" for key, value in chosen.items())
        result.append((suffix, chosen))
    return result


def _slug(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_") or "none"


def _explain(source: YamlSource, problem: ErrorDetails) -> str:
    """Returns one problem in words: where, what was received, what was expected, what to do."""
    path = _without_tags(source, problem["loc"])
    key = ".".join(str(part) for part in path) or "the recipe"
    where = source.place_of(path)
    received = problem.get("input")
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1], source.data)
        return f"{where}: unknown key {key}.{_did_you_mean(str(path[-1]), known)}"
    if kind == "missing":
        return f"{where}: {key} is missing. Add it to the recipe, or give --set {key}=VALUE."
    if kind in {"value_error", "assertion_error"}:
        return f"{where}: {str(problem['ctx']['error']).strip()}" if "ctx" in problem else f"{where}: {problem['msg']}"
    if kind == "union_tag_invalid":
        context = problem["ctx"]
        known = [word.strip(" '") for word in str(context["expected_tags"]).split(",")]
        return (
            f"{where}: {key}.{str(context['discriminator']).strip(chr(39))} is {context['tag']!r}; expected one of "
            f"{', '.join(known)}.{_did_you_mean(str(context['tag']), known, listing=False)}"
        )
    if kind == "union_tag_not_found":
        name = str(problem["ctx"]["discriminator"]).strip("'")
        return f"{where}: {key}.{name} is missing. Add it to the recipe, or give --set {key}.{name}=VALUE."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    hint = ""
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(problem["ctx"]["expected"]))
        hint = _did_you_mean(str(received), known, listing=False)
    return f"{where}: {key} is {_shown(received)}: {message}.{hint}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_tags(source: YamlSource, location: Iterable[str | int]) -> KeyPath:
    """Drops what pydantic adds for the chosen member of a union: it is no key of the file."""
    path: list[str | int] = []
    data: Any = source.data
    for part in location:
        tags = data.values() if isinstance(data, dict) and part not in data else ()
        if path == ["data"] and part in tags:
            continue
        path.append(part)
        if isinstance(data, dict):
            data = data.get(str(part))
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            data = None
    return tuple(path)


def _known_keys(path: KeyPath, data: Mapping[str, Any]) -> list[str]:
    """Returns the keys that a mapping of the recipe may have."""
    if not path:
        return [*Recipe.model_fields, "matrix"]
    current: Any = Recipe
    for part in path:
        field = current.model_fields.get(str(part)) if isinstance(current, type) else None
        if field is None:
            return []
        current = _member(field.annotation, data.get(str(part), {}))
        data = data.get(str(part), {}) if isinstance(data.get(str(part)), dict) else {}
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _member(annotation: Any, data: Any) -> Any:
    """Returns the model class that a mapping is validated by: of a union, the one its `source` chooses."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (types.UnionType, typing.Union):
        for member in get_args(annotation):
            field = member.model_fields.get("source") if isinstance(member, type) else None
            if field is not None and isinstance(data, dict) and data.get("source") in get_args(field.annotation):
                return member
        return get_args(annotation)[0]
    return annotation


def _did_you_mean(word: str, known: Sequence[str], *, listing: bool = True) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known here: {', '.join(known)}." if known and listing else ""

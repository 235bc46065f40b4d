"""Recipes: YAML in, a frozen and validated `Recipe` out.

Every message names the file and the line, or the `--set` that brought the value.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeGuard, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from models.spec import MIN_RESOLUTION
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.compile_config import CompileConfig
from pipeline.errors import RecipeError
from pipeline.gates import GatesConfig
from pipeline.model_config import AnyModelConfig, BudgetModelConfig, OwnModelConfig, form_of_model
from pipeline.network import FAKE_NETWORK, ModelConfig
from pipeline.quantization.section import QuantizationConfig
from pipeline.recipe_matrix import combinations
from pipeline.reference import CalibrateConfig
from pipeline.sources import SOURCES, RecipeData
from pipeline.sources.base import SourceConfig
from pipeline.sources.samples import RandomConfig
from pipeline.stages.base import FrozenConfig
from pipeline.stages.export import ExportConfig
from pipeline.stages.select import SelectConfig
from pipeline.tracking.config import TrackConfig
from pipeline.training.config import TrainConfig
from pipeline.training.presets import with_model_preset
from pipeline.yaml_source import KeyPath, YamlSource, parse_scalar, read_yaml, shortened, shown

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]*$")


class Recipe(FrozenConfig):
    """Everything that shapes a run.

    Attributes:
        name: Names the directory under `runs/`.
        data: Where the images come from and how they are split and resized; for a model of one's own also arrays, or
            random samples, which stand for data that is not given.
        model: The network, by name or by budget, or a model of one's own.
        train: How it is trained.
        track: Who watches the training; changes nothing that it makes.
        calibrate: How its confidence is calibrated.
        quantization: What int8 takes its ranges from.
        export: Targets and precisions.
        compile: What is compiled for the devices.
        benchmark: How long is measured.
        gates: What must hold.
        select: What is made small.
        devices: Names of device profiles, or paths of their files.
    """

    name: Annotated[str, Field(pattern=_NAME.pattern, max_length=100)]
    data: RecipeData = RandomConfig()
    model: AnyModelConfig
    train: TrainConfig = TrainConfig()
    track: TrackConfig = TrackConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    export: ExportConfig = ExportConfig()
    compile: CompileConfig = CompileConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    gates: GatesConfig = GatesConfig()
    select: SelectConfig = SelectConfig()
    devices: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = ("local",)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.devices)) != len(self.devices):
            raise ValueError(f"devices names one twice: {', '.join(self.devices)}.")
        if isinstance(self.model, OwnModelConfig):
            return self._own_model_fits(self.model)
        fake_targets = [target for target in self.export.targets if target == "fake"]
        if isinstance(self.model, ModelConfig) and self.model.name == FAKE_NETWORK:
            self._images("fake")
            if len(fake_targets) != len(self.export.targets):
                raise ValueError(
                    f"model.name is fake, which only the target fake can run, but export.targets is "
                    f"{', '.join(self.export.targets)}: set export.targets to [fake], or choose a real network."
                )
            return self
        name = self.model.family if isinstance(self.model, BudgetModelConfig) else self.model.name
        data = self._images(name)
        if fake_targets:
            raise ValueError(
                f"export.targets names fake, which runs the network fake alone, but model.name is "
                f"{name}: leave fake out."
            )
        if self.train.epochs == 0 and self.model.weights is None:
            raise ValueError("train.epochs is 0, but model.weights is not given: train, or name weights to take as is.")
        if min(data.size) < MIN_RESOLUTION:
            raise ValueError(
                f"data.size is {list(data.size)}, but {name} takes at least {MIN_RESOLUTION} pixels "
                f"a side: set data.size to [{MIN_RESOLUTION}, {MIN_RESOLUTION}] or more; smaller images are enlarged."
            )
        return self

    def _images(self, network: str) -> SourceConfig:
        """Returns the data of a network that is trained, which must be labelled images."""
        if isinstance(self.data, SourceConfig):
            return self.data
        if "data" not in self.model_fields_set:
            raise ValueError("data is missing. Add it to the recipe: where the images come from.")
        raise ValueError(
            f"data.source is {self.data.source}, which serves a model of one's own (model.path), but {network} is "
            f"trained on images: choose one of {', '.join(SOURCES)}."
        )

    def _own_model_fits(self, model: OwnModelConfig) -> Self:
        if "train" in self.model_fields_set:
            raise ValueError("train is given, but model.path names a model that is taken as it is: leave train out.")
        if "calibrate" in self.model_fields_set:
            raise ValueError("calibrate is given, but model.path names a model that is taken as it is: leave it out.")
        if "fake" in self.export.targets:
            raise ValueError("export.targets names fake, which runs the network fake alone: leave fake out.")
        if model.metric is not None and isinstance(self.data, RandomConfig):
            raise ValueError(
                f"model.metric is {model.metric}, but the data are random: give data with labels or targets, such as "
                f"data: {{source: arrays, path: samples.npz}}."
            )
        if self.quantization.accuracy is not None and not isinstance(self.data, SourceConfig):
            raise ValueError(
                "quantization.accuracy is judged on validation images, but the data are arrays, which have none: give "
                "images in data, or leave it out."
            )
        if self.gates.min_accuracy is not None and model.metric == "mse":
            raise ValueError("gates.min_accuracy is given, but model.metric is mse, which is better the lower it is.")
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
    parsed = [_parse_override(override) for override in overrides]
    for override in parsed:
        _apply_override(source, override)
    matrix = source.data.pop("matrix", None)
    if matrix is None and ("matrix",) not in source.places:
        return [_validate(source)]
    recipes = []
    for suffix, values in combinations(source, matrix):
        data = json.loads(json.dumps(source.data))
        places = dict(source.places)
        for key, value in values.items():
            keys, place = tuple(key.split(".")), source.places.get(("matrix", key), "matrix")
            try:
                _place(data, keys, value)
            except TypeError as error:
                raise RecipeError(f"{source.name}, {place}: matrix.{key}: {error}") from error
            for length in range(1, len(keys)):
                places.setdefault(keys[:length], place)
            places[keys] = place
        data["name"] = f"{data.get('name', '')}-{suffix}"
        try:
            recipes.append(_validate(YamlSource(source.name, data, places)))
        except RecipeError as error:
            raise RecipeError(f"{error.message}\nThis is the combination {suffix} of the matrix.") from error
    return recipes


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe file, `matrix` included, for editors that complete YAML."""
    schema = Recipe.model_json_schema()
    _describe_fields(schema)
    for name, part in schema["$defs"].items():
        _describe_fields(part, _inherited(name))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Edgeship recipe"
    schema["properties"]["matrix"] = {
        "type": "object",
        "description": "Dotted keys, each with a list of values: one recipe for every combination.",
        "additionalProperties": {"type": "array", "minItems": 1},
    }
    return schema


def _describe_fields(schema: dict[str, Any], inherited: Sequence[str] = ()) -> None:
    """Moves what a class's docstring, and those of the classes above it, say about fields to the fields."""
    summary, _, section = schema.get("description", "").partition("\n\nAttributes:\n")
    if section:
        schema["description"] = summary
    for text in (section, *inherited):
        entries = re.split(r"^    (?=\w+:)", text.partition("\n\n")[0], flags=re.MULTILINE)
        for entry in entries[1:]:
            name, _, words = entry.partition(":")
            if name in schema["properties"]:
                schema["properties"][name].setdefault("description", " ".join(words.split()))


def _inherited(name: str) -> list[str]:
    """Returns the attribute sections of the classes above a config class."""
    above = next((known.__mro__[1:] for known in _subclasses(FrozenConfig) if known.__name__ == name), ())
    documents = [inspect.getdoc(each) or "" for each in above if _is_model(each) and each.__module__ != "pydantic.main"]
    return [text.partition("\n\nAttributes:\n")[2] for text in documents]


def _subclasses(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def _validate(source: YamlSource) -> Recipe:
    try:
        text = json.dumps(with_model_preset(source.data))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source.name}: a value is no number, text, list or mapping: {error}.") from error
    try:
        return Recipe.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_explain(source, problem) for problem in error.errors(include_url=False)]
        raise RecipeError("\n".join(dict.fromkeys(problems))) from error


@dataclass(frozen=True)
class _Override:
    """One `--set KEY=VALUE`: its text, the parts of its key, its value."""

    text: str
    keys: tuple[str, ...]
    value: Any


def _parse_override(override: str) -> _Override:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key or not all(key.split(".")):
        raise RecipeError(f"--set {override}: expected KEY=VALUE with a dotted key, such as train.epochs=3.")
    try:
        value = parse_scalar(text)
    except RecipeError as error:
        raise RecipeError(f"--set {shortened(override)}: {error.message}") from error
    keys = tuple(key.split("."))
    if keys[0] == "matrix" and len(keys) > 1:
        keys = ("matrix", ".".join(keys[1:]))
    return _Override(f"--set {shortened(override)}", keys, value)


def _apply_override(source: YamlSource, override: _Override) -> None:
    """Sets a value; one that the matrix varies is fixed in the matrix, so that `--set` always has the last word.

    Raises:
        RecipeError: The key lies below something that has no keys, or above or below one that the matrix varies.
    """
    keys, value = override.keys, override.value
    matrix = source.data.get("matrix")
    for varied in matrix if isinstance(matrix, dict) and keys[0] != "matrix" else ():
        inner = tuple(varied.split("."))
        if inner == keys:
            keys, value = ("matrix", varied), [value]
        elif inner[: len(keys)] == keys or keys[: len(inner)] == inner:
            raise RecipeError(
                f"{override.text}: the matrix of {source.name} varies {varied}. Set that key, or matrix.{varied}=[...]."
            )
    for length in range(1, len(keys)):
        known = _value_at(source.data, keys[:length])
        if known is None:
            source.places[keys[:length]] = override.text
    try:
        _place(source.data, keys, value)
    except TypeError as error:
        raise RecipeError(f"{override.text}: {error}") from error
    source.places[keys] = override.text


def _value_at(data: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _place(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = data.setdefault(key, {})
        if inner is None:  # `train:` with nothing below it
            inner = data[key] = {}
        if not isinstance(inner, dict):
            raise TypeError(f"{'.'.join(keys[: depth + 1])} is {shown(inner)}, which has no keys below it.")
        data = inner
    data[keys[-1]] = value


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
        text = str(problem["ctx"]["error"]).strip()
        return f"{_place_of_subject(source, path, text)}: {text}"
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
    if kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}."
    else:
        message = (
            problem["msg"].replace("Input should be", "expected", 1).replace("String should", "it should", 1) + "."
        )
    if kind == "string_type" and isinstance(received, int | float):
        message += f' Write it in quotes: "{received}".'
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(problem["ctx"]["expected"]))
        message += _did_you_mean(str(received), known, listing=False)
    return f"{where}: {key} is {shown(received)}: {message}"


_EXPECTED = {
    "dict_type": "a mapping",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_type": "text",
    "tuple_type": "a list",
    "float_type": "a number",
    "too_short": "at least one entry",
    "bool_type": "true or false",
}
"""What stands where pydantic says "Input should be ...", by its type of error."""


def _place_of_subject(source: YamlSource, path: KeyPath, text: str) -> str:
    """Returns the place of the key that a validator's message begins with, else of the section, and any --set in it.

    A validator of a whole section sees values alone; by our convention its message begins with the key at fault,
    in full or from the section on.
    """
    word = text.split(" ", 1)[0].rstrip(":,")
    keys = tuple(word.split("."))
    place = source.place_of(path)
    for candidate in (keys, (*path, *keys)):
        if candidate in source.places and candidate[: len(path)] == path:
            place = source.place_of(candidate)
    known = [text for keys, text in source.places.items() if keys[: len(path)] == path and text.startswith("--set")]
    beside = [text for text in dict.fromkeys(known) if text not in place]
    return f"{place} (with {', '.join(beside)})" if beside else place


_MODEL_FORMS = ("by name", "by budget", "by path")
"""The tags that tell the forms of the model section apart."""


def _without_tags(source: YamlSource, location: Iterable[str | int]) -> KeyPath:
    """Drops what pydantic adds for the chosen member of a union: it is no key of the file."""
    path: list[str | int] = []
    data: Any = source.data
    for part in location:
        tags = data.values() if isinstance(data, dict) and part not in data else ()
        if path == ["data"] and part in tags:
            continue
        if path == ["model"] and part in _MODEL_FORMS:
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
        field = current.model_fields.get(str(part)) if _is_model(current) else None
        if field is None:
            return []
        current = _member(field.annotation, data.get(str(part), {}))
        data = data.get(str(part), {}) if isinstance(data.get(str(part)), dict) else {}
    return list(current.model_fields) if _is_model(current) else []


def _is_model(value: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _member(annotation: Any, data: Any) -> Any:
    """Returns the model class that a mapping is validated by: of a union, the one its `source` chooses."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (types.UnionType, typing.Union):
        for member in get_args(annotation):
            field = member.model_fields.get("source") if _is_model(member) else None
            if field is not None and isinstance(data, dict) and data.get("source") in get_args(field.annotation):
                return member
            if get_origin(member) is Annotated and get_args(member)[1].tag == form_of_model(data):
                return get_args(member)[0]
        return get_args(annotation)[0]
    return annotation


def _did_you_mean(word: str, known: Sequence[str], *, listing: bool = True) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known here: {', '.join(known)}." if known and listing else ""

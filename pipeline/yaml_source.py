"""YAML text with the line of every value, so that a message can say where."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import RecipeError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlSource:
    """A parsed YAML document.

    Attributes:
        name: Of the file, for messages.
        data: Plain mappings, lists and scalars.
        places: Where each value stands ("line 3", "--set train.epochs=3"), by its path.
    """

    name: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place_of(self, path: Sequence[str | int]) -> str:
        """Returns where a value stands, or the closest thing around it."""
        for length in range(len(path), 0, -1):
            if tuple(path[:length]) in self.places:
                return f"{self.name}, {self.places[tuple(path[:length])]}"
        return self.name


def read_yaml(path: Path, *, what: str = "recipe", keys: str = "name, data and model") -> YamlSource:
    """Reads a YAML file whose top is a mapping.

    Args:
        path: Of the file.
        what: It holds, for messages.
        keys: It has, for messages.

    Raises:
        RecipeError: The file is missing or unreadable, is no YAML, names a key twice, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"There is no {what} {path}. Give the path of a YAML file.{_neighbours(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The {what} {path} can't be read: {error}. Give a YAML file in UTF-8.") from error
    try:
        data = YAML(typ="rt").load(text)
    except RecursionError as error:
        raise RecipeError(f"{path}: no valid {what}: its lists or mappings are nested too deeply.") from error
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = (error.problem or "").partition(" with value")[0]
        raise RecipeError(f"{path}, line {line}: {problem}: a key may stand only once.") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{where}: no valid YAML: {error.problem or error.context}.") from error
    except YAMLError as error:
        raise RecipeError(f"{path}: no valid YAML: {_first_line(error)}.") from error
    if not isinstance(data, CommentedMap):
        raise RecipeError(f"{path} holds {_kind(data)}; expected a mapping with keys such as {keys}.")
    places: dict[KeyPath, str] = {}
    try:
        plain = _plain(data, (), places)
    except RecursionError as error:
        raise RecipeError(f"{path}: no valid {what}: an alias stands inside what it stands for.") from error
    except _NotPlainError as error:
        raise RecipeError(f"{YamlSource(str(path), {}, places).place_of(error.path)}: {error}") from error
    return YamlSource(str(path), plain, places)


def parse_scalar(text: str) -> Any:
    """Returns what a text means as a YAML value: `3` a number, `[a, b]` a list, `x` a text.

    Raises:
        RecipeError: It is no YAML.
    """
    try:
        return _plain(YAML(typ="safe", pure=True).load(text), (), {})
    except RecursionError as error:
        raise RecipeError("the value is nested too deeply.") from error
    except MarkedYAMLError as error:
        raise RecipeError(f"this is no YAML value: {error.problem or error.context}.") from error
    except YAMLError as error:
        raise RecipeError(f"this is no YAML value: {_first_line(error)}.") from error
    except _NotPlainError as error:
        raise RecipeError(str(error)) from error


def shown(value: Any) -> str:
    """Returns a value for a message, cut where it is long."""
    return shortened(json.dumps(value))


def shortened(text: str) -> str:
    """Returns a text for a message, cut where it is long."""
    return text if len(text) <= 60 else text[:57] + "..."


class _NotPlainError(ValueError):
    """A value that is no mapping, list, text, number, true, false or null."""

    def __init__(self, path: KeyPath, received: str) -> None:
        super().__init__(
            f"{'.'.join(map(str, path)) or 'the value'} is {received}; expected a mapping, a list, text, a number, "
            f"true, false or null."
        )
        self.path = path


def _plain(value: Any, path: KeyPath, places: dict[KeyPath, str]) -> Any:
    tag = getattr(getattr(value, "tag", None), "value", None)
    if isinstance(value, TaggedScalar) and tag == "tag:yaml.org,2002:str":
        return str(value.value)
    if tag is not None:
        raise _NotPlainError(path, f"tagged {tag}")
    if isinstance(value, dict):
        result = {}
        for key, item in value.items():
            # A key that a merge (`<<`) brought in stands elsewhere.
            if isinstance(value, CommentedMap) and key in (value.lc.data or {}):
                places[*path, str(key)] = f"line {value.lc.key(key)[0] + 1}"
            result[str(key)] = _plain(item, (*path, str(key)), places)
        return result
    if isinstance(value, list):
        if isinstance(value, CommentedSeq):
            for index in range(len(value)):
                places[*path, index] = f"line {value.lc.item(index)[0] + 1}"
        return [_plain(item, (*path, index), places) for index, item in enumerate(value)]
    return _plain_scalar(value, path)


def _plain_scalar(value: Any, path: KeyPath) -> Any:
    # The round-trip parser's numbers and texts are subclasses that remember how they were written.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, datetime.date):
        return str(value)
    if value is not None:
        raise _NotPlainError(path, f"a YAML {type(value).__name__}")
    return None


def _first_line(error: YAMLError) -> str:
    return str(error).partition("\n")[0].removesuffix(".")


def _kind(value: Any) -> str:
    return "nothing" if value is None else "a list" if isinstance(value, list) else f"the text {str(value)[:40]!r}"


def _neighbours(path: Path) -> str:
    names = sorted(other.name for other in _yaml_files(path.parent))
    return f" In {path.parent} there are: {', '.join(names)}." if names else ""


def _yaml_files(directory: Path) -> Iterator[Path]:
    return iter([*directory.glob("*.yaml"), *directory.glob("*.yml")]) if directory.is_dir() else iter(())

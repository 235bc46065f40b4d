"""YAML text with the line of every value, so that a message can say where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
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


def read_yaml(path: Path) -> YamlSource:
    """Reads a YAML file whose top is a mapping.

    Raises:
        RecipeError: The file is missing or unreadable, is no YAML, names a key twice, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe {path}. Give the path of a YAML file.{_neighbours(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} can't be read: {error}. Give a YAML file in UTF-8.") from error
    try:
        data = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = (error.problem or "").partition(" with value")[0]
        raise RecipeError(f"{path}, line {line}: {problem}: a key may stand only once.") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{where}: no valid YAML: {error.problem or error.context}.") from error
    except YAMLError as error:
        raise RecipeError(f"{path}: no valid YAML: {error}.") from error
    if not isinstance(data, CommentedMap):
        raise RecipeError(f"{path} holds {_kind(data)}; expected a mapping with keys such as name, data and model.")
    places: dict[KeyPath, str] = {}
    plain = _plain(data, (), places)
    return YamlSource(str(path), plain, places)


def parse_scalar(text: str) -> Any:
    """Returns what a text means as a YAML value: `3` a number, `[a, b]` a list, `x` a text.

    Raises:
        RecipeError: It is no YAML.
    """
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise RecipeError(f"{text!r} is no YAML value: {error}.") from error
    return _plain(value, (), {})


def _plain(value: Any, path: KeyPath, places: dict[KeyPath, str]) -> Any:
    if isinstance(value, dict):
        result = {}
        for key, item in value.items():
            if isinstance(value, CommentedMap):
                places[*path, str(key)] = f"line {value.lc.key(key)[0] + 1}"
            result[str(key)] = _plain(item, (*path, str(key)), places)
        return result
    if isinstance(value, list):
        if isinstance(value, CommentedSeq):
            for index in range(len(value)):
                places[*path, index] = f"line {value.lc.item(index)[0] + 1}"
        return [_plain(item, (*path, index), places) for index, item in enumerate(value)]
    # The round-trip parser's numbers and texts are subclasses that remember how they were written.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value if value is None else str(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else "a list" if isinstance(value, list) else f"the text {str(value)[:40]!r}"


def _neighbours(path: Path) -> str:
    names = sorted(other.name for other in _yaml_files(path.parent))
    return f" In {path.parent} there are: {', '.join(names)}." if names else ""


def _yaml_files(directory: Path) -> Iterator[Path]:
    return iter([*directory.glob("*.yaml"), *directory.glob("*.yml")]) if directory.is_dir() else iter(())

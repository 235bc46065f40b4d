"""YAML with the line of every value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.yaml_source import YamlSource, parse_scalar, read_yaml


def read(folder: Path, text: str) -> YamlSource:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def test_lines_of_mappings_and_lists(tmp_path: Path) -> None:
    source = read(tmp_path, "# a comment\na: 1\n\nb:\n  c: x\n  d:\n    - 1\n    - e: 2\n")
    assert source.data == {"a": 1, "b": {"c": "x", "d": [1, {"e": 2}]}}
    assert source.places == {
        ("a",): "line 2",
        ("b",): "line 4",
        ("b", "c"): "line 5",
        ("b", "d"): "line 6",
        ("b", "d", 0): "line 7",
        ("b", "d", 1): "line 8",
        ("b", "d", 1, "e"): "line 8",
    }


def test_place_of_falls_back_to_what_is_around(tmp_path: Path) -> None:
    source = read(tmp_path, "a:\n  b: 1\n")
    assert source.place_of(["a", "b"]).endswith("r.yaml, line 2")
    assert source.place_of(["a", "missing", "deeper"]).endswith("r.yaml, line 1")
    assert source.place_of(["missing"]) == source.name


def test_values_are_plain(tmp_path: Path) -> None:
    """The parser's own number and text classes would not survive a comparison of types."""
    source = read(tmp_path, "a: 0x10\nb: 1e-3\nc: 'x'\nd: true\ne: null\nf: 1_000\ng: |\n  long\nh: 1.50\ni: !!str 3\n")
    assert source.data == {
        "a": 16, "b": 0.001, "c": "x", "d": True, "e": None, "f": 1000, "g": "long\n", "h": 1.5, "i": "3",
    }  # fmt: skip
    assert {type(value) for value in source.data.values()} == {int, float, str, bool, type(None)}


def test_merged_keys_have_the_place_of_their_mapping(tmp_path: Path) -> None:
    source = read(tmp_path, "a: &a\n  x: 1\nb:\n  <<: *a\n  y: 2\n")
    assert source.data["b"] == {"x": 1, "y": 2}
    assert source.place_of(["b", "x"]).endswith("line 3")


@dataclasses.dataclass(frozen=True)
class Scalar:
    text: str
    value: Any


@pytest.mark.parametrize(
    "case",
    [
        Scalar("3", 3), Scalar("3.0", 3.0), Scalar("1e-3", 0.001), Scalar("true", True), Scalar("no", "no"),
        Scalar("", None), Scalar("null", None), Scalar("[a, 1]", ["a", 1]), Scalar("{a: 1}", {"a": 1}),
        Scalar("a b", "a b"), Scalar("'3'", "3"), Scalar("/a/b.tar.gz", "/a/b.tar.gz"), Scalar("yes", "yes"),
    ],
    ids=lambda case: case.text or "nothing",
)  # fmt: skip
def test_parse_scalar(case: Scalar) -> None:
    value = parse_scalar(case.text)
    assert value == case.value
    assert type(value) is type(case.value)


@pytest.mark.parametrize("text", ["[a", "{a: ", "a: b: c", "!foo x", "\x00", "[" * 500])
def test_parse_scalar_refuses(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_scalar(text)

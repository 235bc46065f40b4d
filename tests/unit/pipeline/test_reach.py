from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.model_options import description_of
from pipeline.reach import exports_of, reachable_exports
from pipeline.recipe import Recipe

ALL = ("float32", "float16", "int8")


def recipe(path: Path, **sections: Any) -> Recipe:
    values = {"name": "own", "model": {"path": str(path)}, **sections}
    return Recipe.model_validate_json(json.dumps(values), strict=True)


@pytest.fixture
def tflite(tmp_path: Path) -> Path:
    """Enough of a file for its format to be known."""
    path = tmp_path / "net.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    return path


@pytest.fixture
def xml(tmp_path: Path) -> Path:
    path = tmp_path / "net.xml"
    path.write_text('<?xml version="1.0"?><net name="n" version="11"><layers/><edges/></net>')
    path.with_suffix(".bin").write_bytes(b"")
    return path


def reached(path: Path, **sections: Any) -> list[tuple[str, str]]:
    made = recipe(path, **sections)
    return [*reachable_exports(made, made.model)]  # type: ignore[arg-type]


def test_all_that_can_be_reached_is_taken_where_the_recipe_leaves_the_choice(tflite: Path, xml: Path) -> None:
    assert {target for target, _ in reached(tflite)} == {"litert", "onnxruntime", "openvino"}
    assert reached(xml) == [("openvino", precision) for precision in ALL]


def test_what_the_recipe_names_must_be_reachable(xml: Path) -> None:
    with pytest.raises(InputError, match=r"export\.targets names litert, but .*net\.xml can't go there: No maintained"):
        reached(xml, export={"targets": ["openvino", "litert"]})


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("hello")
    with pytest.raises(InputError, match="net.onnx"):  # noqa: RUF043
        reached(tmp_path / "net.onnx")


@dataclass(frozen=True)
class Held:
    """What a file holds, and what becomes of the exports; text is what the error says."""

    id: str
    held: str | None
    expected: list[tuple[str, str]] | str
    sections: dict[str, Any] = field(default_factory=dict)


ARRAYS = {"data": {"source": "arrays", "path": "x.npz"}}
FOUND = [(target, precision) for target in ("litert", "openvino") for precision in ALL]
HELD = [
    Held("floats and samples", "float32", FOUND, ARRAYS),
    Held("a SavedModel and samples", None, FOUND, ARRAYS),
    Held("floats, random samples", "float32", [pair for pair in FOUND if pair[1] != "int8"]),
    Held("floats, random samples, int8 asked for", "float32", "takes its ranges", {"export": {"precisions": ["int8"]}}),
    Held("int8", "int8", [("litert", "int8")]),
    Held("int8, everywhere", "int8", [FOUND[2], FOUND[5]], {"export": {"targets": ["litert", "openvino"]}}),
    Held("int8, float asked for", "int8", "holds int8", {"export": {"precisions": ["float32"]}}),
    Held("int8, float asked for beside it", "int8", "holds int8", {"export": {"precisions": ["int8", "float32"]}}),
    Held("mixed", "mixed", "holds mixed"),
]  # fmt: skip


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.id)
def test_what_a_file_holds_limits_what_is_made_of_it(tflite: Path, case: Held) -> None:
    made = recipe(tflite, **case.sections)
    wanted = [(target, precision) for target, precision in FOUND if precision in made.export.precisions]
    imported = {"format": "tflite", "precision": case.held}
    if isinstance(case.expected, str):
        with pytest.raises(InputError, match=case.expected):
            exports_of(made, wanted, imported)  # type: ignore[arg-type]
    else:
        assert exports_of(made, wanted, imported) == case.expected  # type: ignore[arg-type]


def described(**options: Any) -> Any:
    given = {"layout": None, "scale": None, "offset": None, "shapes": (), "metric": None}
    return description_of(**(given | options))


def test_options_describe_one_input() -> None:
    found = described(layout="NCHW", scale="0.5", offset="-1,0,1", shapes=("1,3,8,8",), metric="auc")
    (tensor,) = found.inputs
    assert (tensor.name, tensor.layout, tensor.scale, tensor.offset) == (None, "NCHW", 0.5, (-1.0, 0.0, 1.0))
    assert (tensor.shape, found.metric) == ((1, 3, 8, 8), "auc")


def test_options_fix_shapes_of_several_inputs() -> None:
    found = described(shapes=("a=1,4", "b=1,2,2"))
    assert {tensor.name: tensor.shape for tensor in found.inputs} == {"a": (1, 4), "b": (1, 2, 2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ("a=1,x",)}, "--shape is a=1,x"),
        ({"shapes": ("a=1,0",)}, "described so"),
        ({"scale": "1;2"}, "--scale is 1;2"),
        ({"scale": "1", "shapes": ("a=1,4", "b=1,4")}, "--scale belongs to a model with one input"),
        ({"shapes": ("a=1,4", "a=1,5")}, "names one twice"),
    ],
    ids=["no number", "no size", "separator", "two inputs", "twice"],
)
def test_options_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        described(**options)

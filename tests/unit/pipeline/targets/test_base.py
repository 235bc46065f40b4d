"""What is shared by all targets: the label of a file, its sums, its digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import get_args

import pytest

from pipeline.errors import InputError, ModelFileError
from pipeline.targets import TARGETS, inspect_model, target_of
from pipeline.targets.base import (
    LinearOperation,
    Precision,
    TensorDescription,
    count,
    float_operations,
    model_files,
    precision_label,
    summarize,
)


@dataclasses.dataclass(frozen=True)
class Label:
    label: str
    pairs: tuple[tuple[str, str], ...]


TRUTH = [
    Label("none", ()),
    Label("float32", (("float32", "float"),)),
    Label("float16", (("float16", "float"),) * 2),
    Label("bfloat16", (("bfloat16", "float"),)),
    Label("int8", (("int8", "int8"),) * 3),
    Label("int8", (("uint8", "uint8"), ("int8", "int8"), ("uint8", "int8"))),
    Label("int8_dynamic", (("int8", "dynamic"),)),
    Label("int8_weights", (("int8", "float"),)),
    Label("int16x8", (("int8", "int16"),)),
    Label("mixed", (("int8", "int8"), ("float32", "float"))),
    Label("mixed", (("int8", "int8"), ("int8", "dynamic"))),
    Label("mixed", (("float16", "float"), ("float32", "float"))),
    Label("int4_int8", (("int4", "int8"),)),
    Label("computed_float", (("computed", "float"),)),
]


@pytest.mark.parametrize("case", TRUTH, ids=lambda case: f"{case.label}{len(case.pairs)}")
def test_precision_label(case: Label) -> None:
    assert precision_label([LinearOperation(str(i), *pair) for i, pair in enumerate(case.pairs)]) == case.label


def test_float_operations_are_named_only_beside_integer_ones() -> None:
    floating = LinearOperation("f", "float32", "float")
    assert float_operations([floating, LinearOperation("h", "float16", "float")]) == ()
    assert float_operations([floating, LinearOperation("i", "int8", "int8")]) == ("f",)
    assert float_operations([LinearOperation("w", "int8", "float")]) == ("w",)
    assert float_operations([]) == ()


def test_count_sorts_by_number_then_name() -> None:
    assert list(count(["b", "a", "c", "c"]).items()) == [("c", 2), ("a", 1), ("b", 1)]


def test_sizes_and_digests_cover_the_weights_beside(tmp_path: Path) -> None:
    xml, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    xml.write_bytes(b"<net/>")
    assert model_files(xml) == (xml,)
    weights.write_bytes(b"12345")
    assert model_files(xml) == (xml, weights)
    summary = summarize(
        xml,
        format_name="openvino",
        inputs=[TensorDescription("image", "uint8", (1, 2, 2, 3))],
        outputs=[],
        operations=["A", "A"],
        tensor_types=["float32"],
        weight_bytes={"a": 1, "b": 4},
        linear=[],
    )
    assert summary.size_bytes == 11
    assert summary.sha256 == hashlib.sha256(b"<net/>").hexdigest()
    assert summary.weights_sha256 == hashlib.sha256(b"12345").hexdigest()
    assert list(summary.weight_bytes) == ["b", "a"]
    values = json.loads(json.dumps(summary.to_dict()))
    assert values["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, 2, 2, 3]}]


def test_every_target_has_its_own_suffix_and_known_precisions() -> None:
    suffixes = [target.suffix for target in TARGETS.values()]
    assert len(set(suffixes)) == len(suffixes)
    for target in TARGETS.values():
        assert set(target.precisions) <= set(get_args(Precision))
        assert set(target.notes) <= set(target.precisions)


@pytest.mark.parametrize(
    ("name", "target"),
    [("m.tflite", "litert"), ("M.ONNX", "onnxruntime"), ("m.xml", "openvino"), ("m.fake", "fake")],
)
def test_target_of(tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / name).touch()
    assert target_of(tmp_path / name) == target


def test_target_of_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no model file"):
        target_of(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="There is no model file"):
        target_of(tmp_path)
    (tmp_path / "m.pt").touch()
    with pytest.raises(InputError, match=r"ends in \.pt; expected one of \.tflite"):
        target_of(tmp_path / "m.pt")


@pytest.mark.parametrize("suffix", [".tflite", ".onnx", ".xml", ".fake"])
@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\x00" * 100, b"hello world, this is no model", b"\x1c\x00\x00\x00TFL3" + b"\xff" * 64, b"<net"],
    ids=["empty", "one byte", "zeros", "text", "TFL3 and rubbish", "half XML"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        inspect_model(path)
    assert str(path) in caught.value.message

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.board.installed import Installed
from devices.board.model import InstalledModel
from devices.board.serving.protocol import (
    DATATYPES,
    answer,
    binary_limit,
    json_limit,
    model_metadata,
    parse_object,
    read_call,
)
from devices.board.serving.wire import HttpError

TYPES = ["bool", "int8", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64"]


def model_of(tmp_path: Path, *dtypes: str, shape: tuple[int, ...] = (1, 2, 3)) -> InstalledModel:
    """A model with an input of each type."""
    count = math.prod(shape)
    tensors = {
        "inputs": [{"name": f"in{index}", "shape": shape, "dtype": dtype} for index, dtype in enumerate(dtypes)],
        "outputs": [
            {"name": "first", "shape": [1, 2], "dtype": "float32"},
            {"name": "second", "shape": [3], "dtype": "float32"},
        ],
    }
    path = tmp_path / "model.fake"
    with path.open("wb") as stream:
        np.savez(
            stream,
            weights=np.ones((count * len(dtypes), 5), np.float32),
            bias=np.arange(5, dtype=np.float32),
            tensors=np.array(json.dumps(tensors)),
        )
    release = Installed(
        name="net",
        digest="d1",
        directory=str(tmp_path),
        runtime="fake",
        model=str(path),
        model_sha256="",
        precision="float32",
        labels=None,
        preprocess=None,
        transforms={},
        kind="values",
        confidence_map=None,
    )
    return InstalledModel(release)


def tensor(data: Any, *, datatype: str = "UINT8", **more: Any) -> dict[str, Any]:
    return {"name": "in0", "shape": [1, 2, 3], "datatype": datatype, "data": data, **more}


def request(*tensors: Mapping[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def limits(dtype: str) -> list[Any]:
    if dtype == "bool":
        return [True, False, True, True, False, False]
    if dtype.startswith("float"):
        return [0, -1.5, 2.25, 1e4, -0.0, 7]
    found = np.iinfo(dtype)
    return [found.min, found.max, 0, 1, 2, 3]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", ["flat", "nested", "binary", "binary off by one"])
def test_the_same_values_in_every_form(tmp_path: Path, dtype: str, form: str) -> None:
    model = model_of(tmp_path, dtype)
    expected = np.array(limits(dtype), dtype).reshape(1, 2, 3)
    given_tensor = tensor(None, datatype=DATATYPES[dtype])
    binary = None
    if form.startswith("binary"):
        del given_tensor["data"]
        given_tensor["parameters"] = {"binary_data_size": expected.nbytes}
        raw = np.frombuffer(b"?" + expected.tobytes(), np.uint8)
        binary = raw[1:] if form == "binary off by one" else raw[1:].copy()
    else:
        given_tensor["data"] = (expected if form == "nested" else expected.reshape(-1)).tolist()
    (array,) = read_call(request(given_tensor), binary, model).arrays
    assert array.dtype == dtype
    assert array.flags.aligned
    np.testing.assert_array_equal(array, expected)


def test_binary_tensors_are_not_copied(tmp_path: Path) -> None:
    model = model_of(tmp_path, "float32")
    binary = np.zeros(24, np.uint8)
    given_tensor = {"name": "in0", "shape": [1, 2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}
    (array,) = read_call(request(given_tensor), binary, model).arrays
    assert np.shares_memory(array, binary)


SIX = [1, 2, 3, 4, 5, 6]


@dataclass(frozen=True)
class Bad:
    id: str
    body: bytes
    message: str
    binary: bytes | None = None


BINARY = {"name": "in0", "shape": [1, 2, 3], "datatype": "UINT8"}


@pytest.mark.parametrize(
    "case",
    [
        Bad("no JSON", b"{", "no JSON"),
        Bad("not UTF-8", b'{"id": "\xff"}', "no JSON"),
        Bad("deep JSON", b"[" * 100_000, "no JSON"),
        Bad("deep objects", b'{"a":' * 100_000, "no JSON"),
        Bad("a long number", b'{"id": ' + b"9" * 5000 + b"}", "400 digits"),
        Bad("an array", b"[]", "expected an object"),
        Bad("not a number", b'{"id": NaN}', "NaN is no number"),
        Bad("no inputs", b"{}", "'inputs' is missing"),
        Bad("inputs of texts", request("a"), "array of objects"),  # type: ignore[arg-type]
        Bad("an input missing", request(), "0 of 1 inputs"),
        Bad("an unknown input", request({"name": "x"}), "no input 'x'"),
        Bad("a name that is none", request({"name": []}), "no input an array"),
        Bad("twice", request(tensor(SIX), tensor(SIX)), "twice"),
        Bad("another type", request(tensor(SIX, datatype="FP32")), "expected UINT8"),
        Bad("a type that is none", request(tensor(SIX, datatype={})), "expected UINT8"),
        Bad("another shape", request(tensor(SIX, shape=[6])), r"expected UINT8 \[1, 2, 3\]"),
        Bad("a huge shape", request(tensor(SIX, shape=[2**62, 2**62])), "expected UINT8"),
        Bad("a negative shape", request(tensor(SIX, shape=[-1, 2, 3])), "expected UINT8"),
        Bad("a shape of truths", request(tensor(SIX, shape=[True, 2, 3])), "expected UINT8"),
        Bad("no data", request({**BINARY}), "no array of the shape"),
        Bad("too few values", request(tensor([1])), "1 values; expected 6"),
        Bad("ragged", request(tensor([[[1, 2, 3], [4, 5]]])), "no array of the shape"),
        Bad("nested too deep", request(tensor([[[[1], 2, 3], [4, 5, 6]]])), "something else"),
        Bad("texts", request(tensor(["1", "2", "3", "4", "5", "6"])), "something else"),
        Bad("floats for whole numbers", request(tensor([1.5, 2, 3, 4, 5, 6])), "something else"),
        Bad("truths for whole numbers", request(tensor([True, 2, 3, 4, 5, 6])), "something else"),
        Bad("too large", request(tensor([256, 2, 3, 4, 5, 6])), "0 to 255"),
        Bad("much too large", request(tensor([2**70, 2, 3, 4, 5, 6])), "out of range"),
        Bad("negative", request(tensor([-1, 2, 3, 4, 5, 6])), "out of range"),
        Bad("bytes missing", request({**BINARY, "parameters": {"binary_data_size": 6}}), "not all there"),
        Bad("too few bytes", request({**BINARY, "parameters": {"binary_data_size": 6}}), "not all there", b"12345"),
        Bad("too many bytes", request({**BINARY, "parameters": {"binary_data_size": 6}}), "7 bytes follow", b"1234567"),
        Bad("another size", request({**BINARY, "parameters": {"binary_data_size": 5}}), "expected 6", b"123456"),
        Bad(
            "a size that is none", request({**BINARY, "parameters": {"binary_data_size": "6"}}), "expected 6", b"123456"
        ),
        Bad("both", request(tensor(SIX, parameters={"binary_data_size": 6})), "data as well", b"123456"),
        Bad("parameters that are none", request(tensor(SIX, parameters=[])), "parameters"),
        Bad("shared memory", request(tensor(SIX, parameters={"shared_memory_region": "x"})), "not supported"),
        Bad("an unknown output", request(tensor(SIX), outputs=[{"name": "x"}]), "no output 'x'"),
        Bad("an id that is none", request(tensor(SIX), id=7), "the id is a number"),
        Bad("a long id", request(tensor(SIX), id="a" * 1000), "the id"),
    ],
    ids=lambda case: case.id,
)
def test_requests_that_are_refused(tmp_path: Path, case: Bad) -> None:
    binary = None if case.binary is None else np.frombuffer(case.binary, np.uint8)
    with pytest.raises(HttpError, match=case.message) as refused:
        read_call(case.body, binary, model_of(tmp_path, "uint8"))
    assert refused.value.status == 400


def test_the_answer(tmp_path: Path) -> None:
    model = model_of(tmp_path, "uint8")
    answers = [np.array([[1, 2]], np.float32), np.array([3, 4, 5], np.float32)]
    whole = answer(read_call(request(tensor(SIX), id="a"), None, model), model, answers)
    assert json.loads(whole.body) == {
        "model_name": "net",
        "model_version": "d1",
        "id": "a",
        "outputs": [
            {"name": "first", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
            {"name": "second", "datatype": "FP32", "shape": [3], "data": [3, 4, 5]},
        ],
    }
    wanted = [{"name": "second", "parameters": {"binary_data": True}}, {"name": "first"}]
    mixed = answer(read_call(request(tensor(SIX), outputs=wanted), None, model), model, answers)
    size = int(mixed.headers["Inference-Header-Content-Length"])
    record = json.loads(mixed.body[:size])
    assert [each["name"] for each in record["outputs"]] == ["second", "first"]
    assert record["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert mixed.body[size:] == answers[1].tobytes()
    both = answer(read_call(request(tensor(SIX), parameters={"binary_data_output": True}), None, model), model, answers)
    assert both.body.endswith(answers[0].tobytes() + answers[1].tobytes())


def test_an_answer_that_json_can_not_hold(tmp_path: Path) -> None:
    model = model_of(tmp_path, "uint8")
    answers = [np.array([[np.nan, 2]], np.float32), np.zeros(3, np.float32)]
    with pytest.raises(HttpError, match="binary data") as refused:
        answer(read_call(request(tensor(SIX)), None, model), model, answers)
    assert refused.value.status == 500


def test_metadata_and_limits(tmp_path: Path) -> None:
    model = model_of(tmp_path, "uint8", "float32")
    found = model_metadata(model)
    assert found["inputs"][1] == {"name": "in1", "datatype": "FP32", "shape": [1, 2, 3]}
    assert found["versions"] == ["d1"]
    assert binary_limit(model.feeds) == 6 + 24
    # The longest way to write a float and what is between two of them.
    assert json_limit(model.feeds) > 12 * len("-2.2250738585072014e-308, ")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> InstalledModel:
    return model_of(tmp_path_factory.mktemp("fuzz"), "uint8")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300)
@given(data=JSON, shape=JSON, datatype=JSON, parameters=JSON, rest=st.none() | st.binary(max_size=12))
def test_anything_else_is_refused(
    model: InstalledModel, data: Any, shape: Any, datatype: Any, parameters: Any, rest: bytes | None
) -> None:
    binary = None if rest is None else np.frombuffer(rest, np.uint8)
    for body in (
        request(tensor(data)),
        request(tensor(SIX, shape=shape)),
        request(tensor(SIX, datatype=datatype)),
        request(tensor(SIX, parameters=parameters), parameters=parameters),
        request(tensor(SIX), outputs=data),
        json.dumps(data).encode(),
    ):
        with contextlib.suppress(HttpError):
            assert read_call(body, binary, model).arrays[0].shape == (1, 2, 3)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    with contextlib.suppress(HttpError):
        assert isinstance(parse_object(data), dict)

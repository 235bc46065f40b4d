from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.board.agent import _random_inputs
from devices.board.errors import ModelRejected
from devices.board.runners.contract import (
    INPUT_DTYPES,
    Feed,
    PreparedInputs,
    check_inputs,
    find_tensor,
    make_feeds,
    tensor_record,
    with_distinct_names,
)

IMAGE = tensor_record("image", ["batch", -1, None, 3], "uint8", aliases=["serving_default_image:0", "image", ""])
MASK = tensor_record("mask", (np.int32(2), 5), "bool")
UNKNOWN = tensor_record("any", None, "float32")


def test_a_record_holds_json_values() -> None:
    assert IMAGE == {
        "name": "image",
        "shape": [None, None, None, 3],
        "dtype": "uint8",
        "quantization": None,
        "aliases": ["serving_default_image:0"],
    }
    assert MASK == {"name": "mask", "shape": [2, 5], "dtype": "bool", "quantization": None}
    assert type(MASK["shape"][0]) is int


def test_tensors_are_found_by_name_before_alias() -> None:
    other = tensor_record("serving_default_image:0", [1], "int8")
    assert find_tensor([MASK, IMAGE], "image") == 1
    assert find_tensor([MASK, IMAGE], "serving_default_image:0") == 1
    assert find_tensor([IMAGE, other], "serving_default_image:0") == 1
    assert find_tensor([MASK, IMAGE], "IMAGE") is None


def test_tensors_without_a_name_of_their_own_get_one() -> None:
    records = [tensor_record(name, [1], "int8") for name in ("x", "", "x", "y")]
    assert [record["name"] for record in with_distinct_names(records, "input")] == [
        "input_0",
        "input_1",
        "input_2",
        "y",
    ]


def test_shapes_that_are_fed() -> None:
    batch = tensor_record("x", [None, 3], "float32")
    assert make_feeds([batch, MASK]) == [Feed("x", (1, 3), np.dtype("float32")), Feed("mask", (2, 5), np.dtype("bool"))]
    given = {"serving_default_image:0": [4, 8, 9, 3], "any": [2]}
    assert [feed.shape for feed in make_feeds([IMAGE, UNKNOWN], given)] == [(4, 8, 9, 3), (2,)]
    assert make_feeds([tensor_record("number", [], "int64")])[0].shape == ()


class Bad(NamedTuple):
    id: str
    records: list[dict[str, Any]]
    shapes: dict[str, Any]
    words: str


BAD = [
    Bad("none", [], {}, "the model has no inputs"),
    Bad(
        "free", [MASK, IMAGE], {}, r"'image' has the shape \(\?, \?, \?, 3\).*give a shape for 'image' \(such as \[1, "
    ),
    Bad("rank", [UNKNOWN], {}, "'any' has the shape of any rank"),
    Bad("type", [tensor_record("s", [1], "tensor(string)")], {}, r"'s' has the type tensor\(string\); expected one of"),
    Bad("name", [MASK, IMAGE], {"picture": [1]}, "input 'picture', but .* it has: 'mask', 'image'"),
    Bad("twice", [IMAGE], {"image": [1, 2, 2, 3], "serving_default_image:0": [1, 2, 2, 3]}, "two shapes .* 'image'"),
    Bad("fixed", [MASK], {"mask": [1, 5]}, r"'mask' is \[1, 5\], but the model takes \(2, 5\)"),
    Bad("length", [MASK], {"mask": [2, 5, 1]}, r"is \[2, 5, 1\], but"),
    Bad("zero", [IMAGE], {"image": [1, 0, 2, 3]}, "whole numbers from 1 on"),
    Bad("float", [IMAGE], {"image": [1, 2.0, 2, 3]}, "whole numbers from 1 on"),
    Bad("truth", [IMAGE], {"image": [True, 2, 2, 3]}, "whole numbers from 1 on"),
    Bad("text", [IMAGE], {"image": "1,2,2,3"}, "whole numbers from 1 on"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_inputs_that_can_not_be_fed_are_refused(bad: Bad) -> None:
    with pytest.raises(ModelRejected, match=bad.words):
        make_feeds(bad.records, bad.shapes)


FEEDS = [Feed("a", (1, 2), np.dtype("float32")), Feed("b", (3,), np.dtype("int8"))]
GOOD = [np.zeros((1, 2), np.float32), np.zeros(3, np.int8)]


def test_inputs_are_checked() -> None:
    check_inputs(GOOD, FEEDS)
    with pytest.raises(ValueError, match=r"takes 2 inputs \('a', 'b'\), but 1 are given"):
        check_inputs(GOOD[:1], FEEDS)
    with pytest.raises(ValueError, match=r"'b' takes int8 \(3,\), but it is given uint8 \(3,\)"):
        check_inputs([GOOD[0], GOOD[1].astype(np.uint8)], FEEDS)
    with pytest.raises(ValueError, match=r"'a' takes float32 \(1, 2\), but it is given float32 \(2,\)"):
        check_inputs([GOOD[0][0], GOOD[1]], FEEDS)
    with pytest.raises(ValueError, match="input 'b' is given is not C-contiguous"):
        check_inputs([GOOD[0], np.zeros(6, np.int8)[::2]], FEEDS)
    with pytest.raises(ValueError, match="nothing is cast"):
        check_inputs([GOOD[0].astype(">f4"), GOOD[1]], FEEDS)


def test_random_inputs_have_a_range_that_suits_their_type() -> None:
    records = [tensor_record(dtype, [1, 4000], dtype) for dtype in INPUT_DTYPES]
    quantization = {"scale": [1.0], "zero_point": [0], "axis": None}
    records.append(tensor_record("quantized", [1, 4000], "int32", quantization=quantization))
    feeds = make_feeds(records)
    sets = _random_inputs(records, feeds)
    assert len(sets) == 4
    for arrays in sets:
        check_inputs(arrays, feeds)
        by_name = {record["name"]: array for record, array in zip(records, arrays, strict=True)}
        for name in ("float16", "float32", "float64"):
            assert by_name[name].min() >= 0
            assert 0.9 < by_name[name].max() <= 1
        for name in ("int8", "int16", "uint8", "uint16"):
            limits = np.iinfo(name)
            assert np.ptp(by_name[name].astype(int)) > 0.9 * (int(limits.max) - int(limits.min))
        for name in ("bool", "int32", "int64", "uint32", "uint64"):
            assert set(by_name[name].astype(int).tolist()[0]) == {0, 1}
        assert np.ptp(by_name["quantized"].astype(int)) > 2**31
    for record, *arrays in zip(records, *sets, strict=True):
        assert len({array.tobytes() for array in arrays}) == 4, record


def test_the_first_input_is_as_random_as_if_it_were_the_only_one() -> None:
    """Latencies of models with one input stay comparable over versions."""
    generator = np.random.default_rng(0)
    expected = [generator.integers(0, 255, (1, 2, 2, 3), np.uint8, endpoint=True) for _ in range(4)]
    records = [tensor_record("image", [1, 2, 2, 3], "uint8"), MASK]
    for arrays, array in zip(_random_inputs(records, make_feeds(records)), expected, strict=True):
        np.testing.assert_array_equal(arrays[0], array)


def test_inputs_that_come_again_are_prepared_once() -> None:
    made: list[list[Any]] = []
    prepared = PreparedInputs(FEEDS, lambda arrays: made.append(list(arrays)) or len(made))
    again = [array.copy() for array in GOOD]
    assert [prepared.of(GOOD), prepared.of(again), prepared.of(list(GOOD)), prepared.of(again)] == [1, 2, 1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="takes"):
            prepared.of([GOOD[0].astype(np.float64), GOOD[1]])
        with pytest.raises(ValueError, match="takes 2 inputs"):
            prepared.of(GOOD[:1])
        with pytest.raises(ValueError, match="takes"):
            prepared.of(GOOD[::-1])
    for _ in range(20):  # arrays whose memory is given to the next: none is taken for another
        fresh = [array.copy() for array in GOOD]
        assert made[prepared.of(fresh) - 1][0] is fresh[0]
    assert prepared.of(GOOD) > 20

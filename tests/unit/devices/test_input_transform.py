from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from devices.board.preprocess import FLOAT_DTYPES, INTEGER_DTYPES, InputTransform

NUMBERS = st.floats(-1e3, 1e3, width=32)
HALF = {"scale": [0.5], "zero_point": [3], "axis": None}


def picture(*shape: int) -> np.ndarray[Any, Any]:
    """Bytes without any library's random numbers."""
    return (np.arange(np.prod(shape)) * 37 % 256).astype(np.uint8).reshape(shape)


class Golden(NamedTuple):
    id: str
    transform: InputTransform
    quantized_dtype: str | None
    sha256: str


IMAGENET = InputTransform(
    layout="NCHW",
    scale=(1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
    offset=(-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
)
GOLDENS = [
    Golden("imagenet", IMAGENET, None, "6f72fe312a1fd2b09a16437d696c758dcc8fc2d555fbc379649af91c26eae7bc"),
    Golden(
        "minus-one-to-one",
        InputTransform(scale=1 / 127.5, offset=-1),
        None,
        "946856c022fde3ec2d2247f43accf752f063c9a2685f47a56949a20794ef112f",
    ),
    Golden(
        "float16",
        InputTransform(dtype="float16", scale=1 / 255),
        None,
        "0a852d48379ebd1b6d4d5349add611b4cc6008e65b49a59f92591bc1be90eb14",
    ),
    Golden(
        "int8",
        InputTransform(dtype="int8", offset=-128),
        None,
        "31cc5e3d75f01eb8088572abb17e7880fae43a2057ea888329b4ff94a34abc6d",
    ),
    Golden(
        "quantized",
        InputTransform(scale=1 / 4, offset=-20),
        "int8",
        "aa76db8930fd0a399e38054d9b0c1c3cfd2c514e2b8f91a03b09a846bb266768",
    ),
]


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.id)
def test_golden_bytes(golden: Golden) -> None:
    quantization = HALF if golden.quantized_dtype else None
    result = golden.transform.apply(picture(5, 7, 3), quantization, quantized_dtype=golden.quantized_dtype)
    assert result.shape == ((1, 3, 5, 7) if golden.transform.layout == "NCHW" else (1, 5, 7, 3))
    assert result.flags.c_contiguous
    assert hashlib.sha256(result.tobytes()).hexdigest() == golden.sha256


def test_values_by_hand() -> None:
    sample = np.uint8([[[0, 10, 255]]])
    transform = InputTransform(layout="NCHW", scale=(2.0, 1.0, 0.5), offset=(1.0, -10.0, 0.0))
    np.testing.assert_array_equal(transform.apply(sample), np.float32([1, 0, 127.5]).reshape(1, 3, 1, 1))
    clipped = InputTransform(dtype="int8", scale=0.5).apply(sample)
    np.testing.assert_array_equal(clipped, np.int8([0, 5, 127]).reshape(1, 1, 1, 3))
    real = InputTransform(scale=0.5).apply(sample, HALF, quantized_dtype="uint8")
    np.testing.assert_array_equal(real, np.uint8([3, 13, 255]).reshape(1, 1, 1, 3))
    assert real.dtype == np.uint8
    codes = InputTransform(dtype="uint8").apply(sample, HALF, quantized_dtype="uint8")
    np.testing.assert_array_equal(codes, sample[np.newaxis])
    assert InputTransform(dtype="int8", scale=0.5).apply(np.uint8([5, 7, 9])).tolist() == [[2, 4, 4]]


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3))),
    st.tuples(NUMBERS, NUMBERS, NUMBERS),
    st.one_of(NUMBERS, st.tuples(NUMBERS, NUMBERS, NUMBERS)),
    st.sampled_from(["NHWC", "NCHW"]),
)
def test_each_value_is_scaled_by_its_channel_in_float32(
    sample: np.ndarray[Any, Any], scale: tuple[float, ...], offset: Any, layout: str
) -> None:
    result = InputTransform(layout=layout, scale=scale, offset=offset).apply(sample)
    stored = result[0] if layout == "NHWC" else np.moveaxis(result[0], 0, -1)
    assert stored.shape == sample.shape
    assert result.dtype == np.float32
    for (row, column, channel), value in np.ndenumerate(stored):
        add = np.float32(offset[channel] if isinstance(offset, tuple) else offset)
        exact = np.float32(np.float32(sample[row, column, channel]) * np.float32(scale[channel])) + add
        assert value.tobytes() == np.float32(exact).tobytes()


@given(
    st.sampled_from(FLOAT_DTYPES + INTEGER_DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, max_side=3))
    )
)
def test_scale_one_and_offset_zero_leave_the_bits_alone(sample: np.ndarray[Any, Any]) -> None:
    result = InputTransform(dtype=sample.dtype.name).apply(sample)
    assert result.shape == (1, *sample.shape)
    assert result.dtype == sample.dtype
    assert result.tobytes() == sample.tobytes()


@given(arrays.arrays(np.float32, (2, 3), elements=NUMBERS), st.sampled_from(INTEGER_DTYPES), NUMBERS, NUMBERS)
def test_integers_are_the_rounded_and_clipped_floats(
    sample: np.ndarray[Any, Any], dtype: str, scale: float, offset: float
) -> None:
    floats = InputTransform(scale=scale, offset=offset).apply(sample)
    integers = InputTransform(dtype=dtype, scale=scale, offset=offset).apply(sample)
    limits = np.iinfo(dtype)
    for value, integer in zip(floats.ravel().tolist(), integers.ravel().tolist(), strict=True):
        assert integer == min(max(round(value), int(limits.min)), int(limits.max))


@given(
    st.sampled_from(["NHWC", "NCHW"]),
    st.sampled_from(FLOAT_DTYPES + INTEGER_DTYPES),
    st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=4).map(tuple)),
    st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=4).map(tuple)),
)
def test_a_transform_survives_json(layout: str, dtype: str, scale: Any, offset: Any) -> None:
    transform = InputTransform(layout, dtype, scale, offset)
    values = transform.to_json()
    assert list(values) == ["layout", "dtype", "scale", "offset"]
    assert InputTransform.from_json(json.loads(json.dumps(values))) == transform


def test_keys_that_are_left_out_have_the_values_of_the_class() -> None:
    assert InputTransform.from_json({}) == InputTransform("NHWC", "float32", 1.0, 0.0)
    assert InputTransform.from_json({"scale": [1, 2]}).scale == (1, 2)


class Bad(NamedTuple):
    id: str
    values: dict[str, Any]
    words: str


BAD = [
    Bad("key", {"mean": 1, "std": 2}, "unknown: mean, std.*layout, dtype, scale, offset"),
    Bad("layout", {"layout": "NCWH"}, "layout is 'NCWH'; expected one of: NHWC, NCHW"),
    Bad("layout-list", {"layout": ["NCHW"]}, "layout is"),
    Bad("dtype", {"dtype": "bool"}, "dtype is 'bool'; expected one of: float16"),
    Bad("text", {"scale": "1/255"}, "scale is '1/255'; expected a number"),
    Bad("truth", {"scale": True}, "scale is True"),
    Bad("nan", {"scale": float("nan")}, "scale is nan"),
    Bad("infinite", {"offset": [0, float("inf")]}, "offset is .*inf"),
    Bad("too-large", {"scale": 1e39}, "that float32 can hold"),
    Bad("whole-too-large", {"scale": 10**400}, "that float32 can hold"),
    Bad("empty", {"scale": []}, r"scale is \(\)"),
    Bad("nested", {"offset": [[1]]}, "offset is"),
    Bad("none", {"scale": None}, "scale is None"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_bad_transforms_are_refused(bad: Bad) -> None:
    with pytest.raises(ValueError, match=bad.words):
        InputTransform.from_json(bad.values)


class Misfit(NamedTuple):
    id: str
    transform: InputTransform
    sample: np.ndarray[Any, Any]
    words: str


MISFITS = [
    Misfit("rank", InputTransform(layout="NCHW"), np.zeros((4, 4)), r"shape \(4, 4\); the layout NCHW expects"),
    Misfit("scale", InputTransform(scale=(1.0, 2.0)), np.zeros((4, 4, 3)), "scale has 2 numbers, but the sample"),
    Misfit("offset", InputTransform(offset=(1.0,)), np.zeros((4, 4, 3)), "offset has 1 numbers, but the sample"),
    Misfit("number", InputTransform(scale=(2.0,)), np.float32(1), r"the shape \(\); expected one number"),
    Misfit("nan", InputTransform(dtype="int8"), np.float32([np.nan]), "NaN"),
]


@pytest.mark.parametrize("misfit", MISFITS, ids=lambda misfit: misfit.id)
def test_samples_that_do_not_fit_are_refused(misfit: Misfit) -> None:
    with pytest.raises(ValueError, match=misfit.words):
        misfit.transform.apply(np.asarray(misfit.sample))


def test_quantizing_needs_the_type_of_the_input() -> None:
    with pytest.raises(ValueError, match="without quantized_dtype"):
        InputTransform().apply(picture(2, 2, 3), HALF)
    with pytest.raises(ValueError, match="NaN"):
        InputTransform().apply(np.float32([np.nan]), HALF, quantized_dtype="int8")


def test_what_float16_can_not_hold_is_infinite() -> None:
    assert InputTransform(dtype="float16").apply(np.float32([1e6, -1e6])).tolist() == [[np.inf, -np.inf]]

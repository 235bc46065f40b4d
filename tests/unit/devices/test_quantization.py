from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.board.quantization import dequantize, quantization_record, quantize, to_integers

DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
SCALES = st.floats(2.0**-20, 2.0**10, width=32)


def record(scale: float, zero_point: int) -> dict[str, Any]:
    return {"scale": [scale], "zero_point": [zero_point], "axis": None}


def test_values_by_hand() -> None:
    half = record(0.5, 3)
    integers = np.array([-128, 3, 4, 127], np.int8)
    np.testing.assert_array_equal(dequantize(integers, half), np.float32([-65.5, 0.0, 0.5, 62.0]))
    values = np.float32([0.25, 0.75, -0.25, 1e9, -np.inf])
    np.testing.assert_array_equal(quantize(values, half, "int8"), np.int8([3, 5, 3, 127, -128]))
    assert dequantize(integers, half).dtype == np.float32


def test_a_scale_for_each_index_of_an_axis() -> None:
    quantization = {"scale": [1.0, 0.5, 2.0], "zero_point": [0, 1, -1], "axis": 1}
    integers = np.array([[[2], [2], [2]], [[-4], [-4], [-4]]], np.int8)
    real = np.float32([[[2], [0.5], [6]], [[-4], [-2.5], [-6]]])
    np.testing.assert_array_equal(dequantize(integers, quantization), real)
    np.testing.assert_array_equal(quantize(real, quantization, "int8"), integers)


@given(st.integers(-128, 127), SCALES, st.integers(-128, 127))
def test_an_integer_survives_its_real_value(integer: int, scale: float, zero_point: int) -> None:
    quantization = record(scale, zero_point)
    array = np.array([integer], np.int8)
    assert quantize(dequantize(array, quantization), quantization, "int8") == array


@given(st.floats(-1e4, 1e4, width=32), SCALES, st.integers(-128, 127))
def test_the_nearest_integer_is_taken(value: float, scale: float, zero_point: int) -> None:
    quantization = record(scale, zero_point)
    integer = int(quantize(np.float32([value]), quantization, "int8")[0])
    distance = abs(scale * (integer - zero_point) - value)
    for other in (max(integer - 1, -128), min(integer + 1, 127)):
        assert distance <= abs(scale * (other - zero_point) - value) + 1e-6 * (abs(value) + scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_each_range_are_kept(dtype: str) -> None:
    limits = np.iinfo(dtype)
    ends = to_integers(np.array([-np.inf, -1e30, 1e30, np.inf], np.float32), dtype)
    assert ends.dtype == dtype
    assert ends[:2].tolist() == [limits.min] * 2
    # float64 holds no more than 53 bits, so that the end of a range of 64 bits is a little nearer.
    assert all(0 <= limits.max - end <= (2**11 if limits.bits == 64 else 0) for end in ends[2:].tolist())


@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(-(2**63), 2**64 - 1))
def test_whole_numbers_are_clipped_exactly(dtype: str, wanted: str, number: int) -> None:
    own, limits = np.iinfo(dtype), np.iinfo(wanted)
    number = min(max(number, int(own.min)), int(own.max))
    converted = to_integers(np.array([number], dtype), wanted)
    assert converted.dtype == wanted
    assert converted.tolist() == [min(max(number, int(limits.min)), int(limits.max))]


def test_halves_go_to_the_even_one_and_a_nan_is_refused() -> None:
    assert to_integers(np.float32([0.5, 1.5, 2.5, -0.5, -1.5]), "int8").tolist() == [0, 2, 2, 0, -2]
    assert to_integers(np.array([True, False]), "uint8").tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"not a number \(NaN\), which int8"):
        to_integers(np.float32([0, np.nan]), "int8")


def test_records_of_what_runtimes_tell() -> None:
    assert quantization_record(np.float32([]), np.int32([]), 0) is None
    assert quantization_record(np.float32([0.5]), np.int32([3]), 0) == record(0.5, 3)
    assert quantization_record(np.float32([0.5, 1]), np.int32([7]), 3) == {
        "scale": [0.5, 1.0],
        "zero_point": [7, 7],
        "axis": 3,
    }

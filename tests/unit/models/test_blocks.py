"""Rounding of channels and the strides of small images."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.blocks import default_early_stride, early_strides, make_divisible

CHANNELS = st.floats(min_value=0.1, max_value=5000)
DIVISORS = st.integers(min_value=1, max_value=64)


@given(value=CHANNELS, divisor=DIVISORS)
def test_make_divisible_gives_a_multiple_near_the_value(value: float, divisor: int) -> None:
    result = make_divisible(value, divisor)
    assert result % divisor == 0
    assert result >= divisor
    assert result >= 0.9 * value
    assert result == divisor or result < value + divisor


@given(value=CHANNELS, other=CHANNELS, divisor=DIVISORS)
def test_make_divisible_never_gives_less_for_more(value: float, other: float, divisor: int) -> None:
    low, high = sorted((value, other))
    assert make_divisible(low, divisor) <= make_divisible(high, divisor)


@given(multiple=st.integers(min_value=1, max_value=500), divisor=DIVISORS)
def test_make_divisible_leaves_multiples_alone(multiple: int, divisor: int) -> None:
    assert make_divisible(multiple * divisor, divisor) == multiple * divisor


@given(value=CHANNELS, multiple=st.integers(min_value=1, max_value=40))
def test_make_divisible_keeps_the_smallest_result(value: float, multiple: int) -> None:
    assert make_divisible(value, 8, min_value=8 * multiple) >= 8 * multiple


@dataclass(frozen=True)
class DivisibleCase:
    id: str
    value: float
    expected: int


DIVISIBLE = [
    DivisibleCase("half goes up", 12, 16),
    DivisibleCase("down by less than a tenth", 17, 16),
    DivisibleCase("down by more than a tenth goes up", 0.35 * 32, 16),
    DivisibleCase("never zero", 0.1, 8),
    DivisibleCase("1.4 * 160 despite floating point", 1.4 * 160, 224),
    DivisibleCase("1.3 * 64", 1.3 * 64, 80),
    DivisibleCase("1.3 * 96", 1.3 * 96, 128),
]


@pytest.mark.parametrize("case", DIVISIBLE, ids=lambda case: case.id)
def test_make_divisible_examples(case: DivisibleCase) -> None:
    assert make_divisible(case.value) == case.expected


@dataclass(frozen=True)
class StrideCase:
    id: str
    height: int
    width: int
    early_stride: bool
    strides: tuple[int, int]


STRIDES = [
    StrideCase("paper at 224", 224, 224, True, (2, 2)),
    StrideCase("paper at 32", 32, 32, True, (2, 2)),
    StrideCase("32", 32, 32, False, (1, 1)),
    StrideCase("48", 48, 48, False, (1, 1)),
    StrideCase("49", 49, 49, False, (1, 2)),
    StrideCase("64", 64, 64, False, (1, 2)),
    StrideCase("the shorter side decides", 200, 40, False, (1, 1)),
]


@pytest.mark.parametrize("case", STRIDES, ids=lambda case: case.id)
def test_early_strides(case: StrideCase) -> None:
    assert early_strides(case.height, case.width, early_stride=case.early_stride) == case.strides


@dataclass(frozen=True)
class DefaultCase:
    id: str
    height: int
    width: int
    early_stride: bool


DEFAULTS = [
    DefaultCase("32", 32, 32, False),
    DefaultCase("95", 95, 95, False),
    DefaultCase("96", 96, 96, True),
    DefaultCase("one short side", 95, 224, False),
]


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.id)
def test_default_early_stride(case: DefaultCase) -> None:
    assert default_early_stride(case.height, case.width) is case.early_stride

"""Ranges of activations, against what the values themselves say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import DataError, StageError
from pipeline.quantization.ranges import (
    BINS,
    RANGE_METHODS,
    Observation,
    RangeMethod,
    estimate,
    observe,
    quantized,
    squared_error,
)

Rows = npt.NDArray[np.float64]


def observed(rows: Rows) -> Observation:
    def activations() -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        for row in rows:
            yield {"tensor": row}

    return observe(activations)["tensor"]


def normal_with_outliers(*, samples: int = 20, outlier: float = 60.0) -> Rows:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(samples, 4096))
    rows[0, 0] = outlier
    return rows


@dataclass(frozen=True)
class Case:
    id: str
    rows: Rows


GENERATOR = np.random.default_rng(1)
CASES = [
    Case("normal", GENERATOR.normal(size=(8, 4096))),
    Case("positive", np.abs(GENERATOR.normal(size=(8, 4096)))),
    Case("negative", -np.abs(GENERATOR.normal(size=(8, 4096)))),
    Case("beyond-zero", 5 + GENERATOR.random((8, 4096))),
    Case("lopsided", GENERATOR.exponential(size=(8, 4096)) - 0.2),
    Case("constant", np.full((8, 16), 3.0)),
    Case("zero", np.zeros((8, 16))),
    Case("two-values", np.repeat([[0.0, 6.0]], 8, axis=0)),
]


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_zero_lies_within_and_nothing_beyond_what_was_seen(case: Case, method: RangeMethod) -> None:
    low, high = estimate(observed(case.rows), method)
    assert low <= 0 <= high
    assert low < high
    if case.id != "zero":
        assert min(case.rows.min(), 0) <= low
        assert high <= max(case.rows.max(), 0)


def test_the_histogram_counts_every_value() -> None:
    rows = normal_with_outliers()
    found = observed(rows)
    assert found.counts.sum() == rows.size
    expected, _ = np.histogram(rows, bins=BINS, range=(rows.min(), rows.max()))
    assert np.abs(found.counts - expected).sum() <= 4, "values on an edge may fall to either side"


def test_large_tensors_give_a_part_of_their_values_and_exact_bounds() -> None:
    rows = np.zeros((2, 300_001))
    rows[0, 7], rows[1, 11] = -3.0, 9.0
    found = observed(rows)
    assert (found.low, found.high) == (-3.0, 9.0)
    assert 100_000 < found.counts.sum() <= 2 * 65_536


def test_min_max_and_the_average() -> None:
    rows = np.array([[-1.0, 2.0], [-3.0, 4.0]])
    assert estimate(observed(rows), "min_max") == (-3.0, 4.0)
    assert estimate(observed(rows), "moving_average") == (-2.0, 3.0)
    assert estimate(observed(rows[::-1]), "moving_average") == (-2.0, 3.0), "the order is of no weight"


def test_a_few_samples_that_are_far_out_as_a_whole_are_left_out() -> None:
    """Such as an image that drives every value of a layer up: neither percentiles of values nor squares leave it."""
    rows = np.random.default_rng(5).normal(size=(200, 5000))
    rows[7], rows[90] = rows[7] * 30, rows[90] * 12  # of 200 samples one in a hundred
    found = observed(rows)
    low, high = estimate(found, "samples")
    usual = np.delete(np.abs(rows), [7, 90], axis=0).max()
    assert 3.0 < high <= usual
    assert -usual <= low < -3.0
    for method in ("min_max", "percentile", "mse"):
        assert estimate(found, method)[1] > 3 * usual, method


def test_samples_that_are_alike_all_count() -> None:
    rows = np.tile(np.array([[-1.0, 2.0]]), (64, 1))
    assert estimate(observed(rows), "samples") == (-1.0, 2.0)


def test_the_percentile_is_that_of_the_values() -> None:
    rows = np.random.default_rng(2).normal(size=(50, 10_000))
    low, high = estimate(observed(rows), "percentile")
    width = (rows.max() - rows.min()) / BINS
    assert low == pytest.approx(np.quantile(rows, 0.00005), abs=1.5 * width)
    assert high == pytest.approx(np.quantile(rows, 0.99995), abs=1.5 * width)


@pytest.mark.parametrize("method", ["moving_average", "percentile", "entropy", "mse"])
def test_an_outlier_does_not_stretch_the_range(method: RangeMethod) -> None:
    rows = normal_with_outliers(samples=200)
    found = observed(rows)
    assert estimate(found, "min_max")[1] == 60.0
    bounds = estimate(found, method)
    assert bounds[1] < (50 if method == "entropy" else 31)
    if method in ("entropy", "mse"):
        assert squared_error(found, bounds) < squared_error(found, estimate(found, "min_max"))


def test_the_zeros_of_a_rectifier_do_not_shrink_the_range() -> None:
    values = np.random.default_rng(4).normal(size=(20, 20_000))
    whole, rectified = (estimate(observed(rows), "entropy")[1] for rows in (np.abs(values), np.maximum(values, 0)))
    assert rectified == pytest.approx(whole, rel=0.15)
    assert rectified > 2.5


def test_mse_finds_the_least_error_of_a_fine_grid() -> None:
    found = observed(np.random.default_rng(3).laplace(size=(10, 20_000)))
    error = squared_error(found, estimate(found, "mse"))
    fractions = np.linspace(0.2, 1.0, 33)
    grid = [squared_error(found, (found.low * one, found.high * other)) for one in fractions for other in fractions]
    assert error <= 1.02 * min(grid)


@given(rows=arrays.arrays(np.float64, (3, 40), elements=st.floats(-1e4, 1e4, width=32)))
def test_mse_is_never_worse_than_all_of_the_values(rows: Rows) -> None:
    found = observed(rows)
    whole = estimate(found, "min_max")
    assert squared_error(found, estimate(found, "mse")) <= squared_error(found, whole) * (1 + 1e-9) + 1e-12


@given(
    values=arrays.arrays(np.float64, 20, elements=st.floats(-1e3, 1e3)),
    low=st.floats(-1e3, 0),
    high=st.floats(0.001, 1e3),
)
def test_rounding_to_levels(values: Rows, low: float, high: float) -> None:
    step = (high - low) / 255
    once = quantized(values, (low, high))
    np.testing.assert_allclose(quantized(once, (low, high)), once, atol=step * 1e-6)
    assert quantized(np.zeros(1), (low, high))[0] == 0.0
    within = (values >= low + step) & (values <= high - step)
    assert np.all(np.abs(once - values)[within] <= step * 0.5001)
    assert len(np.unique(quantized(np.linspace(low, high, 4000), (low, high)))) <= 256


def test_no_samples_and_bad_values_are_errors() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        observe(lambda: iter(()))
    with pytest.raises(StageError, match="tensor is NaN or infinite in calibration sample 1"):
        observed(np.array([[0.0, 1.0], [0.0, np.nan]]))
    with pytest.raises(StageError, match="infinite"):
        observed(np.array([[0.0, np.inf]]))

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.quantization.calibration_set import draw_calibration_set

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(lambda values: np.array(values, dtype=np.int64))


@given(LABELS, st.integers(0, 2**32), st.data())
@settings(max_examples=100, deadline=None)
def test_the_draw_is_balanced_sorted_and_without_repetition(labels: np.ndarray, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels)))

    drawn = draw_calibration_set(labels, count, seed)

    assert drawn.dtype == np.int64
    assert drawn.shape == (count,)
    assert np.all(np.diff(drawn) > 0)
    assert 0 <= drawn[0] <= drawn[-1] < len(labels)
    available = np.bincount(labels, minlength=6)
    taken = np.bincount(labels[drawn], minlength=6)
    most = taken.max()
    for label in range(6):
        assert taken[label] >= most - 1 or taken[label] == available[label]


def test_the_seed_decides() -> None:
    labels = np.arange(100) % 4

    assert np.array_equal(draw_calibration_set(labels, 10, 0), draw_calibration_set(labels, 10, 0))
    assert not np.array_equal(draw_calibration_set(labels, 10, 0), draw_calibration_set(labels, 10, 1))


def test_a_few_images_come_from_different_classes() -> None:
    labels = np.arange(1000) % 10

    assert len(set(labels[draw_calibration_set(labels, 5, 0)])) == 5


@pytest.mark.parametrize("count", [-1, 0, 5], ids=str)
def test_a_count_out_of_range_is_an_error(count: int) -> None:
    with pytest.raises(DataError, match=f"calibration set of {count} images from 4: expected 1 to 4"):
        draw_calibration_set(np.array([0, 0, 1, 1]), count, 0)


@pytest.mark.parametrize("labels", [np.zeros((2, 2), dtype=np.int64), np.zeros(4)], ids=["two_axes", "floats"])
def test_labels_of_another_form_are_an_error(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected whole numbers"):
        draw_calibration_set(labels, 1, 0)

"""The map of the confidence: what it refuses, what it does, how it travels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.board.confidence import CONFIDENCE_FILE, ConfidenceMap, read_confidence_map, top_class

MAP = ConfidenceMap((0.2, 0.6, 0.9), (0.1, 0.5, 0.5))


def test_between_its_points_it_is_linear_and_outside_constant() -> None:
    found = MAP.apply(np.array([0.0, 0.2, 0.4, 0.6, 0.75, 1.0]))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.3, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (((), ()), "0 confidences"),
        (((0.1, 0.2), (0.5,)), "2 confidences have 1"),
        (((0.2, 0.2), (0.5, 0.6)), "do not increase"),
        (((0.5, 1.2), (0.5, 0.6)), "do not increase strictly from 0 to 1"),
        (((0.5, 0.6), (0.6, 0.5)), "decrease"),
        (((0.5, 0.6), (0.6, 1.0)), "not between 0 and 1"),
        (((0.5, float("nan")), (0.5, 0.6)), "do not increase"),
        (((0.5, 0.6), (0.5, float("nan"))), "not between"),
    ],
)
def test_refused(points: tuple[tuple[float, ...], tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfidenceMap(*points)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True), st.data())
def test_it_is_monotone_and_survives_json(inputs: list[float], data: st.DataObject) -> None:
    outputs = data.draw(st.lists(st.floats(1e-9, 1 - 1e-9), min_size=len(inputs), max_size=len(inputs)))
    made = ConfidenceMap(tuple(sorted(inputs)), tuple(sorted(outputs)))
    assert ConfidenceMap.from_json(json.loads(json.dumps(made.to_json()))) == made
    values = made.apply(np.linspace(0, 1, 101))
    assert (np.diff(values) >= -1e-12).all()
    assert values.min() >= min(outputs) - 1e-12
    assert values.max() <= max(outputs) + 1e-12


@pytest.mark.parametrize(
    "record", [[], {"schema_version": 2}, {"schema_version": 1}, {"schema_version": 1, "confidence": 3}]
)
def test_a_record_of_another_form(record: object) -> None:
    with pytest.raises(ValueError, match="the map of confidences"):
        ConfidenceMap.from_json(record)  # type: ignore[arg-type]


def test_it_lies_beside_the_model(tmp_path: Path) -> None:
    assert read_confidence_map(str(tmp_path)) is None
    (tmp_path / CONFIDENCE_FILE).write_text(json.dumps(MAP.to_json()))
    assert read_confidence_map(str(tmp_path)) == MAP
    (tmp_path / CONFIDENCE_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"calibration\.json can't be used"):
        read_confidence_map(str(tmp_path))


def test_the_top_class_and_the_confidence_in_it() -> None:
    logits = np.array([[0.0, np.log(3.0)], [2.0, 2.0], [1000.0, -1000.0]], np.float32)
    top, confidence = top_class(logits, None)
    np.testing.assert_array_equal(top, [1, 0, 0])
    np.testing.assert_allclose(confidence, [0.75, 0.5, 1.0])
    again, mapped = top_class(logits, MAP)
    np.testing.assert_array_equal(again, top)
    np.testing.assert_allclose(mapped, [0.5, 0.4, 0.5])

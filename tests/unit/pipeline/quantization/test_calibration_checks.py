"""What speaks against a calibration set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.quantization.calibration_checks import calibration_doubts, color_distance, neighbor_correlation

Pixels = npt.NDArray[np.uint8]
LABELS = np.arange(64) % 4


def pictures(*, seed: int, count: int = 64, brightness: float = 120.0) -> Pixels:
    """Smooth images: random waves."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    waves = [
        np.sin(generator.uniform(0.1, 0.4) * x + generator.uniform(0.1, 0.4) * y + generator.uniform(0, 6))
        for _ in range(count)
    ]
    levels = brightness + 50 * np.stack(waves) + generator.normal(size=(count, 1, 1)) * 15
    return np.repeat(np.clip(levels, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def noise(*, seed: int, count: int = 64) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)


@dataclass(frozen=True)
class Case:
    id: str
    rows: npt.NDArray[Any]
    words: str | None
    labels: npt.NDArray[np.int64] | None = None
    test: npt.NDArray[Any] | None = None


TEST = pictures(seed=1)
CASES = [
    Case("good", pictures(seed=2), None, LABELS),
    Case("no-labels", pictures(seed=2), None),
    Case("noise", noise(seed=2), "neighbouring pixels correlate by", LABELS, noise(seed=3)),
    Case("two-shared", np.concatenate([pictures(seed=2)[2:], TEST[:2]]), "2 of the 64 calibration samples", LABELS),
    Case("unbalanced", pictures(seed=2), "10 samples of one class and 34", np.repeat(np.arange(4), (10, 10, 10, 34))),
    Case("class-missing", pictures(seed=2), "0 samples of one class and 22", np.arange(64) % 3),
    Case("dark", pictures(seed=2, brightness=60), "standard deviations", LABELS),
    Case("vectors", np.random.default_rng(0).normal(size=(64, 8)), None, LABELS, np.zeros((5, 8))),
    Case("one-color", np.full((64, 16, 16, 3), 120, np.uint8), None, LABELS),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_doubts(case: Case) -> None:
    test = TEST if case.test is None else case.test
    found = calibration_doubts(case.rows, case.labels, num_classes=4, test=test)
    if case.words is None:
        assert found["warnings"] == []
    else:
        assert len(found["warnings"]) == 1
        assert case.words in found["warnings"][0]


def test_fewer_samples_than_classes_are_no_imbalance() -> None:
    labels = np.arange(64)
    found = calibration_doubts(pictures(seed=2), labels, num_classes=1000, test=TEST)
    assert found["warnings"] == []
    assert (found["smallest_class"], found["largest_class"]) == (0, 1)


def test_the_numbers_are_in_the_result() -> None:
    found = calibration_doubts(pictures(seed=2), LABELS, num_classes=4, test=TEST)
    assert found["in_test_split"] == 0
    assert (found["smallest_class"], found["largest_class"]) == (16, 16)
    assert found["neighbor_correlation"] > 0.8
    assert 0 <= found["distance_to_test"] < 0.5


def test_noise_and_pictures_are_far_apart() -> None:
    assert abs(neighbor_correlation(noise(seed=0)) or 1) < 0.05
    assert (neighbor_correlation(pictures(seed=0)) or 0) > 0.8
    assert neighbor_correlation(np.zeros((2, 4, 4, 3), np.uint8)) is None
    assert neighbor_correlation(np.zeros((2, 4, 1, 3), np.uint8)) is None


def test_the_distance_has_the_unit_of_deviations() -> None:
    generator = np.random.default_rng(0)
    means = generator.normal(100, 10, size=200)
    one = np.repeat(means.round().astype(np.uint8), 4 * 4 * 3).reshape(200, 4, 4, 3)
    assert color_distance(one, one + np.uint8(20)) == pytest.approx(20 / means.std(), rel=0.05)
    assert color_distance(one, one[:1]) is None

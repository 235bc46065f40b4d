"""Intervals and tests by published examples, by exact coverage, and by what they say."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from pipeline.metrics import accuracy_interval, expected_calibration_error
from pipeline.quantization.comparison import (
    AccuracyDrop,
    bootstrap_interval,
    compare_accuracy,
    compare_confidence,
    expected_drop,
    mcnemar,
    score_interval,
)


def answers(lost: int, won: int, *, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([True] * (lost + both) + [False] * (won + neither))
    second = np.array([False] * lost + [True] * (both + won) + [False] * neither)
    return first, second


def drop_of(lost: int, won: int, count: int) -> AccuracyDrop:
    return compare_accuracy(*answers(lost, won, both=count - lost - won, neither=0))


def test_counts_and_accuracies() -> None:
    found = compare_accuracy(*answers(3, 1, both=10, neither=6))
    assert (found.lost, found.won, found.count) == (3, 1, 20)
    assert (found.float_accuracy, found.int8_accuracy) == (13 / 20, 11 / 20)
    assert found.drop == 0.1


def test_published_example() -> None:
    # Bentur et al.: 1 and 7 discordant of 21; the interval, the exact and the mid-p value as Fagerland et al. give.
    low, high = score_interval(7, 1, 21)
    assert (round(low, 3), round(high, 3)) == (0.026, 0.517)
    assert mcnemar(7, 1) == pytest.approx((0.0703, 0.0391), abs=5e-5)


@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_test_is_a_sign_test(lost: int, won: int) -> None:
    p_value, mid_p_value = mcnemar(lost, won)
    if lost + won:
        assert p_value == pytest.approx(binomtest(lost, lost + won).pvalue)
    assert 0 < mid_p_value <= p_value <= 1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 400))
def test_intervals_mirror_and_hold_the_drop(lost: int, won: int, equal: int) -> None:
    count = max(1, lost + won + equal)
    low, high = score_interval(lost, won, count)
    assert -1 <= low <= (lost - won) / count <= high <= 1
    assert score_interval(won, lost, count) == pytest.approx((-high, -low), abs=1e-9)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """A sample of images and the true shares of lost and won ones."""

    count: int
    lost: float
    won: float


COVERAGES = [
    Coverage(50, 0.05, 0.05),
    Coverage(50, 0.2, 0.1),
    Coverage(100, 0.01, 0.0),
    Coverage(100, 0.03, 0.01),
    Coverage(200, 0.015, 0.005),
    Coverage(200, 0.1, 0.06),
]


def exact_coverage(case: Coverage, interval: object) -> float:
    """How likely the interval holds the true drop, by going through all samples that are likely at all."""
    shares = [case.lost, case.won, 1 - case.lost - case.won]
    lost, won = np.indices((case.count + 1, case.count + 1)).reshape(2, -1)
    cells = np.stack([lost, won, case.count - lost - won], axis=1)[lost + won <= case.count]
    likely = multinomial.pmf(cells, case.count, shares)
    covered = 0.0
    for (lost, won, _), share in zip(cells[likely > 1e-5].tolist(), likely[likely > 1e-5], strict=True):
        low, high = interval(lost, won, case.count)  # type: ignore[operator]
        covered += float(share) * (low <= case.lost - case.won <= high)
    return covered


@pytest.mark.parametrize("case", COVERAGES, ids=lambda case: f"{case.count}-{case.lost}-{case.won}")
def test_score_interval_covers(case: Coverage) -> None:
    assert exact_coverage(case, score_interval) >= 0.935


def test_bootstrap_covers_too_little_with_few_discordant_images() -> None:
    """Why verdicts do not use it."""
    assert exact_coverage(Coverage(100, 0.01, 0.0), bootstrap_interval) < 0.8


@pytest.mark.parametrize("count", [2000, 20000])
def test_intervals_agree_with_many_discordant_images(count: int) -> None:
    found = drop_of(count // 20, count // 25, count)
    width = found.interval[1] - found.interval[0]
    assert found.bootstrap_interval == pytest.approx(found.interval, abs=0.05 * width)


def test_same_seed_same_interval() -> None:
    assert bootstrap_interval(9, 4, 500, seed=1) == bootstrap_interval(9, 4, 500, seed=1)
    assert len({bootstrap_interval(9000, 4000, 500_000, seed=seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("count", [1, 7, 300])
def test_no_discordant_image(count: int) -> None:
    found = drop_of(0, 0, count)
    assert (found.drop, found.p_value, found.mid_p_value, found.bootstrap_interval) == (0.0, 1.0, 1.0, (0.0, 0.0))
    high = accuracy_interval(0, count)[1]
    assert found.interval == pytest.approx((-high, high), abs=1e-9)


def test_one_image_lost() -> None:
    found = drop_of(1, 0, 1)
    assert found.interval[0] < 0
    assert found.interval[1] == 1.0
    assert found.verdict(0.005) == "unclear"


@pytest.mark.parametrize("right", [True, False])
def test_all_answers_alike(right: bool) -> None:
    found = compare_accuracy(np.full(1000, right), np.full(1000, right))
    assert found.float_accuracy == found.int8_accuracy == float(right)
    assert found.verdict(0.01) == "held"


def test_everything_lost() -> None:
    found = drop_of(50, 0, 50)
    assert found.verdict(0.05) == "broken"
    assert found.interval[1] == 1.0
    assert found.p_value < 1e-9


def test_verdicts_and_sentences() -> None:
    held, broken, unclear = drop_of(20, 20, 20000), drop_of(400, 100, 10000), drop_of(20, 12, 1800)
    verdicts = [(each.verdict(0.005), each.sentence(0.005)) for each in (held, broken, unclear)]
    assert [verdict for verdict, _ in verdicts] == ["held", "broken", "unclear"]
    assert verdicts[0][1] == (
        "The accuracy holds: a drop of 0.00 points (95 % interval of the drop -0.06 to 0.06) is within the limit of "
        "0.50 points."
    )
    assert verdicts[1][1].startswith("The accuracy does not hold: a drop of 3.00 points")
    assert "The sample is too small to tell" in verdicts[2][1]
    assert f"about {unclear.images_needed(0.005):,} would do" in verdicts[2][1]
    assert drop_of(1, 3, 1000).summary() == (
        "On 1,000 images float is right in 99.70 % and int8 in 99.90 %: a gain of 0.20 points (95 % interval of the "
        "drop -0.79 to 0.29; 1 lost, 3 won, McNemar p = 0.62)."
    )


@dataclasses.dataclass(frozen=True)
class Power:
    """True shares of lost and won images, and a limit."""

    lost: float
    won: float
    max_drop: float


@pytest.mark.parametrize(
    "case",
    [Power(0.02, 0.02, 0.005), Power(0.03, 0.028, 0.01), Power(0.06, 0.03, 0.01), Power(0.05, 0.03, 0.0)],
    ids=lambda case: f"{case.lost}-{case.won}-{case.max_drop}",
)
def test_images_needed_give_the_power_promised(case: Power) -> None:
    needed = drop_of(round(10000 * case.lost), round(10000 * case.won), 10000).images_needed(case.max_drop)
    assert needed is not None
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(needed, [case.lost, case.won, 1 - case.lost - case.won], 600)
    settled = 0
    for lost, won, _equal in drawn.tolist():
        low, high = score_interval(lost, won, needed)
        settled += high <= case.max_drop if case.lost - case.won < case.max_drop else low > case.max_drop
    assert settled / 600 == pytest.approx(0.8, abs=0.06)


def test_images_needed_without_discordance_settle_the_limit_exactly() -> None:
    needed = drop_of(0, 0, 20).images_needed(0.01)
    assert needed is not None
    assert drop_of(0, 0, needed).verdict(0.01) == "held"
    assert drop_of(0, 0, needed - 1).verdict(0.01) == "unclear"


def test_drop_at_the_limit_is_never_settled() -> None:
    found = drop_of(30, 10, 1000)
    assert found.images_needed(0.02) is None
    assert "no number of images" in found.sentence(0.02)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros(0, bool), np.zeros(0, bool)),
        (np.zeros(2, bool), np.zeros(3, bool)),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool)),
        (np.zeros(2, np.int64), np.zeros(2, bool)),
    ],
    ids=["empty", "lengths", "dimensions", "type"],
)
def test_refused(first: np.ndarray, second: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        compare_accuracy(first, second)


def drawn_logits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return logits.astype(np.float32), np.minimum(labels, 4)


def test_confidence_that_int8_sharpens() -> None:
    logits, labels = drawn_logits(1000, 0)
    found = compare_confidence(logits, 2 * logits, labels)
    assert found.float_ece == pytest.approx(expected_calibration_error(logits, labels))
    assert found.int8_ece == pytest.approx(expected_calibration_error(2 * logits, labels))
    assert found.change == pytest.approx(found.int8_ece - found.float_ece)
    assert found.interval[0] < found.change < found.interval[1]
    assert found.verdict(0.005) == "broken"
    assert "does not hold: the calibration error goes from" in found.sentence(0.005)


def test_confidence_that_int8_leaves() -> None:
    logits, labels = drawn_logits(1000, 1)
    rounded = np.round(logits * 100) / 100
    assert compare_confidence(logits, rounded, labels).verdict(0.005) == "held"
    few = compare_confidence(logits[:40], logits[:40] * 1.3, labels[:40])
    assert few.verdict(0.005) == "unclear"
    assert "too small to tell" in few.sentence(0.005)


def test_confidence_of_other_shapes_refused() -> None:
    logits, labels = drawn_logits(10, 2)
    with pytest.raises(ValueError, match="expected the same"):
        compare_confidence(logits, logits[:5], labels)


def answers_of_a_noisy_copy(seed: int, *, images: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that know how sure they are, what a copy with noise answers, and labels drawn as the logits say."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(images, 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    noisy = logits + generator.normal(scale=0.3, size=logits.shape)
    return logits.astype(np.float32), noisy.argmax(axis=1), labels


def test_the_expected_drop_is_the_mean_of_those_counted_with_a_fraction_of_the_noise() -> None:
    counted, expected = [], []
    for seed in range(60):
        logits, answers, labels = answers_of_a_noisy_copy(seed)
        drop = compare_accuracy(logits.argmax(axis=1) == labels, answers == labels)
        counted.append(drop.drop)
        expected.append(expected_drop(logits, answers, labels))
    error = np.std(counted) / np.sqrt(len(counted))
    assert np.mean(expected) == pytest.approx(np.mean(counted), abs=3 * error)
    assert np.mean(expected) > 3 * error, "there is a drop to be told"
    assert np.std(expected) < 0.25 * np.std(counted)


def test_a_network_that_is_too_sure_does_not_exaggerate() -> None:
    logits, answers, labels = answers_of_a_noisy_copy(0, images=20_000)
    assert expected_drop(5 * logits, answers, labels) == pytest.approx(expected_drop(logits, answers, labels), abs=1e-6)


def test_the_same_answers_cost_nothing() -> None:
    logits, _, labels = answers_of_a_noisy_copy(0)
    assert expected_drop(logits, logits.argmax(axis=1), labels) == 0.0


class Held(NamedTuple):
    lost: int
    won: int
    expected: float | None
    holds: bool


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Held(4, 0, None, True), id="counted, within"),
        pytest.param(Held(6, 0, None, False), id="counted, beyond"),
        pytest.param(Held(30, 20, 0.002, True), id="one point counted by chance, little expected"),
        pytest.param(Held(20, 20, 0.006, False), id="none counted by chance, more expected"),
        pytest.param(Held(40, 10, 0.002, False), id="three points are proved"),
    ],
)
def test_a_limit_is_held_by_the_estimate_unless_the_count_proves_otherwise(case: Held) -> None:
    drop = dataclasses.replace(drop_of(case.lost, case.won, 1000), expected=case.expected)
    assert drop.estimate == (drop.drop if case.expected is None else case.expected)
    assert drop.holds(0.005) is case.holds


@pytest.mark.parametrize(("images", "answers", "labels"), [(0, 0, 0), (2, 1, 2), (2, 2, 3)])
def test_an_answer_and_a_label_for_each_image(images: int, answers: int, labels: int) -> None:
    with pytest.raises(ValueError, match="one answer and one label"):
        expected_drop(np.zeros((images, 3), np.float32), np.zeros(answers, np.int64), np.zeros(labels, np.int64))

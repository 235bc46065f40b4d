from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.quality import as_logits, loss_against, quality

NOTHING = np.empty((0, 0))


def judge(metric: str, outputs: object, **given_: object) -> dict[str, object]:
    arguments: dict[str, object] = {"kind": "logits", "inputs": NOTHING, "labels": None, "targets": None}
    return quality(metric, np.asarray(outputs), **(arguments | given_))  # type: ignore[arg-type]


def test_without_a_metric_nothing_is_judged() -> None:
    assert quality(None, np.zeros((2, 3)), kind="values", inputs=NOTHING, labels=None, targets=None) == {}


def test_top1() -> None:
    found = judge("top1", [[3.0, 1.0], [0.0, 2.0], [5.0, 1.0], [1.0, 2.0]], labels=np.array([0, 1, 1, 1]))
    assert (found["correct"], found["value"]) == (3, 0.75)
    low, high = found["interval"]  # type: ignore[misc]
    assert 0.2 < low < 0.75 < high < 1.0


def test_top1_of_probabilities_has_their_likelihood() -> None:
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]])
    found = judge("top1", probabilities, labels=np.array([0, 1]), kind="probabilities")
    assert found["nll"] == pytest.approx(-np.log([0.75, 0.5]).mean())


def test_a_probability_of_zero_is_no_infinity() -> None:
    assert np.isfinite(as_logits(np.array([[1.0, 0.0]]), "probabilities")).all()


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    scores, labels = np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([0, 0, 1, 1])
    found = judge("auc", scores, labels=labels)
    assert found["value"] == pytest.approx(0.75)  # 3 of 4 pairs
    low, high = found["interval"]  # type: ignore[misc]
    assert low <= 0.75 <= high


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=30), st.integers(0, 2**31))
def test_auc_equals_scikit_learns(scores: list[int], seed: int) -> None:
    from sklearn.metrics import roc_auc_score

    labels = np.random.default_rng(seed).integers(0, 2, len(scores))
    labels[:2] = [0, 1]
    found = judge("auc", np.array(scores, float)[:, None], labels=labels)
    assert found["value"] == pytest.approx(roc_auc_score(labels, scores))


def test_auc_of_two_logits_goes_by_their_difference() -> None:
    found = judge("auc", [[5.0, 6.0], [9.0, 1.0], [0.0, 4.0]], labels=np.array([1, 0, 1]))
    assert found["value"] == 1.0


def test_auc_of_an_autoencoder_goes_by_its_error() -> None:
    inputs = np.zeros((4, 8))
    outputs = np.stack([np.full(8, error) for error in (0.1, 0.9, 0.2, 0.8)])
    assert judge("auc", outputs, inputs=inputs, labels=np.array([0, 1, 0, 1]))["value"] == 1.0


def test_mse_against_targets() -> None:
    found = judge("mse", [[1.0, 1.0], [3.0, 3.0]], targets=np.array([[0.0, 0.0], [3.0, 3.0]]))
    assert found["value"] == pytest.approx(0.5)
    low, high = found["interval"]  # type: ignore[misc]
    assert low == 0.0
    assert high == 1.0


def test_mse_without_targets_compares_with_the_input() -> None:
    assert judge("mse", np.full((3, 4, 1), 2.0), inputs=np.zeros((3, 4)))["value"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("metric", "outputs", "given_", "message"),
    [
        ("top1", np.zeros((2, 3)), {}, "needs labels"),
        ("top1", np.zeros((2, 3)), {"labels": np.array([0, 3])}, "the labels reach to 3"),
        ("top1", np.zeros((2, 3, 4)), {"labels": np.array([0, 1])}, r"shape \(1, 3, 4\)"),
        ("auc", np.zeros((2, 1)), {"labels": np.array([1, 1])}, "labels 0 and 1, both"),
        ("auc", np.zeros((2, 1)), {"labels": np.array([1, 2])}, "labels 0 and 1, both"),
        ("auc", np.zeros((2, 5)), {"labels": np.array([0, 1]), "inputs": np.zeros((2, 4))}, "one score a sample"),
        ("mse", np.zeros((2, 5)), {"inputs": np.zeros((2, 4))}, "add an array `targets`"),
        ("mse", np.zeros((2, 5)), {"targets": np.zeros((2, 4))}, "the targets"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else None,
)
def test_refused(metric: str, outputs: object, given_: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(metric, outputs, **given_)


@given(st.floats(0, 1), st.floats(0, 1))
def test_loss_is_positive_where_a_model_is_worse(value: float, reference: float) -> None:
    assert loss_against("top1", value, reference) == pytest.approx(reference - value)
    loss = loss_against("mse", value, reference)
    assert loss is not None
    if reference > 0:
        assert (loss > 0) == (value > reference)


def test_loss_of_nothing() -> None:
    assert loss_against(None, 0.0, 0.0) is None
    assert loss_against("mse", 0.1, 0.0) == 1.0
    assert loss_against("mse", 0.3, 0.2) == pytest.approx(0.5)

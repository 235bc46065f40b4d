"""Remedies for a drop of accuracy, on networks that numpy runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model_source import Calibration
from pipeline.quantization.comparison import AccuracyDrop, compare_accuracy
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.ranges import RANGE_METHODS
from pipeline.quantization.remedies import Trial, best_attempt, try_mixed, try_ranges
from pipeline.quantization.static import Observed, lowered_and_observed
from pipeline.signature import InputTensor, OutputTensor, Signature
from tests.unit.pipeline.quantization import fake_quantizer

QUANTIZER: Quantizer = fake_quantizer
LAYERS = ("first", "second", "third", "fourth")
SIGNATURE = Signature(
    source="saved_model",
    model="model",
    inputs=(InputTensor(name="x", dtype="float32", shape=(1, 12)),),
    outputs=(OutputTensor(name="fourth:out", dtype="float32", shape=(1, 12), kind="logits"),),
)
CALIBRATION = Calibration(SIGNATURE, {"x": np.random.default_rng(0).random((80, 12)).astype(np.float32)})
VALIDATION = Calibration(SIGNATURE, {"x": np.random.default_rng(9).random((400, 12)).astype(np.float32)})


def weights(*, bad: str | None = None) -> dict[str, Any]:
    """Four layers, whose second channel is always zero; the bad one has large weights for it, and so a coarse grid."""
    generator = np.random.default_rng(1)
    made = {name: generator.normal(size=(12, 12)) for name in LAYERS}
    for name in LAYERS[:-1]:
        made[name][:, 1] = -1e-3
    if bad is not None:
        made[bad][1] = 400.0
    return made


def observe_network(directory: Path, name: str, values: Mapping[str, Any], *, scheme: str = "plain") -> Observed:
    place = directory / name
    place.mkdir()
    fake_quantizer.write(place / "float.npz", values)
    return lowered_and_observed(
        QUANTIZER, place / "float.npz", scheme=scheme, calibration=CALIBRATION, output="fourth:out", directory=place
    )


def classes(path: Path) -> Any:
    outputs = QUANTIZER.activations(path, VALIDATION, ["fourth:out"])
    return np.concatenate([tensors["fourth:out"] for tensors in outputs]).argmax(axis=1)


def judge_against(path: Path) -> Callable[[Path], AccuracyDrop]:
    labels = classes(path)
    return lambda other: compare_accuracy(np.ones(len(labels), bool), classes(other) == labels)


def trial(tmp_path: Path, observed: Observed, *, max_drop: float, told: list[str] | None = None) -> Trial:
    directory = tmp_path / "attempts"
    directory.mkdir()
    tell = (told if told is not None else []).append
    return Trial(judge_against(observed.path), max_drop, directory, tell)


def test_good_ranges_are_enough_for_a_good_network(tmp_path: Path) -> None:
    observed, told = observe_network(tmp_path, "good", weights()), list[str]()
    attempt = try_ranges(trial(tmp_path, observed, max_drop=0.15, told=told), "ranges", observed)
    assert attempt.holds
    assert attempt.drop.drop <= 0.15
    assert set(attempt.range_ratios) == set(RANGE_METHODS)
    assert attempt.range_method == max(attempt.range_ratios, key=lambda method: attempt.range_ratios[method])
    assert told == [f"ranges, plain, ranges by {attempt.range_method}: {attempt.drop.sentence(0.15)}"]
    assert attempt.path.is_file()


def test_one_way_to_choose_ranges_is_not_compared(tmp_path: Path) -> None:
    observed = observe_network(tmp_path, "good", weights())
    attempt = try_ranges(trial(tmp_path, observed, max_drop=0.1), "bias", observed, ["percentile"])
    assert (attempt.remedy, attempt.range_method, attempt.range_ratios) == ("bias", "percentile", {})


def test_the_most_sensitive_layer_stays_in_float(tmp_path: Path) -> None:
    observed, told = observe_network(tmp_path, "bad", weights(bad="second")), list[str]()
    shared = trial(tmp_path, observed, max_drop=0.15, told=told)
    plain = try_ranges(shared, "ranges", observed, ["min_max"])
    assert not plain.holds
    attempts, layers = try_mixed(shared, observed, "min_max")
    assert [layer.layer for layer in layers] == list(LAYERS)
    assert [attempt.float_layers for attempt in attempts] == [("second",)]
    assert attempts[0].holds
    assert attempts[0].drop.drop < plain.drop.drop - 0.2
    assert "1 layer in float, the last is second" in told[-1]
    assert best_attempt([plain, *attempts]) is attempts[0]
    assert plain.path != attempts[0].path


def test_no_more_than_a_quarter_of_the_layers_stays_in_float(tmp_path: Path) -> None:
    observed = observe_network(tmp_path, "bad", weights(bad="second"))
    attempts, _ = try_mixed(trial(tmp_path, observed, max_drop=-1.0), observed, "mse")
    assert len(attempts) == 1, "of four layers one"
    assert not attempts[0].holds


def test_of_attempts_that_do_not_hold_the_smallest_drop_is_best(tmp_path: Path) -> None:
    values = weights(bad="second")
    bad, good = observe_network(tmp_path, "bad", values), observe_network(tmp_path, "good", weights())
    shared = trial(tmp_path, bad, max_drop=-1.0)
    attempts = [try_ranges(shared, "ranges", bad, ["min_max"]), shared.attempt("training", good, good.ranges("mse"))]
    assert attempts[1].range_method is None, "training learned its ranges"
    assert attempts[0].drop.drop > attempts[1].drop.drop
    assert best_attempt(attempts) is attempts[1]
    assert best_attempt(attempts[::-1]) is attempts[1]


def test_what_float_expects_decides_where_it_is_known(tmp_path: Path) -> None:
    observed, told = observe_network(tmp_path, "good", weights()), list[str]()
    shared = trial(tmp_path, observed, max_drop=0.15, told=told)
    counted = shared.judge

    def judged(expected: float) -> Trial:
        return dataclasses.replace(shared, judge=lambda path: dataclasses.replace(counted(path), expected=expected))

    held, luck = (try_ranges(judged(expected), "ranges", observed, ["mse"]) for expected in (0.1, 0.2))
    assert held.drop.drop == luck.drop.drop <= 0.15
    assert (held.holds, luck.holds) == (True, False)
    assert told[-1].endswith("By float's own probabilities it is 20.00.")
    assert best_attempt([luck, held]) is held
    lucky = [dataclasses.replace(held, holds=False), luck]
    assert best_attempt(lucky[::-1]) is lucky[0]

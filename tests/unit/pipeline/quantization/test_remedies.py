"""The walk over the remedies, on networks that numpy runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model_source import Calibration
from pipeline.quantization.comparison import AccuracyDrop, compare_accuracy
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.remedies import Outcome, Remedy, Variant, walk
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


@dataclass
class Walked:
    outcome: Outcome
    told: list[str]
    made: list[Remedy]


def run(tmp_path: Path, *, bad: str | None, max_drop: float, mend: Remedy | None = None, schemes: int = 1) -> Walked:
    """Walks over a network; the variant `mend` has good weights, the others those of the bad network."""
    values = weights(bad=bad)
    candidates = [
        observe_network(tmp_path, f"candidate-{number}", values, scheme=("plain", "converter")[number])
        for number in range(schemes)
    ]
    directory = tmp_path / "attempts"
    directory.mkdir()
    told: list[str] = []
    made: list[Remedy] = []

    def variant(remedy: Remedy) -> Callable[[], Variant]:
        def make() -> Variant:
            made.append(remedy)
            mended = {**values, "second": values["second"].copy()}
            if remedy == mend:
                mended["second"][1] = 0.0  # what stands there is multiplied by zero
            found = observe_network(tmp_path, remedy, mended)
            return Variant(found, found.ranges("min_max") if remedy == "training" else None)

        return make

    remedies: tuple[Remedy, ...] = ("bias", "rounding", "training")
    outcome = walk(
        candidates,
        {remedy: variant(remedy) for remedy in remedies} if mend else {},
        judge_against(candidates[0].path),
        max_drop=max_drop,
        directory=directory,
        tell=told.append,
    )
    assert len(told) == len(outcome.attempts)
    assert all(attempt.path.is_file() for attempt in outcome.attempts)
    return Walked(outcome, told, made)


def test_good_ranges_are_enough_for_a_good_network(tmp_path: Path) -> None:
    found = run(tmp_path, bad=None, max_drop=0.1, mend="bias")
    assert [attempt.remedy for attempt in found.outcome.attempts] == ["ranges"]
    assert found.outcome.chosen.holds
    assert found.made == [], "no network was changed for nothing"
    assert not found.outcome.sensitivity


def test_the_most_sensitive_layer_stays_in_float(tmp_path: Path) -> None:
    found = run(tmp_path, bad="second", max_drop=0.15)
    assert [attempt.remedy for attempt in found.outcome.attempts] == ["ranges", "mixed"]
    chosen = found.outcome.chosen
    assert chosen.holds
    assert chosen.float_layers == ("second",)
    assert chosen.drop.drop < found.outcome.attempts[0].drop.drop - 0.2
    assert [layer.layer for layer in found.outcome.sensitivity] == list(LAYERS)
    assert "1 layer in float, the last is second" in found.told[-1]


def test_weights_are_changed_before_layers_stay_in_float(tmp_path: Path) -> None:
    found = run(tmp_path, bad="second", max_drop=0.15, mend="bias")
    assert [attempt.remedy for attempt in found.outcome.attempts] == ["ranges", "bias"]
    assert found.outcome.chosen.remedy == "bias"
    assert found.made == ["bias"]
    assert set(found.outcome.range_ratios) == {"plain", "plain+bias"}


def test_where_nothing_holds_all_are_tried_and_the_smallest_drop_is_chosen(tmp_path: Path) -> None:
    found = run(tmp_path, bad="second", max_drop=-1.0, mend="training")
    attempts = found.outcome.attempts
    assert [attempt.remedy for attempt in attempts] == ["ranges", "bias", "mixed", "rounding", "training"]
    assert found.made == ["bias", "rounding", "training"]
    assert not any(attempt.holds for attempt in attempts)
    assert found.outcome.chosen.drop.drop == min(attempt.drop.drop for attempt in attempts)
    assert attempts[-1].range_method is None, "training learned its ranges"


def test_a_slower_scheme_is_tried_before_weights_are_changed(tmp_path: Path) -> None:
    found = run(tmp_path, bad="second", max_drop=0.15, schemes=2)
    assert [attempt.scheme for attempt in found.outcome.attempts] == ["plain", "converter", "plain"]
    assert set(found.outcome.range_ratios) == {"plain", "converter"}

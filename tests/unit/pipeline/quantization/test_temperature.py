"""Whether quantization shifted the confidence, what is folded, and what a report says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.metrics import log_softmax, negative_log_likelihood
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.report import temperature_lines
from pipeline.quantization.temperature import SHIFTED, measure_shift, refit
from pipeline.targets.scaling import refusal
from tests.unit.pipeline.quantization import fake_quantizer

QUANTIZER: Quantizer = fake_quantizer
COUNT, CLASSES = 800, 5


def drawn(*, seed: int = 0) -> tuple[Any, Any]:
    """Logits, and labels drawn by their probabilities, so that a temperature of 1 suits them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (COUNT, CLASSES)).astype(np.float32)
    thresholds = np.exp(log_softmax(logits)).cumsum(axis=1)
    return logits, (generator.random((COUNT, 1)) > thresholds).sum(axis=1).clip(0, CLASSES - 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """How sure two files are, as factors of logits that suit a temperature of 1.

    Attributes:
        int8: Of the int8 file.
        floats: Of the float file; None is not known.
        certain: Whether that is a shift.
    """

    id: str
    int8: float
    floats: float | None
    certain: bool


CASES = [
    Case("the-same", 1.0, 1.0, certain=False),
    Case("twice-as-sure", 2.0, 1.0, certain=True),
    Case("half-as-sure", 0.5, 1.0, certain=True),
    Case("a-little", 1.01, 1.0, certain=False),
    Case("as-wrong-as-float", 2.0, 2.0, certain=False),
    Case("float-is-not-known", 2.0, None, certain=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_shift_is_one_against_float(case: Case) -> None:
    logits, labels = drawn()
    shift = measure_shift(case.int8 * logits, None if case.floats is None else case.floats * logits, labels)
    assert shift.is_certain == case.certain
    if case.floats is not None:
        assert shift.factor == pytest.approx(case.floats / case.int8, rel=1e-3)


def test_the_statistic_is_twice_the_difference_of_log_likelihoods() -> None:
    logits, labels = drawn()
    shift = measure_shift(1.3 * logits, logits, labels)
    rows = np.arange(COUNT)
    first, second = (
        log_softmax(1.3 * logits / temperature)[rows, labels].sum()
        for temperature in (shift.fitted, shift.float_fitted)
    )
    assert shift.statistic == pytest.approx(2 * (first - second), rel=1e-4)


def test_chance_is_called_a_shift_in_about_one_case_of_twenty() -> None:
    found = [measure_shift(logits, None, labels).is_certain for logits, labels in (drawn(seed=k) for k in range(200))]
    assert 1 <= sum(found) <= 24


@pytest.mark.parametrize("which", ["int8", "float"])
def test_images_that_are_all_right_tell_nothing(which: str) -> None:
    logits, labels = drawn()
    certain = 10 * np.eye(CLASSES, dtype=np.float32)[labels]
    pair = (certain, logits) if which == "int8" else (logits, certain)
    shift = measure_shift(*pair, labels)
    assert shift.statistic is None
    assert not shift.is_certain


class Workbench:
    """A network of one layer in a file of the fake quantizer, and images that fit it."""

    def __init__(self, directory: Path) -> None:
        generator = np.random.default_rng(0)
        self.directory = directory
        self.weights = generator.normal(size=(4, CLASSES))
        self.images = generator.normal(size=(COUNT, 4)).astype(np.float32)
        thresholds = np.exp(log_softmax(self.images @ self.weights)).cumsum(axis=1)
        self.labels = (generator.random((COUNT, 1)) > thresholds).sum(axis=1).clip(0, CLASSES - 1)
        self.out = directory / "out.npz"

    def file(self, factor: float) -> Path:
        path = self.directory / f"{factor}.npz"
        fake_quantizer.write(path, {"last": factor * self.weights})
        return path

    def answer(self, path: Path) -> Any:
        samples = ({"x": image[None]} for image in self.images)
        return np.concatenate([each["last:out"] for each in QUANTIZER.activations(path, samples, ["last:out"])])

    def refit(self, path: Path, *, floats: float | None = 1.0, quantizer: Quantizer = QUANTIZER) -> dict[str, Any]:
        known = None if floats is None else self.answer(self.file(floats))
        return refit(quantizer, path, self.out, answer=self.answer, floats=known, labels=self.labels, output="last:out")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_a_shift_is_folded_and_repairs_the_likelihood(bench: Workbench) -> None:
    record = bench.refit(bench.file(2.0))
    assert record["folded"]
    assert record["reason"] is None
    assert record["statistic"] > SHIFTED
    assert record["fitted"] == pytest.approx(2 * record["float_fitted"], rel=1e-3)
    np.testing.assert_allclose(bench.answer(bench.out), bench.answer(bench.file(1.0)), rtol=1e-3)
    assert record["nll_after"] == pytest.approx(negative_log_likelihood(bench.answer(bench.out), bench.labels))
    assert record["nll_after"] < record["nll_before"] - 0.05


def test_what_is_not_shifted_is_left(bench: Workbench) -> None:
    record = bench.refit(bench.file(1.005))
    assert not record["folded"]
    assert record["nll_after"] is None
    assert "did not shift" in record["reason"]
    assert not bench.out.exists()


def test_a_model_that_came_too_sure_is_made_no_surer(bench: Workbench) -> None:
    """Its int8 file is less sure than it: to undo that would make the answers less likely."""
    record = bench.refit(bench.file(1.5), floats=3.0)
    assert record["statistic"] > SHIFTED
    assert not record["folded"]
    assert "less likely" in record["reason"]


class Refuses:
    """As the fake quantizer, but with a file whose constants can't take a factor, or one that is scaled wrongly."""

    def __init__(self, *, wrongly: bool) -> None:
        self.wrongly = wrongly

    def __getattr__(self, name: str) -> Any:
        return getattr(fake_quantizer, name)

    def scale_output(self, path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
        del output
        if not self.wrongly:
            raise refusal("it comes from Softmax")
        with np.load(path) as archive:
            fake_quantizer.write(out_path, {"last": -factor * archive["last"]})


def test_a_file_that_can_not_be_scaled_is_left_and_says_so(bench: Workbench) -> None:
    record = bench.refit(bench.file(2.0), quantizer=Refuses(wrongly=False))  # type: ignore[arg-type]
    assert not record["folded"]
    assert "comes from Softmax" in record["reason"]
    assert not bench.out.exists()


def test_a_file_with_other_classes_is_not_taken(bench: Workbench) -> None:
    record = bench.refit(bench.file(2.0), quantizer=Refuses(wrongly=True))  # type: ignore[arg-type]
    assert not record["folded"]
    assert "other classes" in record["reason"]


def report(**changes: Any) -> dict[str, Any]:
    record = {
        "images": 300, "fitted": 1.2, "float_fitted": 1.0, "statistic": 9.5, "folded": True,
        "nll_before": 0.5, "nll_after": 0.4, "reason": None,
    }  # fmt: skip
    return {"artifacts": [{"target": "litert", "precision": "int8", "temperature": record | changes}]}


def test_the_report_names_what_was_folded_and_what_could_not_be() -> None:
    [line] = temperature_lines(report())
    assert line == (
        "litert/int8: quantization shifted the best temperature from 1.000 to 1.200 (likelihood ratio 9.5 on 300 "
        "validation images); folded into the file, which takes the negative log-likelihood from 0.5000 to 0.4000."
    )
    [line] = temperature_lines(report(folded=False, nll_after=None, reason="It can't."))
    assert line.endswith("but nothing was folded. It can't.")
    assert temperature_lines(report(statistic=1.0, folded=False)) == []
    assert temperature_lines(report(statistic=None, folded=False)) == []
    assert temperature_lines({"artifacts": [{"target": "litert", "precision": "float32"}]}) == []

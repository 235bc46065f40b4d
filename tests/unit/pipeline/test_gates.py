"""Each gate at its edge."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from devices.profile_parts import Budgets
from pipeline.gates import GateRow, GatesConfig, ParityGates, budget_rows, parity_rows

ARTIFACT = "litert/int8"


def verified(**changes: Any) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "parity": {"max_logit_difference": 0.1, "snr_db": 20.0, "top1_agreement": 0.9},
        "accuracy": 0.9,
        "accuracy_drop": 0.1,
        "ece_change": 0.01,
    }
    for name, value in changes.items():
        (metrics["parity"] if name in metrics["parity"] else metrics)[name] = value
    return metrics


def case(**changes: Any) -> dict[str, Any]:
    return {"latency_ms": {"p50": 2.0, "p99": 3.0}, "peak_memory_mb": 50.0, "size_bytes": 1000, **changes}


@dataclasses.dataclass(frozen=True)
class Edge:
    """A gate, the metric it looks at, its limit, and the closest value that breaks it."""

    gate: str
    metric: str
    limit: float
    breaking: float


PARITY = [
    Edge("max_logit_difference", "max_logit_difference", 1e-4, 1.0001e-4),
    Edge("min_snr_db", "snr_db", 30.0, 29.9999),
    Edge("min_top1_agreement", "top1_agreement", 1.0, 0.9999),
    Edge("max_accuracy_drop", "accuracy_drop", 0.005, 0.0050001),
    Edge("max_ece_increase", "ece_change", 0.005, 0.0050001),
    Edge("min_accuracy", "accuracy", 0.97, 0.969999),
]


@pytest.mark.parametrize("edge", PARITY, ids=lambda edge: edge.gate)
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_parity_gate_at_its_edge(edge: Edge, precision: str) -> None:
    empty = {name: ParityGates() for name in ("float32", "float16", "int8")}
    if edge.gate == "min_accuracy":
        gates = GatesConfig(**empty, min_accuracy=edge.limit)
    else:
        gates = GatesConfig(**{**empty, precision: ParityGates(**{edge.gate: edge.limit})})
    (held,) = parity_rows(gates, ARTIFACT, precision, verified(**{edge.metric: edge.limit}))
    (broken,) = parity_rows(gates, ARTIFACT, precision, verified(**{edge.metric: edge.breaking}))
    assert (held.name, held.artifact, held.device, held.limit, held.passed) == (
        edge.gate, ARTIFACT, None, edge.limit, True,
    )  # fmt: skip
    assert not broken.passed
    assert broken.blocking
    assert broken.value == edge.breaking


BUDGETS = [
    Edge("max_latency_p50_ms", "latency_p50_ms", 2.0, 2.001),
    Edge("max_latency_p99_ms", "latency_p99_ms", 3.0, 3.001),
    Edge("max_peak_memory_mb", "peak_memory_mb", 50.0, 50.01),
    Edge("max_size_bytes", "size_bytes", 1000, 1001),
]


def measured(edge: Edge, value: float) -> dict[str, Any]:
    if edge.metric.startswith("latency"):
        which = edge.metric[len("latency_") :][:3]
        return case(latency_ms={"p50": 0.0, "p99": 0.0, which: value})
    return case(**{edge.metric: value})


@pytest.mark.parametrize("edge", BUDGETS, ids=lambda edge: edge.gate)
@pytest.mark.parametrize("where", ["recipe", "profile"])
def test_budget_at_its_edge(edge: Edge, where: str) -> None:
    gates = GatesConfig(**{edge.gate: edge.limit}) if where == "recipe" else GatesConfig()
    budgets = {edge.metric: edge.limit} if where == "profile" else {}
    (held,) = budget_rows(gates, budgets, artifact=ARTIFACT, device="d", case=measured(edge, edge.limit))
    (broken,) = budget_rows(gates, budgets, artifact=ARTIFACT, device="d", case=measured(edge, edge.breaking))
    assert (held.name, held.device, held.passed) == (edge.gate, "d", True)
    assert not broken.passed


@pytest.mark.parametrize(("recipe", "profile"), [(1.0, 5.0), (5.0, 1.0), (1.0, None), (None, 1.0)])
def test_the_tighter_budget_is_the_limit(recipe: float | None, profile: float | None) -> None:
    gates = GatesConfig(max_latency_p50_ms=recipe)
    (row,) = budget_rows(gates, {"latency_p50_ms": profile}, artifact=ARTIFACT, device="d", case=case())
    assert row.limit == 1.0
    assert not row.passed


def test_no_limit_no_row() -> None:
    assert budget_rows(GatesConfig(), {"size_bytes": None}, artifact=ARTIFACT, device="d", case=case()) == []
    empty = {name: ParityGates() for name in ("float32", "float16", "int8")}
    assert parity_rows(GatesConfig(**empty), ARTIFACT, "int8", verified()) == []


@pytest.mark.parametrize(("share", "passed"), [(0.9, True), (0.8999, False), (None, False)])
def test_the_share_that_runs_fast(share: float | None, passed: bool) -> None:
    given = case() if share is None else case(delegated_share=share)
    (row,) = budget_rows(GatesConfig(min_delegated_share=0.9), {}, artifact=ARTIFACT, device="d", case=given)
    assert (row.name, row.device, row.value, row.passed) == ("min_delegated_share", "d", share, passed)


def test_a_memory_that_was_not_measured_breaks_its_budget() -> None:
    gates = GatesConfig(max_peak_memory_mb=10)
    (row,) = budget_rows(gates, {}, artifact=ARTIFACT, device="d", case=case(peak_memory_mb=None))
    assert (row.value, row.passed) == (None, False)


def test_an_accuracy_budget_is_a_gate_of_the_device() -> None:
    for accuracy, passed in ((0.9, True), (0.9001, True), (0.8999, False), (None, False)):
        (row,) = budget_rows(
            GatesConfig(), {"accuracy": 0.9}, artifact=ARTIFACT, device="pi", case=case(accuracy=accuracy)
        )
        assert (row.name, row.device, row.limit, row.value, row.passed) == ("min_accuracy", "pi", 0.9, accuracy, passed)
    (row,) = budget_rows(GatesConfig(), {"accuracy": 0.9}, artifact=ARTIFACT, device="pi", case=case())
    assert row.failed
    assert row.sentence() == "litert/int8 on pi: min_accuracy was not measured and breaks the limit 0.9"


def test_energy_is_a_gate_where_it_is_measured() -> None:
    gates = GatesConfig(max_energy_mj=5)
    for energy_mj, passed in ((5.0, True), (5.001, False)):
        (row,) = budget_rows(gates, {"energy_mj": 9}, artifact=ARTIFACT, device="pi", case=case(energy_mj=energy_mj))
        assert (row.name, row.limit, row.value, row.passed, row.reason) == ("max_energy_mj", 5, energy_mj, passed, None)


def test_energy_that_is_not_measured_says_why_and_fails_nothing() -> None:
    for known, reason in (
        ({"energy_mj": None, "energy_reason": "no sensor"}, "no sensor"),
        ({}, "no energy was measured on this device"),
    ):
        (row,) = budget_rows(GatesConfig(), {"energy_mj": 5.0}, artifact=ARTIFACT, device="pi", case=case(**known))
        assert (row.passed, row.failed, row.blocking, row.reason) == (None, False, False, reason)
        assert row.sentence() == f"litert/int8 on pi: max_energy_mj 5 was not checked: {reason}"
        assert GateRow(**row.to_dict()) == row


def test_each_budget_of_a_profile_becomes_a_gate() -> None:
    budgets = Budgets(
        latency_p50_ms=1, latency_p99_ms=1, peak_memory_mb=1, size_bytes=1, energy_mj=1, accuracy=1
    ).model_dump()
    assert None not in budgets.values()
    rows = budget_rows(GatesConfig(), budgets, artifact=ARTIFACT, device="pi", case=case(energy_mj=2, accuracy=0.5))
    assert len(rows) == len(budgets)
    assert all(row.failed for row in rows)


def test_equal_bits_have_no_finite_ratio_and_pass() -> None:
    gates = GatesConfig(float32=ParityGates(min_snr_db=100))
    (row,) = parity_rows(gates, ARTIFACT, "float32", verified(snr_db=None))
    assert row.passed


def test_a_drop_below_zero_is_a_gain() -> None:
    gates = GatesConfig(int8=ParityGates(max_accuracy_drop=0))
    (row,) = parity_rows(gates, ARTIFACT, "int8", verified(accuracy_drop=-0.1))
    assert row.passed


def test_a_calibration_error_that_shrinks_passes() -> None:
    gates = GatesConfig(int8=ParityGates(max_ece_increase=0))
    (row,) = parity_rows(gates, ARTIFACT, "int8", verified(ece_change=-0.02))
    assert row.passed


def test_without_labels_there_is_no_calibration_error_and_no_row() -> None:
    gates = GatesConfig(int8=ParityGates(max_ece_increase=0.005))
    unlabelled = verified() | {"accuracy": None, "accuracy_drop": None}
    del unlabelled["ece_change"]
    assert parity_rows(gates, ARTIFACT, "int8", unlabelled) == []


def test_no_precision_limits_the_calibration_error_by_itself() -> None:
    gates = GatesConfig()
    limits = [value for _, value in gates if isinstance(value, ParityGates)]
    assert len(limits) == 7
    assert {each.max_ece_increase for each in limits} == {None}


def test_float32_is_strict_by_default() -> None:
    limits = GatesConfig().float32
    assert (limits.max_logit_difference, limits.min_top1_agreement) == (1e-4, 1.0)


def test_sentences_name_artifact_value_and_limit() -> None:
    row = GateRow("max_accuracy_drop", ARTIFACT, None, 0.005, 0.02, passed=False)
    assert row.sentence() == "litert/int8: max_accuracy_drop 0.02 breaks the limit 0.005"
    row = GateRow("max_peak_memory_mb", ARTIFACT, "pi", 5.0, None, passed=False)
    assert row.sentence() == "litert/int8 on pi: max_peak_memory_mb was not measured and breaks the limit 5"
    row = GateRow("min_snr_db", ARTIFACT, None, 30.0, None, passed=True)
    assert row.sentence() == "litert/int8: min_snr_db exact is within the limit 30"


def test_rows_survive_json() -> None:
    row = GateRow("min_snr_db", ARTIFACT, "d", 30.0, None, passed=True, blocking=False)
    assert GateRow(**row.to_dict()) == row


def test_a_model_without_a_metric_has_no_rows_that_need_one_but_what_the_recipe_asks_for() -> None:
    unjudged = verified() | {"accuracy": None, "accuracy_drop": None}
    unjudged["parity"] = unjudged["parity"] | {"top1_agreement": None}
    names = [row.name for row in parity_rows(GatesConfig(), ARTIFACT, "int8", unjudged)]
    assert names == ["min_snr_db"]
    asked = parity_rows(GatesConfig(min_accuracy=0.5), ARTIFACT, "int8", unjudged)
    assert [(row.name, row.passed) for row in asked if row.name == "min_accuracy"] == [("min_accuracy", False)]

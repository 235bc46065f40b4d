"""The choice among exported models, and its words."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.gates import GatesConfig, ParityGates
from pipeline.stages.select import Objective, select

LOOSE = GatesConfig(float32=ParityGates(), float16=ParityGates(), int8=ParityGates())


def case(p50: float, *, spread: float = 0.01, **changes: Any) -> dict[str, Any]:
    latency = {"p50": p50, "p99": 2 * p50, "p50_interval": [p50 - spread, p50 + spread]}
    return {"latency_ms": latency, "peak_memory_mb": 50.0, "size_bytes": 1000, "error": None, **changes}


def verified(accuracy: float = 0.9) -> dict[str, Any]:
    parity = {"max_logit_difference": 0.0, "snr_db": None, "top1_agreement": 1.0}
    return {"parity": parity, "accuracy": accuracy, "accuracy_drop": 0.95 - accuracy}


def choose(
    cases: dict[str, dict[str, Any]],
    gates: GatesConfig = LOOSE,
    objective: Objective = "latency_p50_ms",
    *,
    budgets: dict[str, float | None] | None = None,
    exported: list[str] | None = None,
    checked: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    labels = list(cases) if exported is None else exported
    return select(
        gates,
        objective,
        device="pi",
        budgets=budgets or {},
        exported={label: {"precision": label.partition("/")[2]} for label in labels},
        verified={label: verified() for label in labels} if checked is None else checked,
        cases=cases,
    )


def test_the_fastest_wins_and_the_runner_up_is_named() -> None:
    result = choose({"a/float32": case(3.0), "b/int8": case(1.0), "c/float16": case(2.0)})
    assert (result["selected"], result["runner_up"]) == ("b/int8", "c/float16")
    assert result["ranking"] == ["b/int8", "c/float16", "a/float32"]
    assert result["reason"] == (
        "b/int8 has the lowest median latency on pi (1.000 ms) of the 3 that pass all gates; "
        "the runner-up c/float16 takes 2.000 ms (2.00 times as much)."
    )


def test_overlapping_intervals_cannot_be_told_apart() -> None:
    apart = choose({"a/int8": case(1.0, spread=0.1), "b/int8": case(1.3, spread=0.1)})
    overlapping = choose({"a/int8": case(1.0, spread=0.2), "b/int8": case(1.3, spread=0.2)})
    assert "can't be told apart" not in apart["reason"]
    assert "can't be told apart" in overlapping["reason"]


def test_equal_values_keep_the_order_of_the_recipe() -> None:
    assert choose({"b/int8": case(1.0), "a/int8": case(1.0)})["selected"] == "b/int8"


@pytest.mark.parametrize("objective", ["latency_p50_ms", "latency_p99_ms", "peak_memory_mb", "size_bytes"])
def test_objectives(objective: Objective) -> None:
    small = {
        "latency_p50_ms": case(0.5),
        "latency_p99_ms": case(1.0, latency_ms={"p50": 1.0, "p99": 0.1, "p50_interval": [1, 1]}),
        "peak_memory_mb": case(1.0, peak_memory_mb=10.0),
        "size_bytes": case(1.0, size_bytes=10),
    }
    result = choose({f"{name}/int8": value for name, value in small.items()}, objective=objective)
    assert result["selected"] == f"{objective}/int8"
    words = {"peak_memory_mb": "lowest peak memory", "size_bytes": "smallest files"}
    assert words.get(objective, "latency") in result["reason"]


def test_an_unknown_memory_is_not_ranked() -> None:
    result = choose({"a/int8": case(1.0, peak_memory_mb=None), "b/int8": case(2.0)}, objective="peak_memory_mb")
    assert result["ranking"] == ["b/int8"]
    assert result["excluded"] == {"a/int8": "its peak_memory_mb is not known"}


def test_a_broken_budget_only_rules_out() -> None:
    result = choose({"a/int8": case(3.0), "b/int8": case(1.0)}, budgets={"latency_p50_ms": 2.0})
    assert result["selected"] == "b/int8"
    broken = [row for row in result["gates"] if not row["passed"]]
    assert [(row["artifact"], row["blocking"]) for row in broken] == [("a/int8", False)]
    assert "Ruled out: a/int8" in result["reason"]


def test_an_energy_budget_rules_nothing_out_where_no_energy_is_measured() -> None:
    cases = {"a/int8": case(3.0, energy_mj=None, energy_reason="no sensor"), "b/int8": case(1.0, energy_mj=9.0)}
    result = choose({"a/int8": cases["a/int8"]}, budgets={"energy_mj": 2.0})
    assert result["selected"] == "a/int8"
    assert [(row["passed"], row["blocking"], row["reason"]) for row in result["gates"]] == [(None, False, "no sensor")]
    result = choose(cases, budgets={"energy_mj": 2.0})
    assert (result["selected"], list(result["excluded"])) == ("a/int8", ["b/int8"])


def test_a_budget_that_nothing_keeps_blocks() -> None:
    result = choose({"a/int8": case(3.0), "b/int8": case(4.0)}, budgets={"latency_p50_ms": 2.0})
    assert result["selected"] is None
    assert result["runner_up"] is None
    assert [row["blocking"] for row in result["gates"]] == [True, True]
    assert result["reason"].startswith("Nothing can be selected for pi: a/int8: a/int8 on pi: max_latency_p50_ms 3")


def test_a_broken_parity_gate_blocks_even_if_another_is_selected() -> None:
    gates = LOOSE.model_copy(update={"min_accuracy": 0.9})
    result = choose(
        {"a/int8": case(1.0), "b/int8": case(2.0)},
        gates,
        checked={"a/int8": verified(0.5), "b/int8": verified(0.95)},
    )
    assert result["selected"] == "b/int8"
    assert [(row["artifact"], row["blocking"]) for row in result["gates"] if not row["passed"]] == [("a/int8", True)]
    assert "min_accuracy 0.5 breaks the limit 0.9" in result["excluded"]["a/int8"]


def test_what_failed_on_the_way_is_excluded_with_its_reason() -> None:
    broken = case(1.0, latency_ms=None, error={"message": "it crashed"})
    labels = ["a/int8", "b/int8", "c/int8", "d/int8"]
    result = choose(
        {"a/int8": broken, "c/int8": case(1.0), "d/int8": case(1.0)},
        exported=labels,
        checked={label: verified() for label in labels if label != "d/int8"},
    )
    assert result["excluded"] == {
        "a/int8": "it crashed",
        "b/int8": "it was not measured",
        "d/int8": "it could not be verified",
    }
    assert result["selected"] == "c/int8"


def test_nothing_was_exported() -> None:
    result = choose({})
    assert (result["selected"], result["ranking"], result["gates"]) == (None, [], [])
    assert result["reason"] == "Nothing can be selected for pi: nothing was exported."

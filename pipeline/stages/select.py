"""Chooses the best artifact for one device among those that pass the gates, and says why in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.gates import GateRow, GatesConfig, budget_rows, parity_rows
from pipeline.manifest import read_manifest
from pipeline.stages.base import FrozenConfig, Stage, Tell

Objective = Literal["latency_p50_ms", "latency_p99_ms", "peak_memory_mb", "size_bytes"]


class SelectConfig(FrozenConfig):
    """How the best artifact is chosen among those that pass the gates.

    Attributes:
        objective: What is made small.
    """

    objective: Objective = "latency_p50_ms"


class SelectStage(Stage):
    """Reads `benchmark`, and `export/...` and `verify/...` of each artifact; writes only metrics.

    Attributes:
        gates: The recipe's limits.
        select: What is made small.
        device: Name of the device.
        budgets: Its profile's limits.
    """

    stage: ClassVar[str] = "select"
    runs_in_child: ClassVar[bool] = False

    gates: GatesConfig
    select: SelectConfig
    device: str
    budgets: dict[str, float | None]

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Evaluates the gates, ranks what passes them."""
        del out_dir, tell
        verified = {
            role.removeprefix("verify/"): read_manifest(directory).metrics
            for role, directory in inputs.items()
            if role.startswith("verify/")
        }
        exported = {
            role.removeprefix("export/"): read_manifest(directory).metrics
            for role, directory in inputs.items()
            if role.startswith("export/")
        }
        cases = {case["id"]: case for case in read_manifest(inputs["benchmark"]).metrics["cases"]}
        return select(
            self.gates,
            self.select.objective,
            device=self.device,
            budgets=self.budgets,
            exported=exported,
            verified=verified,
            cases=cases,
        )


def select(
    gates: GatesConfig,
    objective: Objective,
    *,
    device: str,
    budgets: Mapping[str, float | None],
    exported: Mapping[str, Mapping[str, Any]],
    verified: Mapping[str, Mapping[str, Any]],
    cases: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Evaluates the gates and ranks the artifacts that pass them.

    Args:
        gates: The recipe's limits.
        objective: What is made small.
        device: Name of the device.
        budgets: Its profile's limits.
        exported: Metrics of the export stage by artifact label.
        verified: Metrics of the verify stage by artifact label.
        cases: Results of the benchmark stage by artifact label.

    Returns:
        `selected` and `runner_up` (labels or None), `reason` (words), `ranking` (labels, best first), `gates`
        (rows), `excluded` (label to reason).
    """
    rows: list[GateRow] = []
    excluded: dict[str, str] = {}
    eligible: list[str] = []
    for label, metrics in exported.items():
        if label not in verified:
            excluded[label] = "it could not be verified"
            continue
        own = parity_rows(gates, label, metrics["precision"], verified[label])
        case = cases.get(label)
        if case is not None and case["error"] is None:
            own += budget_rows(gates, budgets, artifact=label, device=device, case=case)
        rows += own
        failed = [row for row in own if row.failed]
        if case is None or case["error"] is not None:
            excluded[label] = case["error"]["message"] if case else "it was not measured"
        elif failed:
            excluded[label] = "; ".join(row.sentence() for row in failed)
        else:
            eligible.append(label)
    values = {label: _value(objective, cases[label]) for label in eligible}
    ranking = sorted((label for label in eligible if values[label] is not None), key=lambda label: values[label])
    excluded |= {label: f"its {objective} is not known" for label in eligible if values[label] is None}
    rows = _unblock_budgets(rows, selected=bool(ranking))
    return {
        "device": device,
        "objective": objective,
        "selected": ranking[0] if ranking else None,
        "runner_up": ranking[1] if len(ranking) > 1 else None,
        "ranking": ranking,
        "reason": _reason(objective, device, ranking, values, cases, excluded),
        "excluded": excluded,
        "gates": [row.to_dict() for row in rows],
    }


def _value(objective: Objective, case: Mapping[str, Any]) -> Any:
    if objective.startswith("latency_"):
        return case["latency_ms"][objective.removeprefix("latency_").removesuffix("_ms")]
    return case[objective]


def _unblock_budgets(rows: list[GateRow], *, selected: bool) -> list[GateRow]:
    """A broken budget only rules its artifact out, as long as another one keeps to the budget."""
    if not selected:
        return rows
    return [replace(row, blocking=row.device is None) for row in rows]


def _reason(
    objective: Objective,
    device: str,
    ranking: list[str],
    values: Mapping[str, Any],
    cases: Mapping[str, Mapping[str, Any]],
    excluded: Mapping[str, str],
) -> str:
    if not ranking:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in excluded.items()) or "nothing was exported"
        return f"Nothing can be selected for {device}: {reasons}."
    best = ranking[0]
    words = {
        "latency_p50_ms": "the lowest median latency",
        "latency_p99_ms": "the lowest 99th percentile of latency",
        "peak_memory_mb": "the lowest peak memory",
        "size_bytes": "the smallest files",
    }[objective]
    unit = {"peak_memory_mb": "MiB", "size_bytes": "bytes"}.get(objective, "ms")
    text = f"{best} has {words} on {device} ({_number(values[best])} {unit}) of the {len(ranking)} that pass all gates"
    if len(ranking) > 1:
        second = ranking[1]
        text += f"; the runner-up {second} takes {_number(values[second])} {unit}"
        if values[best]:
            text += f" ({values[second] / values[best]:.2f} times as much)"
        if objective == "latency_p50_ms" and _overlap(cases[best], cases[second]):
            text += ", and the 95 % intervals of the two medians overlap, so they can't be told apart"
    if excluded:
        text += f". Ruled out: {', '.join(excluded)}"
    return text + "."


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    low, high = first["latency_ms"]["p50_interval"], second["latency_ms"]["p50_interval"]
    return bool(low[1] >= high[0] and high[1] >= low[0])


def _number(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

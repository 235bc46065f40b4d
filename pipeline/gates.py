"""Limits, and the rows that say whether a measured value keeps to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from pipeline.stages.base import FrozenConfig


class ParityGates(FrozenConfig):
    """Limits of one precision against the Keras reference; None sets no limit.

    Attributes:
        max_logit_difference: Largest difference of a logit, as a share of the reference's logit range.
        min_snr_db: Signal-to-noise ratio of the logits in decibels.
        min_top1_agreement: Share of images with the same top class.
        max_accuracy_drop: How much accuracy may fall, 0..1 (0.005 is half a point).
        max_ece_increase: How much the calibration error may grow, 0..1. No precision has a limit unless the recipe sets
            one: a few hundred test images make changes of a point by chance (`ece_change_interval`).
    """

    max_logit_difference: float | None = Field(default=None, gt=0)
    min_snr_db: float | None = None
    min_top1_agreement: float | None = Field(default=None, ge=0, le=1)
    max_accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    max_ece_increase: float | None = Field(default=None, ge=0, le=1)


class GatesConfig(FrozenConfig):
    """What must hold.

    Attributes:
        min_accuracy: Of every artifact on the test split, 0..1.
        float32: Against the reference; must agree to 1e-4 of the logit range with the same top class everywhere.
        float16: Against the reference.
        int8: Against the reference.
        mixed: Of int8 with layers in float, against the reference.
        int8_dynamic: Against the reference.
        int8_weights: Against the reference.
        int16x8: Against the reference.
        max_latency_p50_ms: Of the selected artifact on the device; beside the profile's budget.
        max_latency_p99_ms: The same for the 99th percentile.
        max_peak_memory_mb: Resident memory of the agent's process.
        max_size_bytes: Of the model's files.
        min_delegated_share: Of a model's operations, 0..1, those that run where they are fast on the device: in XNNPACK
            (LiteRT), in the first execution provider (ONNX Runtime), in a primitive that is not the reference one
            (OpenVINO).
        max_energy_mj: Of one inference, in millijoules; where the device does not measure it, it is not checked.
    """

    min_accuracy: float | None = Field(default=None, ge=0, le=1)
    float32: ParityGates = ParityGates(max_logit_difference=1e-4, min_top1_agreement=1.0)
    float16: ParityGates = ParityGates(min_snr_db=30.0, min_top1_agreement=0.99, max_accuracy_drop=0.005)
    int8: ParityGates = ParityGates(min_snr_db=8.0, min_top1_agreement=0.95, max_accuracy_drop=0.01)
    mixed: ParityGates = ParityGates(min_snr_db=8.0, min_top1_agreement=0.95, max_accuracy_drop=0.01)
    int8_dynamic: ParityGates = ParityGates(min_snr_db=8.0, min_top1_agreement=0.95, max_accuracy_drop=0.01)
    int8_weights: ParityGates = ParityGates(min_snr_db=15.0, min_top1_agreement=0.95, max_accuracy_drop=0.01)
    int16x8: ParityGates = ParityGates(min_snr_db=15.0, min_top1_agreement=0.95, max_accuracy_drop=0.01)
    max_latency_p50_ms: float | None = Field(default=None, gt=0)
    max_latency_p99_ms: float | None = Field(default=None, gt=0)
    max_peak_memory_mb: float | None = Field(default=None, gt=0)
    max_size_bytes: int | None = Field(default=None, gt=0)
    min_delegated_share: float | None = Field(default=None, ge=0, le=1)
    max_energy_mj: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class GateRow:
    """One limit and one value.

    Attributes:
        name: Of the gate, such as `max_accuracy_drop`.
        artifact: Which artifact, such as `litert/int8`.
        device: On which device; None for a gate that needs none.
        limit: The limit.
        value: What was measured; None where the bits are equal and the value has no finite number (it passed), or
            where it could not be measured (it did not).
        passed: Whether it holds; None where it was not checked.
        blocking: Whether a failure fails the run. Budgets of artifacts that are not selected only rule them out.
        reason: Why it was not checked.
    """

    name: str
    artifact: str
    device: str | None
    limit: float
    value: float | None
    passed: bool | None
    blocking: bool = True
    reason: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the limit was checked and broken."""
        return self.passed is False

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """Returns the row in words."""
        if self.passed is None:
            where = f" on {self.device}" if self.device else ""
            return f"{self.artifact}{where}: {self.name} {self.limit:.6g} was not checked: {self.reason}"
        relation = "is within" if self.passed else "breaks"
        where = f" on {self.device}" if self.device else ""
        value = f"{self.value:.6g}" if self.value is not None else "exact" if self.passed else "was not measured and"
        return f"{self.artifact}{where}: {self.name} {value} {relation} the limit {self.limit:.6g}"


def parity_rows(gates: GatesConfig, artifact: str, precision: str, verified: Mapping[str, Any]) -> list[GateRow]:
    """Returns the rows of one artifact's comparison with the reference.

    A model without classes, or without a metric, has no row for what it can't have; `min_accuracy`, which a recipe
    asks for, fails there.

    Args:
        gates: The limits.
        artifact: Its label.
        precision: Which limits apply.
        verified: Metrics of the verify stage.
    """
    limits: ParityGates = getattr(gates, precision)
    parity = verified["parity"]
    rows = [
        _at_most("max_logit_difference", artifact, limits.max_logit_difference, parity["max_logit_difference"]),
        _at_least("min_snr_db", artifact, limits.min_snr_db, parity["snr_db"]),
        _at_least(
            "min_top1_agreement",
            artifact,
            None if parity["top1_agreement"] is None else limits.min_top1_agreement,
            parity["top1_agreement"],
        ),
        _at_most(
            "max_accuracy_drop",
            artifact,
            None if verified["accuracy_drop"] is None else limits.max_accuracy_drop,
            verified["accuracy_drop"],
        ),
        _at_most(
            "max_ece_increase",
            artifact,
            None if verified.get("ece_change") is None else limits.max_ece_increase,
            verified.get("ece_change"),
        ),
        _measured_at_least("min_accuracy", artifact, gates.min_accuracy, verified["accuracy"]),
    ]
    return [row for row in rows if row is not None]


def budget_rows(
    gates: GatesConfig,
    budgets: Mapping[str, float | None],
    *,
    artifact: str,
    device: str,
    case: Mapping[str, Any],
) -> list[GateRow]:
    """Returns the rows of one artifact's cost on a device; the tighter of recipe and profile is the limit.

    Args:
        gates: The recipe's limits.
        budgets: The profile's, by the names of `devices.profile.Budgets`.
        artifact: Its label.
        device: Name of the device.
        case: Its result of the benchmark stage.
    """
    latency = case["latency_ms"]
    rows = [
        _at_most(
            f"max_{name}",
            artifact,
            _tighter(getattr(gates, f"max_{name}"), budgets.get(name)),
            value,
            device=device,
        )
        for name, value in (
            ("latency_p50_ms", latency["p50"]),
            ("latency_p99_ms", latency["p99"]),
            ("peak_memory_mb", case["peak_memory_mb"]),
            ("size_bytes", case["size_bytes"]),
        )
    ]
    share = case.get("delegated_share")
    rows.append(_measured_at_least("min_delegated_share", artifact, gates.min_delegated_share, share, device))
    rows.append(_energy_row(gates, budgets, artifact, device, case))
    if budgets.get("accuracy") is not None:
        # What the model answers on the device itself; `min_accuracy` of the recipe is about this machine.
        rows.append(_measured_at_least("min_accuracy", artifact, budgets["accuracy"], case.get("accuracy"), device))
    return [row for row in rows if row is not None]


def _energy_row(
    gates: GatesConfig, budgets: Mapping[str, float | None], artifact: str, device: str, case: Mapping[str, Any]
) -> GateRow | None:
    """The row of an energy budget. Few boards measure energy: elsewhere the row says so, and nothing fails for it."""
    limit, value = _tighter(gates.max_energy_mj, budgets.get("energy_mj")), case.get("energy_mj")
    if limit is None or value is not None:
        return _at_most("max_energy_mj", artifact, limit, value, device=device)
    reason = case.get("energy_reason") or "no energy was measured on this device"
    return GateRow("max_energy_mj", artifact, device, limit, None, passed=None, blocking=False, reason=reason)


def _tighter(first: float | None, second: float | None) -> float | None:
    limits = [limit for limit in (first, second) if limit is not None]
    return min(limits) if limits else None


def _at_most(
    name: str, artifact: str, limit: float | None, value: float | None, *, device: str | None = None
) -> GateRow | None:
    if limit is None:
        return None
    # A value that could not be measured can't be shown to keep to its limit.
    return GateRow(name, artifact, device, limit, value, value is not None and value <= limit + 1e-12)


def _at_least(name: str, artifact: str, limit: float | None, value: float | None) -> GateRow | None:
    if limit is None:
        return None
    return GateRow(name, artifact, None, limit, value, value is None or value >= limit - 1e-12)


def _measured_at_least(
    name: str, artifact: str, limit: float | None, value: float | None, device: str | None = None
) -> GateRow | None:
    if limit is None:
        return None
    return GateRow(name, artifact, device, limit, value, value is not None and value >= limit - 1e-12)

"""What a report says about the accuracy that quantization costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.quantization.comparison import AccuracyDrop


def drop_of(artifact: Mapping[str, Any]) -> AccuracyDrop | None:
    """Returns the paired comparison of an artifact of a report; None where it was not judged by classes."""
    paired = artifact.get("paired")
    if paired is None:
        return None
    intervals = {name: tuple(paired[name]) for name in ("interval", "bootstrap_interval")}
    return AccuracyDrop(**{**paired, **intervals})


def drop_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each integer artifact whose drop the test images don't show to keep to its limit.

    Args:
        report: As a whole.
    """
    limits = {row["artifact"]: row["limit"] for row in report["gates"] if row["name"] == "max_accuracy_drop"}
    lines = []
    for artifact in report["artifacts"]:
        label, drop = f"{artifact['target']}/{artifact['precision']}", drop_of(artifact)
        if drop is None or artifact["precision"].startswith("float") or label not in limits:
            continue
        if drop.verdict(limits[label]) != "held":
            lines.append(f"{label}: {drop.sentence(limits[label])}")
    return lines


def divergence_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each artifact that answers otherwise on a device than on the machine that made it.

    Args:
        report: As a whole.
    """
    lines = []
    for row in report["benchmarks"]:
        found = row.get("divergence")
        if not found or found["snr_db"] is None:
            continue
        text = f"{row['target']}/{row['precision']} answers otherwise on {row['device']} than here: "
        if found["top1_agreement"] is not None:
            text += f"another class for {100 * (1 - found['top1_agreement']):.2f} % of the test images, "
        lines.append(f"{text}largest difference {100 * found['max_logit_difference']:.2g} % of the range.")
    return lines


def speed_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns for each device how long int8 takes beside float32 in the same runtime, and where it does not pay.

    Args:
        report: As a whole.
    """
    searched = {search["target"] for search in report.get("searches", ())}
    medians: dict[str, dict[tuple[str, str], float]] = {}
    for row in report["benchmarks"]:
        if row["latency_ms"]:
            medians.setdefault(row["device"], {})[row["target"], row["precision"]] = row["latency_ms"]["p50"]
    lines = []
    for device, known in medians.items():
        ratios = {
            target: median / known[target, "float32"]
            for (target, precision), median in known.items()
            if precision == "int8" and (target, "float32") in known
        }
        if ratios:
            words = ", ".join(f"{ratio:.2f} in {target}" for target, ratio in ratios.items())
            lines.append(f"On {device} int8 takes so much of the time of float32: {words}.")
        lines += [
            f"{target} int8 is no faster than float32 on {device} ({ratio:.2f} of its time): take float32 there"
            + ("." if target in searched else ", or let quantization.search: device look for another way.")
            for target, ratio in ratios.items()
            if ratio >= 1
        ]
    return lines


def search_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each target whose ways to int8 were measured: all of them, the fastest first.

    Args:
        report: As a whole.
    """
    lines = []
    for search in report.get("searches", ()):  # a report from before there was a search has none
        measured = {row["scheme"]: row["latency_ms"]["p50"] for row in search["candidates"] if row["latency_ms"]}
        ways = ", ".join(f"{scheme} {measured[scheme]:.3f} ms" for scheme in search["schemes"])
        floats = search["float32_latency_ms"]
        text = f"Ways to int8 in {search['target']} on {search['device']} ({search['mode']}): {ways or 'none'}"
        lines.append(f"{text}; float32 {floats['p50']:.3f} ms." if floats else f"{text}.")
        lines += [
            f"{search['target']} {row['scheme']} could not be measured: {row['error']}"
            for row in search["candidates"]
            if row["error"]
        ]
    return lines

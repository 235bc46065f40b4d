"""Measures on a device what each attempt of a walk over the remedies costs in latency, beside float32."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from devices.measurement import Case, benchmark
from devices.profile import DeviceProfile
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.manifest import read_manifest
from pipeline.quantization.frontier import FRONTIER_FILE, FRONTIER_PICTURE, draw_frontier, on_frontier
from pipeline.quantization.remedies import REMEDIES
from pipeline.stages.base import Stage, Tell
from pipeline.targets import TARGETS
from pipeline.targets.base import TargetName


class FrontierStage(Stage):
    """Reads `float32`, an export, and the steps of a walk, by remedy; writes `frontier.json` and `frontier.svg`.

    Attributes:
        target: Key of `TARGETS`.
        benchmark: How long is measured.
        profile: The device.
        host: Facts that tell one machine from another, for a device that is this machine.
    """

    stage: ClassVar[str] = "frontier"
    other_code: ClassVar[tuple[str, ...]] = ("devices.board.*",)

    target: TargetName
    benchmark: BenchmarkConfig
    profile: DeviceProfile
    host: dict[str, Any]

    def tool_names(self) -> tuple[str, ...]:
        """The runtime, and what draws."""
        return ("matplotlib", "numpy", TARGETS[self.target].runtime)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Measures all files in turns and says which of them none other beats.

        A device takes only so many models at a time; each such group has float32 in it. What lies in another group than
        the first is placed by its ratio to the float32 beside it (`placed_ms`), so that all can be compared.

        Returns:
            `target`, `device`, `mode`, `max_drop`, `warnings`; `float32` with `latency_ms`, `placed_ms`, `accuracy`,
            `on_frontier` and `error`; and `attempts`, in the order of the walk, each with these, with what the walk
            found (`remedy`, `scheme`, `range_method`, `snr_db`, `drop`, `interval`, `holds`, `seconds`, `chosen`), with
            `float_layers` (`count` and `last`) and with `float32_ratio`, of the medians.

        Raises:
            DeviceError: The device can't be used.
        """
        steps = [remedy for remedy in REMEDIES if remedy in inputs]
        record = read_manifest(inputs[steps[-1]]).metrics["quantization"]
        exported = read_manifest(inputs["float32"]).metrics
        files = [inputs[row["remedy"]] / row["file"] for row in record["attempts"]]
        groups = self._groups(inputs["float32"] / exported["model"], files, record["attempts"])
        cases = [case for group in groups for case in group]
        measured = benchmark(self.profile, cases, self.benchmark.settings(), tell=tell).model_dump(mode="json")
        found = {case["id"]: case for case in measured["cases"]}
        floats = [found[group[0].id] for group in groups]
        beside = [(found[case.id], number) for number, group in enumerate(groups) for case in group[1:]]
        rows = [
            _row(row, chosen=number == record["chosen"]) | _cost(case, floats[group], floats[0])
            for number, (row, (case, group)) in enumerate(zip(record["attempts"], beside, strict=True))
        ]
        accuracy = record["attempts"][0]["drop"]["float_accuracy"]
        metrics = {
            "target": self.target,
            "device": self.profile.name,
            "mode": self.profile.latency_label,
            "max_drop": record["max_drop"],
            "float32": {"remedy": "float32", "accuracy": accuracy} | _cost(floats[0], floats[0], floats[0]),
            "attempts": rows,
            "warnings": measured["warnings"],
        }
        _mark([metrics["float32"], *rows])
        text = json.dumps({"schema_version": 1, **metrics}, indent=1) + "\n"
        (out_dir / FRONTIER_FILE).write_text(text, encoding="utf-8")
        if any(row["placed_ms"] is not None for row in rows):
            draw_frontier(metrics, out_dir / FRONTIER_PICTURE)
        return metrics

    def _groups(self, floats: Path, files: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> list[list[Case]]:
        """Returns the cases that are measured side by side; the first of each group is float32."""
        size = self.benchmark.settings().max_agents - 1
        groups: list[list[Case]] = []
        for begin in range(0, len(files), size):
            named = [(f"{self.target} float32 {len(groups)}", floats)]
            for number, file in enumerate(files[begin : begin + size], begin):
                named.append((f"{self.target} attempt {number}, {rows[number]['remedy']}", file))
            groups.append(
                [
                    Case(id=name, runtime=self.target, path=str(file), num_threads=self.benchmark.num_threads)
                    for name, file in named
                ]
            )
        return groups


def _row(row: Mapping[str, Any], *, chosen: bool) -> dict[str, Any]:
    """Returns what the walk found."""
    layers = row["float_layers"]
    return {
        **{name: row[name] for name in ("remedy", "scheme", "range_method", "holds", "seconds", "file")},
        "weights_seconds": row.get("weights_seconds"),
        "snr_db": row["range_ratios_db"].get(row["range_method"]),
        "float_layers": {"count": len(layers), "last": layers[-1] if layers else None},
        "accuracy": row["drop"]["int8_accuracy"],
        "drop": row["drop"]["drop"],
        "interval": list(row["drop"]["interval"]),
        "chosen": chosen,
    }


def _cost(case: Mapping[str, Any], floats: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was measured.

    Args:
        case: Of a file.
        floats: Of float32 in the same group.
        first: Of float32 in the first group.
    """
    latency, ratio = case["latency_ms"], None
    placed = latency["p50"] if latency else None
    if latency and floats["latency_ms"]:
        ratio = latency["p50"] / floats["latency_ms"]["p50"]
        placed = ratio * first["latency_ms"]["p50"] if first["latency_ms"] else placed
    return {
        "latency_ms": latency,
        "float32_ratio": ratio,
        "placed_ms": placed,
        "error": case["error"]["message"] if case["error"] else None,
    }


def _mark(rows: Sequence[dict[str, Any]]) -> None:
    """Adds whether each row is on the frontier."""
    points = [None if row["placed_ms"] is None else (row["placed_ms"], row["accuracy"]) for row in rows]
    for row, best in zip(rows, on_frontier(points), strict=True):
        row["on_frontier"] = best

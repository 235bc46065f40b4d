"""What is made of latencies; the measurement itself is replaced."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import int8_latency
from pipeline.errors import InputError, StageError
from pipeline.int8_latency import LatencyRow, gain_over_default, measure_networks, table, write_rows
from pipeline.targets.execution import Execution, execution

LATENCIES = {
    "litert/float32": 2.0,
    "litert/default": 4.0,
    "litert/slow": 1.5,
    "litert/fast": 1.0,
    "openvino/float32": 1.0,
    "openvino/default": 0.5,
    "openvino/slow": 0.6,
    "openvino/fast": 0.5,
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files that are not there, and latencies of their own; returns what was asked to be measured."""
    asked: dict[str, Any] = {}

    def benchmark(profile: Any, cases: Any, settings: Any) -> Any:
        asked["cases"], asked["settings"] = cases, settings
        results = [
            SimpleNamespace(
                id=case.id,
                latency_ms=SimpleNamespace(p50=LATENCIES[case.id]) if case.id not in asked.get("broken", ()) else None,
                error=SimpleNamespace(message="it crashed"),
            )
            for case in cases
        ]
        return SimpleNamespace(cases=results)

    def make_files(target: str, source: Any, calibration: Any, directory: Path) -> dict[str, Path]:
        return {name: directory / name for name in ("float32", "default", "slow", "fast")}

    monkeypatch.setattr(int8_latency, "benchmark", benchmark)
    monkeypatch.setattr(int8_latency, "make_files", make_files)
    monkeypatch.setattr(int8_latency, "random_network", lambda *_: (None, None))
    monkeypatch.setattr(int8_latency, "execution", lambda *given: Execution(10, 5 + len(given[1].name), 0))
    return asked


def rows(*networks: str) -> list[LatencyRow]:
    profile: Any = SimpleNamespace(name="board")
    return measure_networks(networks, profile, targets=("litert", "openvino"))


def test_rows(measured: dict[str, Any]) -> None:
    [litert, openvino] = rows("mobilenet_v2")
    assert (litert.network, litert.target, litert.scheme) == ("mobilenet_v2", "litert", "fast")
    assert (litert.float32_p50_ms, litert.default_int8_p50_ms, litert.int8_p50_ms) == (2.0, 4.0, 1.0)
    assert (litert.ratio, litert.default_ratio) == (0.5, 0.25)
    assert litert.scheme_p50_ms == {"slow": 1.5, "fast": 1.0}
    assert litert.executions["int8"] == Execution(10, 9, 0)
    assert openvino.default_ratio == 1.0
    # One run for all runtimes, so that what slows the machine slows all of them.
    assert [case.id for case in measured["cases"]] == list(LATENCIES)
    assert {case.num_threads for case in measured["cases"]} == {1}


def test_case_without_latency(measured: dict[str, Any]) -> None:
    measured["broken"] = {"litert/slow"}
    with pytest.raises(StageError, match="litert/slow can't be measured on board: it crashed"):
        rows("mobilenet_v2")


def test_gain_is_a_geometric_mean(measured: dict[str, Any]) -> None:
    assert gain_over_default(rows("mobilenet_v1", "mobilenet_v2")) == pytest.approx(2.0)


def test_table(measured: dict[str, Any]) -> None:
    lines = table(rows("mobilenet_v2"))
    assert len(lines) == 3
    assert "mobilenet_v2" in lines[1]
    assert "0.50" in lines[1]
    assert "fast: 90% integer of 10" in lines[1]


def test_file(measured: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bench" / "int8_latency.json"
    write_rows(rows("mobilenet_v2"), path, device="board")
    content = json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert content["device"] == "board"
    first = content["rows"][0]
    assert (first["network"], first["target"], first["float32_p50_ms"]) == ("mobilenet_v2", "litert", 2.0)
    assert (first["default_int8_p50_ms"], first["int8_p50_ms"]) == (4.0, 1.0)
    assert first["executions"]["float32"]["operations"] == 10


def test_execution_in_words() -> None:
    assert str(Execution(4, 3, 0)) == "75% integer of 4"
    assert str(Execution(4, 3, 0, 2, 1)) == "75% integer of 4, 2 delegated parts, 1 outside"
    with pytest.raises(InputError, match="fake does not tell"):
        execution("fake", Path("model.json"))

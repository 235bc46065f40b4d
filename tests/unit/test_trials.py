"""Which code the trials of comparisons belong to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "results" / "comparison.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("comparison_trials", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_verdict_comes_from_what_measures_and_judges(script: ModuleType) -> None:
    assert script.modules() == [
        "devices",
        "devices.board",
        "devices.board.agent",
        "devices.board.cores",
        "devices.board.energy",
        "devices.board.facts",
        "devices.board.governor",
        "devices.board.hardware",
        "devices.board.jsonlines",
        "devices.board.kernel",
        "devices.board.memory",
        "devices.board.runners",
        "devices.board.runners.contract",
        "devices.board.runners.onnxruntime",
        "devices.board.sensors",
        "devices.comparison",
        "devices.latency",
        "devices.measurement",
        "devices.monitor",
        "devices.peer",
        "devices.records",
        "devices.rounds",
        "devices.transports",
        "devices.transports.base",
        "devices.transports.local",
        "devices.transports.process_agent",
        "pipeline",
        "pipeline.measuring",
        "pipeline.measuring_options",
    ], "a module that is new here measures, or belongs among LEFT_OUT of docs/results/comparison.py"


def test_other_code_gives_another_digest(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = script.code_digest({"min_time": 1.0})
    assert before == script.code_digest({"min_time": 1.0})
    assert before != script.code_digest({"min_time": 2.0})
    monkeypatch.setattr(script, "ROOTS", ("devices.comparison",))
    assert before != script.code_digest({"min_time": 1.0})

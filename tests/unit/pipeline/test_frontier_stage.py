"""Measuring what the attempts of a walk cost, on a device that does not exist: the same file always has one latency."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.measurement import BenchmarkResult, Case, CaseResult, benchmark
from devices.profile import DeviceProfile, load_profile
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.manifest import MANIFEST, Manifest
from pipeline.quantization.comparison import compare_accuracy
from pipeline.stages.frontier import FrontierStage

CORRECT = np.arange(100) < 90


def stage(**changes: Any) -> FrontierStage:
    values: dict[str, Any] = {
        "target": "fake", "benchmark": BenchmarkConfig(min_count=20, min_time_s=0.0), "profile": load_profile("fake"),
        "host": {},
    }  # fmt: skip
    return FrontierStage(**(values | changes))


def say_nothing(event: dict[str, Any]) -> None:
    """Takes progress."""


def write_model(path: Path, seed: int, *, behaviour: str = "ok") -> None:
    weights = np.random.default_rng(seed).normal(size=(12, 3)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, weights=weights, bias=np.zeros(3, np.float32), shape=np.array([2, 2, 3]), kind="int8",
                 behaviour=behaviour)  # fmt: skip


def publish(directory: Path, metrics: dict[str, Any]) -> Path:
    manifest = Manifest(
        stage="export", key="k", config={}, inputs={}, code="", tools={}, fingerprint="", metrics=metrics, wall_time_s=1
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).write_text(manifest.to_json())
    return directory


def attempt(remedy: str, number: int, lost: int, *, layers: tuple[str, ...] = ()) -> dict[str, Any]:
    drop = compare_accuracy(CORRECT, CORRECT & (np.arange(100) >= lost))
    return {
        "remedy": remedy, "scheme": "plain", "range_method": "mse", "range_ratios_db": {"mse": 20.0, "min_max": 19.0},
        "float_layers": list(layers), "drop": dataclasses.asdict(drop), "holds": lost <= 1, "seconds": 2.0,
        "file": f"attempts/{number}.fake",
    }  # fmt: skip


def walk(directory: Path, attempts: list[dict[str, Any]], *, chosen: int) -> dict[str, Path]:
    """Writes float32 and the steps of a walk: of each remedy its attempts' files, and all attempts so far."""
    inputs = {"float32": publish(directory / "float32", {"model": "model.fake"})}
    write_model(inputs["float32"] / "model.fake", 1000)
    for number, row in enumerate(attempts):
        step = directory / row["remedy"]
        write_model(step / row["file"], number)
        known = {"attempts": attempts[: number + 1], "chosen": min(chosen, number), "max_drop": 0.01}
        inputs[row["remedy"]] = publish(step, {"quantization": json.loads(json.dumps(known))})
    return inputs


def test_every_attempt_is_measured_beside_float32(tmp_path: Path) -> None:
    attempts = [
        attempt("ranges", 0, 9),
        attempt("mixed", 1, 5, layers=("a",)),
        attempt("mixed", 2, 1, layers=("a", "b")),
    ]
    inputs, out_dir = walk(tmp_path, attempts, chosen=2), tmp_path / "out"
    out_dir.mkdir()
    found = stage().run(inputs, out_dir, say_nothing)
    assert [row["remedy"] for row in found["attempts"]] == ["ranges", "mixed", "mixed"]
    assert [row["chosen"] for row in found["attempts"]] == [False, False, True]
    assert [row["float_layers"] for row in found["attempts"]] == [
        {"count": 0, "last": None}, {"count": 1, "last": "a"}, {"count": 2, "last": "b"},
    ]  # fmt: skip
    assert [round(row["drop"], 6) for row in found["attempts"]] == [0.09, 0.05, 0.01]
    floats = found["float32"]
    assert (floats["accuracy"], found["max_drop"], found["mode"]) == (0.9, 0.01, "simulated")
    for row in found["attempts"]:
        assert row["float32_ratio"] == pytest.approx(row["latency_ms"]["p50"] / floats["latency_ms"]["p50"])
        assert row["placed_ms"] == pytest.approx(row["latency_ms"]["p50"])
        assert row["snr_db"] == 20.0
    assert floats["on_frontier"], "nothing is as accurate"
    ordered = sorted((row["placed_ms"], row["accuracy"]) for row in (floats, *found["attempts"]) if row["on_frontier"])
    assert [accuracy for _, accuracy in ordered] == sorted(accuracy for _, accuracy in ordered)
    assert json.loads((out_dir / "frontier.json").read_text()) == {"schema_version": 1, **found}
    assert (out_dir / "frontier.svg").is_file()


def test_more_attempts_than_a_device_takes_are_compared_with_the_float32_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower_and_slower(profile: DeviceProfile, cases: Sequence[Case], *rest: Any, **more: Any) -> BenchmarkResult:
        """The device slows down to a third after the first 16 cases."""
        result = benchmark(profile, cases, *rest, **more)
        slow = [scaled(case, 3.0) for case in result.cases[16:]]
        return result.model_copy(update={"cases": (*result.cases[:16], *slow)})

    monkeypatch.setattr("pipeline.stages.frontier.benchmark", slower_and_slower)
    attempts = [attempt("ranges", 0, 9)]
    attempts += [attempt("mixed", number, 8, layers=("a",) * number) for number in range(1, 20)]
    inputs, out_dir, loaded = walk(tmp_path, attempts, chosen=0), tmp_path / "out", list[str]()
    out_dir.mkdir()
    found = stage().run(inputs, out_dir, lambda event: loaded.append(event.get("case", "")))
    assert [name for name in loaded if "float32" in name] == ["fake float32 0", "fake float32 1"]
    assert [row["error"] for row in found["attempts"]] == [None] * 20
    for row in found["attempts"][:15]:
        assert row["placed_ms"] == pytest.approx(row["latency_ms"]["p50"])
    for row in found["attempts"][15:]:
        assert row["placed_ms"] == pytest.approx(row["latency_ms"]["p50"] / 3)


def scaled(case: CaseResult, factor: float) -> CaseResult:
    assert case.latency_ms is not None
    slow = case.latency_ms.model_copy(update={"p50": factor * case.latency_ms.p50})
    return case.model_copy(update={"latency_ms": slow})


def test_a_file_that_fails_loses_only_its_own_numbers(tmp_path: Path) -> None:
    inputs, out_dir = walk(tmp_path, [attempt("ranges", 0, 9), attempt("bias", 1, 1)], chosen=1), tmp_path / "out"
    write_model(inputs["ranges"] / "attempts/0.fake", 0, behaviour="crash")
    out_dir.mkdir()
    broken, whole = stage().run(inputs, out_dir, say_nothing)["attempts"]
    assert (broken["latency_ms"], broken["placed_ms"], broken["on_frontier"]) == (None, None, False)
    assert "SIGSEGV" in broken["error"]
    assert whole["latency_ms"]["p50"] > 0
    assert (out_dir / "frontier.svg").is_file()


def test_a_device_without_the_runtime_gives_numbers_without_latencies_and_no_picture(tmp_path: Path) -> None:
    inputs, out_dir = walk(tmp_path, [attempt("ranges", 0, 9)], chosen=0), tmp_path / "out"
    out_dir.mkdir()
    found = stage(target="litert").run(inputs, out_dir, say_nothing)
    assert found["float32"]["latency_ms"] is None
    assert "runs the runtime 'fake' only" in found["attempts"][0]["error"]
    assert not (out_dir / "frontier.svg").exists()


def test_the_device_and_the_processor_are_in_the_key() -> None:
    key = stage().key_config()
    assert stage(host={"cpu": "X"}).key_config() != key
    assert stage(profile=load_profile("local")).key_config() != key
    assert "ai-edge-litert" in stage(target="litert").tool_names()

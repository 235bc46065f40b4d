from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pipeline.tracking.session
from pipeline.recipe import Recipe
from pipeline.runner import RunResult
from pipeline.tracking.base import Record
from pipeline.tracking.session import TrackingSession, results_of

RECIPE = Recipe.model_validate_json(
    '{"name": "tiny", "data": {"source": "digits", "size": [32, 32]}, "model": {"name": "mobilenet_v2"}}', strict=True
)
REPORT: dict[str, Any] = {"network": None, "artifacts": [], "benchmarks": []}


@dataclass
class Recorder:
    """A tracker that remembers what it is told; it fails while `down`."""

    histories: list[list[int]] = field(default_factory=list)
    results: list[dict[str, float]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    down: bool = False

    def _check(self) -> None:
        if self.down:
            raise OSError("connection refused\nand a long tail")

    def write(self, history: list[Record]) -> None:
        self._check()
        self.histories.append([record["epoch"] for record in history])

    def finish(self, results: dict[str, float], files: dict[str, Path]) -> None:  # noqa: ARG002
        self._check()
        self.results.append(results)

    def close(self, end: str) -> None:
        self._check()
        self.ends.append(end)


def ignore(event: dict[str, Any]) -> None:
    """Takes an event."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(pipeline.tracking.session, "trackers_of", lambda _: [("Recorder", lambda _: made)])
    return made


def running(stage: str = "train") -> dict[str, Any]:
    return {"stage": stage, "state": "running", "key": "a" * 64}


def done(number: int) -> dict[str, Any]:
    return {"stage": "train", "epoch_done": {"epoch": number, "loss": 1.0}, "epochs": 5}


def test_every_event_is_handed_on_and_every_epoch_tracked(recorder: Recorder, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    events = [running("data"), running(), {"stage": "train", "epoch": 1, "epochs": 2}, done(1), done(2)]
    with TrackingSession(RECIPE, tmp_path, seen.append) as session:
        for event in events:
            session.tell(event)
        session.finish(RunResult(RECIPE, ()), REPORT)

    assert seen == events
    assert recorder.histories == [[1], [1, 2], [1, 2]]
    assert recorder.ends == ["finished"]


def test_a_cached_run_makes_nothing(tmp_path: Path) -> None:
    with TrackingSession(RECIPE, tmp_path, ignore) as session:
        session.tell({"stage": "train", "state": "cached", "seconds": 0.0, "key": "a"})
        session.tell({"stage": "calibrate", "state": "cached", "seconds": 0.0, "key": "b"})
        session.finish(RunResult(RECIPE, ()), REPORT)

    assert list(tmp_path.iterdir()) == []


def test_a_resumed_training_tells_its_earlier_epochs_and_an_epoch_told_twice_counts_once(
    recorder: Recorder, tmp_path: Path
) -> None:
    with TrackingSession(RECIPE, tmp_path, ignore) as session:
        session.tell(running())
        session.tell({"stage": "train", "history": [{"epoch": 1}, {"epoch": 2}]})
        session.tell(done(3))
        session.tell(done(3))
        session.tell(done(4))

    assert recorder.histories == [[1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]
    assert recorder.ends == ["failed"]  # nothing told that the run came to its end


def test_a_tracker_that_fails_warns_once_and_makes_up_for_it(recorder: Recorder, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    recorder.down = True
    with TrackingSession(RECIPE, tmp_path, seen.append) as session:
        for event in (running(), done(1), done(2)):
            session.tell(event)
        recorder.down = False
        session.tell(done(3))

    warnings = [event["warning"] for event in seen if "warning" in event]
    assert len(warnings) == 1
    assert "Recorder" in warnings[0]
    assert "connection refused." in warnings[0]
    assert recorder.histories == [[1, 2, 3]]


@pytest.mark.parametrize(("error", "end"), [(KeyboardInterrupt, "killed"), (RuntimeError, "failed")])
def test_how_a_run_that_was_broken_off_ended(
    error: type[BaseException], end: str, recorder: Recorder, tmp_path: Path
) -> None:
    session = TrackingSession(RECIPE, tmp_path, ignore)
    session.tell(running())
    session.tell(done(1))
    with pytest.raises(error), session:
        raise error

    assert recorder.ends == [end]


def test_files_that_cannot_be_written_do_not_end_a_training(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    (tmp_path / "file").write_text("no directory")
    with TrackingSession(RECIPE, tmp_path / "file", seen.append) as session:
        for event in (running(), done(1), done(2)):
            session.tell(event)

    assert len([event for event in seen if "warning" in event]) == 2  # CSV and TensorBoard, once each


def test_results_are_calibration_exports_and_latencies() -> None:
    row = {"target": "litert", "precision": "int8"}
    judged = {"ece": 0.1, "accuracy": 0.9, "nll": 0.5, "brier": 0.2}
    report = {
        "network": {
            "temperature": 1.5,
            "calibration": {"test": {"before": judged, "after": {**judged, "ece": 0.02}, "test_images": 360}},
        },
        "artifacts": [{**row, "accuracy": 0.89, "accuracy_drop": 0.01, "ece": None, "size_bytes": 1000}],
        "benchmarks": [{**row, "device": "local", "latency_ms": {"p50": 1.25}}],
    }

    results = results_of(report)

    assert results["test/ece_before"] == 0.1
    assert results["test/ece_after"] == 0.02
    assert results["test/temperature"] == 1.5
    assert results["export/litert/int8/accuracy"] == 0.89
    assert results["benchmark/local/litert/int8/latency_p50_ms"] == 1.25
    assert "export/litert/int8/ece" not in results

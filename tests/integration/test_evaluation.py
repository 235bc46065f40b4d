"""Accuracy, calibration and parity on a board behind SSH: samples are sent once, results are kept."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.mlperf import MlperfSettings, measure_by_rules
from devices.profile import DeviceProfile
from devices.quality import Quality, accuracy_change
from devices.records import BenchmarkSettings, Case
from devices.results import append_results, compare_quality, read_results
from devices.results_csv import to_csv
from devices.transport_config import SshTransport
from devices.transports.ssh_link import SshLink, close_links
from pipeline.adhoc import evaluate_model
from pipeline.artifacts import ArtifactStore
from pipeline.errors import InputError
from pipeline.imports.description import ModelDescription
from tests.ssh_server import SshServer, serve

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")

SIDE, CLASSES = 8, 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with serve(tmp_path / "board") as running:
        yield running
        close_links()


def board(server: SshServer) -> DeviceProfile:
    return DeviceProfile(
        name="board",
        description="A board of the test.",
        python=sys.executable,
        runtimes={"fake": ""},
        preference=("fake",),
        transport=SshTransport(**server.transport()),
        latency_label="simulated",
    )


def write_data(path: Path) -> np.ndarray[Any, Any]:
    """Images whose class is that of a linear model, most of the time."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (240, SIDE, SIDE, 3), np.uint8)
    weights = draw.normal(size=(SIDE * SIDE * 3, CLASSES)).astype(np.float32)
    labels = (images.reshape(240, -1).astype(np.float32) @ weights).argmax(axis=1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    np.savez(path, images=images, labels=labels)
    return weights


def write_model(path: Path, weights: np.ndarray[Any, Any], noise: float = 0.0) -> Path:
    draw = np.random.default_rng(1)
    with path.open("wb") as stream:
        np.savez(
            stream,
            weights=(weights + noise * draw.normal(size=weights.shape)).astype(np.float32),
            bias=np.zeros(CLASSES, np.float32),
            shape=np.array([SIDE, SIDE, 3]),
            kind=np.array("float32"),
            behaviour=np.array("ok"),
        )
    return path


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were sent, as their first bytes left."""
    names: dict[str, str] = {}
    found: list[str] = []
    original = SshLink.request

    def request(self: SshLink, name: str, params: Any = None, **options: Any) -> Any:
        if name == "offer":
            names[params["sha256"]] = params["name"]
        if name == "write" and params["offset"] == 0:
            found.append(names[params["sha256"]])
        return original(self, name, params, **options)

    monkeypatch.setattr(SshLink, "request", request)
    return found


def test_samples_are_sent_once_and_results_are_kept(server: SshServer, sent: list[str], tmp_path: Path) -> None:
    weights = write_data(tmp_path / "data.npz")
    model, other = write_model(tmp_path / "m.fake", weights, 0.4), write_model(tmp_path / "float.fake", weights)
    store = ArtifactStore(tmp_path / "store")

    def evaluate(path: Path, **options: Any) -> Any:
        return evaluate_model(path, str(tmp_path / "data.npz"), board(server), split="test", store=store,
                              description=ModelDescription(), tell=lambda _: None, **options)  # fmt: skip

    first = evaluate(model, reference=other, count=20)
    assert [name for name in sent if name.endswith((".npy", ".fake"))] == ["test_images.npy", "m.fake"]
    sent.clear()
    again = evaluate(model, reference=other, count=20)
    assert sent == []
    evaluate(other, count=20)
    assert sent == ["float.fake"]

    quality = first.record.quality
    assert quality == again.record.quality.model_copy(update={"seconds": quality.seconds})
    assert (quality.count, quality.metric, first.record.latency_label) == (20, "top1", "simulated")
    assert quality.accuracy == quality.correct / 20
    assert quality.reference.accuracy >= quality.accuracy
    assert 0 < quality.parity.max_logit_difference < 1
    assert first.record.facts["python"]
    assert (first.record.device, first.record.case.runtime, first.record.kind) == ("board", "fake", "quality")

    whole = evaluate(model)
    assert whole.record.quality.subset != quality.subset
    assert whole.values["parity"]["snr_db"] > 100, "the same file answers alike here and there"
    assert whole.values["accuracy_share"] == 1.0
    with pytest.raises(InputError, match="1000 samples are asked for, but there are"):
        evaluate(model, count=1000)

    path = tmp_path / "results.jsonl"
    found = [each.record.model_copy(update={"commit": None, "dirty": None}) for each in (first, again, whole)]
    append_results(path, found)
    records = read_results(path).records
    ((newest, base, change),) = compare_quality(records[:2])
    assert (newest.time > base.time, change.verdict, change.difference) == (True, "the same", 0.0)
    assert compare_quality(records[1:]) == [], "another subset is no base"
    rows = list(csv.DictReader(io.StringIO(to_csv(records))))
    assert [row["subset"] for row in rows] == [quality.subset, quality.subset, whole.record.quality.subset]
    assert float(rows[0]["accuracy"]) == quality.accuracy
    assert rows[0]["kind"] == "quality"
    assert float(rows[0]["parity_max_difference"]) == quality.parity.max_logit_difference


def test_the_rules_of_mlperf_on_a_board(server: SshServer, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, CLASSES))
    case = Case(id="m", runtime="fake", path=str(write_model(tmp_path / "m.fake", weights)))
    heard: list[dict[str, Any]] = []
    found = measure_by_rules(
        board(server), [case], MlperfSettings(min_duration_s=1.2, min_count=100), BenchmarkSettings(warm_up_time_s=0),
        log_dir=tmp_path / "logs", tell=heard.append,
    )  # fmt: skip
    assert [(run.scenario, run.generator) for run in found.cases[0].runs] == [
        ("single_stream", "edgeship"), ("offline", "edgeship")
    ]  # fmt: skip
    assert found.cases[0].runs[0].valid
    assert found.cases[0].runs[0].duration_s >= 1.2
    assert found.latency_label == "simulated"
    assert [event for event in heard if event.get("queries")], "the agent tells of its progress"


def test_the_verdict_on_two_accuracies() -> None:
    def measured(accuracy: float, metric: str = "top1") -> Quality:
        return Quality(data="d", split="test", subset="s", count=1000, precision="int8", metric=metric,
                       accuracy=accuracy, accuracy_interval=(accuracy - 0.03, accuracy + 0.02),
                       seconds=1.0)  # fmt: skip

    assert accuracy_change(measured(0.9), measured(0.8)).verdict == "better"
    assert accuracy_change(measured(0.8), measured(0.9)).verdict == "worse"
    assert accuracy_change(measured(0.8), measured(0.9, "mse")).verdict == "worse"
    assert accuracy_change(measured(0.8, "mse"), measured(0.9, "mse")).verdict == "better"
    found = accuracy_change(measured(0.9), measured(0.88))
    assert found.verdict == "can't tell"
    assert found.interval == pytest.approx((0.02 - np.hypot(0.03, 0.02), 0.02 + np.hypot(0.02, 0.03)))

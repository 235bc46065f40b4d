from __future__ import annotations

import csv
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline.tracking.base
from pipeline.errors import InputError
from pipeline.tracking.base import TrackedRun, Tracker, flattened, numbers_of, wall_times
from pipeline.tracking.config import MlflowConfig, TrackConfig, check_tracking
from pipeline.tracking.csv_file import CsvTracker
from pipeline.tracking.mlflow import KEY_TAG, MlflowTracker
from pipeline.tracking.tensorboard import TensorBoardTracker, event_directory, tag_of

PARAMETERS = {"train": {"epochs": 9, "augmentation": {"flip": True}}, "data": {"size": [8, 8]}}


def epoch(number: int, **more: Any) -> dict[str, Any]:
    return {
        "epoch": number,
        "loss": 2.0 / number,
        "accuracy": 0.5,
        "validation_loss": 2.5 / number,
        "validation_accuracy": 0.1 * number,
        "learning_rate": 0.003,
        "images_per_second": 812.5,
        "seconds": 2.0,
        **more,
    }


HISTORY = [epoch(number) for number in range(1, 6)]


@pytest.fixture
def tracked(tmp_path: Path) -> TrackedRun:
    return TrackedRun("tiny", "0123456789abcdef" * 4, tmp_path / "runs" / "tiny", PARAMETERS)


def events_of(directory: Path) -> list[Any]:
    """Reads event files by the definition of the format: length, its checksum, bytes, their checksum."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data: bytes) -> int:
        checksum = crc32c(data)
        return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF

    found = []
    for path in sorted(directory.glob("*tfevents*")):
        rest = path.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            assert struct.unpack("<I", rest[8:12])[0] == masked(rest[:8])
            data = rest[12 : 12 + length]
            assert struct.unpack("<I", rest[12 + length : 16 + length])[0] == masked(data)
            found.append(Event.FromString(data))
            rest = rest[16 + length :]
    return found


def scalars_of(directory: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events_of(directory):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 4)))
    return found


def test_event_files_hold_every_epoch_once_and_the_results(tracked: TrackedRun) -> None:
    tracker = TensorBoardTracker(tracked)
    for count in range(1, 6):
        tracker.write(HISTORY[:count])
    tracker.finish({"test/accuracy_after": 0.75}, {})
    tracker.close("finished")

    directory = event_directory(tracked.directory, tracked.key)
    assert directory == tracked.directory / "tensorboard" / "0123456789ab"
    scalars = scalars_of(directory)
    assert scalars["train/loss"] == [(step, round(2.0 / step, 4)) for step in range(1, 6)]
    assert scalars["validation/accuracy"] == [(step, round(0.1 * step, 4)) for step in range(1, 6)]
    assert scalars["train/learning_rate"] == [(step, 0.003) for step in range(1, 6)]
    assert scalars["train/images_per_second"][0] == (1, 812.5)
    assert scalars["test/accuracy_after"] == [(5, 0.75)]
    events = events_of(directory)
    assert events[0].file_version == "brain.Event:2"
    texts = [value for event in events for value in event.summary.value if value.tag.startswith("recipe")]
    assert b'"epochs": 9' in texts[0].tensor.string_val[0]


def test_epochs_are_readable_before_the_training_ends(tracked: TrackedRun) -> None:
    tracker = TensorBoardTracker(tracked)
    tracker.write(HISTORY[:2])

    assert len(scalars_of(event_directory(tracked.directory, tracked.key))["train/loss"]) == 2
    tracker.close("killed")


@pytest.mark.parametrize("kept", [0, 2, 3], ids=["from-the-start", "one-epoch-lost", "nothing-lost"])
def test_a_resumed_training_doubles_and_loses_no_epoch(tracked: TrackedRun, kept: int) -> None:
    killed = TensorBoardTracker(tracked)
    for count in range(1, 4):
        killed.write(HISTORY[:count])
    directory = event_directory(tracked.directory, tracked.key)
    (cut,) = directory.iterdir()
    killed.close("killed")
    cut.write_bytes(cut.read_bytes()[:-7])  # as a power cut leaves it

    resumed = TensorBoardTracker(tracked)
    for count in range(max(kept, 1), 6):
        resumed.write(HISTORY[:count])
    resumed.close("finished")

    assert [step for step, _ in scalars_of(directory)["train/loss"]] == [1, 2, 3, 4, 5]
    assert len(list(directory.iterdir())) == 1


def test_another_training_leaves_the_event_files_of_the_first(tracked: TrackedRun) -> None:
    other = TrackedRun("tiny", "f" * 64, tracked.directory, {})
    for run in (tracked, other):
        tracker = TensorBoardTracker(run)
        tracker.write(HISTORY[:2])
        tracker.close("finished")

    for run in (tracked, other):
        assert len(scalars_of(event_directory(run.directory, run.key))["train/loss"]) == 2


def test_after_an_error_the_event_files_hold_all_again(tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboardX.record_writer import RecordWriter

    tracker = TensorBoardTracker(tracked)
    tracker.write(HISTORY[:2])
    write = RecordWriter.write

    def full(self: Any, data: bytes) -> None:
        self._writer.write(data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match="No space"):
        tracker.write(HISTORY[:3])
    monkeypatch.setattr(RecordWriter, "write", write)
    tracker.write(HISTORY[:4])
    tracker.close("finished")

    directory = event_directory(tracked.directory, tracked.key)
    assert [step for step, _ in scalars_of(directory)["train/loss"]] == [1, 2, 3, 4]


def test_epochs_before_a_resume_stand_where_they_would_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tracking.base.time, "time", lambda: 1000.0)

    assert wall_times([epoch(1), epoch(2, seconds=5.0), epoch(3)]) == [993.0, 998.0, 1000.0]


def test_the_csv_file_has_a_row_an_epoch_and_every_column(tracked: TrackedRun) -> None:
    tracker = CsvTracker(tracked)
    for count in range(1, 4):
        tracker.write(HISTORY[:count])
    tracker.write([*HISTORY[:3], epoch(4, height=16)])
    tracker.finish({"test/accuracy": 0.5}, {})
    tracker.close("finished")

    with (tracked.directory / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[2]["loss"]) == HISTORY[2]["loss"]
    assert [row["height"] for row in rows] == ["", "", "", "16"]
    assert [path.name for path in tracked.directory.iterdir()] == ["history.csv"]


def test_names_and_numbers() -> None:
    assert tag_of("validation_loss") == "validation/loss"
    assert tag_of("learning_rate") == "train/learning_rate"
    assert tag_of("validation") == "train/validation"
    assert numbers_of({"epoch": 3, "loss": 1, "best": True, "learning_rate": None, "size": [8, 8]}) == {"loss": 1.0}
    assert flattened(PARAMETERS) == {"train.epochs": 9, "train.augmentation.flip": True, "data.size": [8, 8]}


@pytest.fixture
def mlflow_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowConfig]:
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield MlflowConfig(uri=f"file:{tmp_path}/mlruns", experiment="tests")


def client_of(config: MlflowConfig) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=config.uri)


def runs_of(config: MlflowConfig) -> list[Any]:
    client = client_of(config)
    found: list[Any] = client.search_runs([client.get_experiment_by_name(config.experiment).experiment_id])
    return found


def steps_of(config: MlflowConfig, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((each.step, each.value) for each in client_of(config).get_metric_history(run.info.run_id, name))


def test_mlflow_gets_parameters_metrics_and_artifacts(
    tracked: TrackedRun, mlflow_config: MlflowConfig, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    tracker: Tracker = MlflowTracker(tracked, mlflow_config)
    for count in range(1, 4):
        tracker.write(HISTORY[:count])
    tracker.finish({"test/ece_after": 0.02}, {"export/onnxruntime/int8/model.onnx": tmp_path / "model.onnx"})
    tracker.close("finished")

    (run,) = runs_of(mlflow_config)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.tags[KEY_TAG] == tracked.key
    assert run.data.params == {"train.epochs": "9", "train.augmentation.flip": "true", "data.size": "[8, 8]"}
    assert steps_of(mlflow_config, run, "loss") == [(step, 2.0 / step) for step in (1, 2, 3)]
    assert run.data.metrics["test/ece_after"] == 0.02
    listed = client_of(mlflow_config).list_artifacts(run.info.run_id, "export/onnxruntime/int8")
    assert [each.path for each in listed] == ["export/onnxruntime/int8/model.onnx"]


def test_mlflow_goes_on_with_the_run_of_a_killed_training(tracked: TrackedRun, mlflow_config: MlflowConfig) -> None:
    killed = MlflowTracker(tracked, mlflow_config)
    killed.write(HISTORY[:3])

    resumed = MlflowTracker(tracked, mlflow_config)
    resumed.write(HISTORY[:2])  # the third epoch is trained again
    resumed.write(HISTORY[:4])
    resumed.close("finished")

    (run,) = runs_of(mlflow_config)
    assert [step for step, _ in steps_of(mlflow_config, run, "loss")] == [1, 2, 3, 4]
    assert run.info.status == "FINISHED"


def test_a_finished_run_is_not_gone_on_with(tracked: TrackedRun, mlflow_config: MlflowConfig) -> None:
    for _ in range(2):
        tracker = MlflowTracker(tracked, mlflow_config)
        tracker.write(HISTORY[:1])
        tracker.close("finished")

    assert len(runs_of(mlflow_config)) == 2


def test_mlflow_that_was_down_gets_what_it_missed(
    tracked: TrackedRun, mlflow_config: MlflowConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MlflowTracker(tracked, mlflow_config)
    tracker.write(HISTORY[:1])
    monkeypatch.setattr(type(tracker._client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("down")))
    with pytest.raises(OSError, match="down"):
        tracker.write(HISTORY[:3])
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker.write(HISTORY[:4])
    tracker.close("finished")

    (run,) = runs_of(mlflow_config)
    assert [step for step, _ in steps_of(mlflow_config, run, "loss")] == [1, 2, 3, 4]


def test_without_mlflow_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.config.find_spec", lambda _: None)
    check_tracking(TrackConfig())
    with pytest.raises(InputError, match=r"not installed.*leave track\.mlflow out"):
        check_tracking(TrackConfig(mlflow=MlflowConfig(uri="http://127.0.0.1:5000")))


def test_without_an_address_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.config.find_spec", lambda _: object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="no uri"):
        check_tracking(TrackConfig(mlflow=MlflowConfig()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_tracking(TrackConfig(mlflow=MlflowConfig()))


@pytest.mark.parametrize("uri", ["sqlite:///m.db", "postgresql+psycopg2://host/db"])
def test_a_database_needs_what_mlflow_reaches_it_by(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.config.find_spec", lambda name: None if name == "sqlalchemy" else object())
    with pytest.raises(InputError, match="SQLAlchemy"):
        check_tracking(TrackConfig(mlflow=MlflowConfig(uri=uri)))

"""Listens to a run and keeps its trackers up to date. A tracker that fails warns once and ends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline.stages.base import Tell
from pipeline.tracking.base import End, Record, TrackedRun, Tracker
from pipeline.tracking.config import TrackConfig, check_tracking
from pipeline.tracking.csv_file import CsvTracker
from pipeline.tracking.mlflow import MlflowTracker
from pipeline.tracking.tensorboard import TensorBoardTracker
from pipeline.training.distribution import read_cluster
from pipeline.training.history import HISTORY_CSV_FILE

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.runner import RunResult

_PARAMETERS = ("data", "model", "train", "calibrate", "quantization")
"""Sections of the recipe that shape what is trained."""

_CALIBRATED_FILES = ("network.json", "network.weights.h5")


class TrackingSession:
    """Takes the progress events of a run, hands them on, and tells the trackers of its training.

    Use it as a context manager around the run. Without a training, as where all is cached, it does nothing; of several
    processes that train together, the first one alone tracks.

    Args:
        recipe: What is run.
        directory: `runs/<recipe>/`.
        tell: Takes every event, and a warning for each tracker that fails.

    Raises:
        InputError: A tracker that the recipe names can't be used here.
    """

    def __init__(self, recipe: Recipe, directory: Path, tell: Tell) -> None:
        self._config = recipe.track if read_cluster().is_primary else TrackConfig(tensorboard=False, csv=False)
        check_tracking(self._config)
        self._recipe, self._directory, self._tell = recipe, directory, tell
        self._key = ""
        self._trackers: dict[str, Tracker] = {}
        self._history: list[Record] = []
        self._warned: set[str] = set()
        self._end: End = "failed"

    def tell(self, event: dict[str, Any]) -> None:
        """Takes one event of the run."""
        self._tell(event)
        if event.get("stage") != "train":
            return
        if event.get("state") == "running":
            self._key, self._history = event["key"], []
        elif "history" in event:
            self._history = list(event["history"])
            self._write()
        elif "epoch_done" in event:
            record = event["epoch_done"]
            self._history = [known for known in self._history if known["epoch"] < record["epoch"]]
            self._history.append(record)
            self._write()

    def finish(self, result: RunResult, report: Mapping[str, Any]) -> None:
        """Tells the trackers what was measured after training."""
        self._end = "failed" if result.failures else "finished"
        if not self._trackers:
            return
        for name, tracker in self._trackers.items():
            with _Warning(self, name):
                tracker.write(self._history)
                tracker.finish(results_of(report), files_of(result, self._directory))

    def _write(self) -> None:
        if not self._trackers:
            parameters = self._recipe.model_dump(mode="json", include=set(_PARAMETERS))
            run = TrackedRun(self._recipe.name, self._key, self._directory, parameters)
            self._trackers = {name: make(run) for name, make in trackers_of(self._config)}
        for name, tracker in self._trackers.items():
            with _Warning(self, name):
                tracker.write(self._history)

    def warn(self, name: str, error: Exception) -> None:
        """Tells that a tracker failed, the first time that it does."""
        if name in self._warned:
            return
        self._warned.add(name)
        text = (str(error).strip().splitlines() or [""])[0]
        self._tell(
            {
                "warning": f"The training can't be tracked by {name} for now: {type(error).__name__}: {text[:300]}. "
                f"Training goes on; what is missing is written once that works again."
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = "killed" if kind is not None and issubclass(kind, KeyboardInterrupt) else self._end
        for name, tracker in self._trackers.items():
            with _Warning(self, name):
                tracker.close("failed" if kind is not None and end == "finished" else end)


class _Warning:
    """Makes any error of a tracker a warning."""

    def __init__(self, session: TrackingSession, name: str) -> None:
        self._session, self._name = session, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._session.warn(self._name, error)
            return True
        return False


def trackers_of(config: TrackConfig) -> Iterator[tuple[str, Callable[[TrackedRun], Tracker]]]:
    """Yields the name and the constructor of each tracker that is switched on."""
    if config.csv:
        yield "CSV", CsvTracker
    if config.tensorboard:
        yield "TensorBoard", TensorBoardTracker
    mlflow = config.mlflow
    if mlflow is not None:
        yield "MLflow", lambda run: MlflowTracker(run, mlflow)


def results_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a report that belong beside a training: calibration, exports, latencies."""
    network = report["network"] or {}
    found: dict[str, Any] = {"test/temperature": network.get("temperature")}
    judged = network.get("calibration", {}).get("test", {})
    for when in ("before", "after"):
        found |= {f"test/{name}_{when}": value for name, value in judged.get(when, {}).items()}
    for row in report["artifacts"]:
        label = f"export/{row['target']}/{row['precision']}"
        found |= {f"{label}/{name}": row.get(name) for name in ("accuracy", "accuracy_drop", "ece", "size_bytes")}
    for row in report["benchmarks"]:
        latency = row.get("latency_ms") or {}
        found[f"benchmark/{row['device']}/{row['target']}/{row['precision']}/latency_p50_ms"] = latency.get("p50")
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def files_of(result: RunResult, directory: Path) -> dict[str, Path]:
    """Returns the files that belong beside a training, by the name that they are kept under."""
    files = {name: directory / name for name in (HISTORY_CSV_FILE, "report.json", "report.md")}
    for name, artifact in result.artifacts.items():
        if name == "calibrate":
            files |= {f"network/{each}": artifact.directory / each for each in _CALIBRATED_FILES}
        elif name.startswith("export/"):
            model = Path(artifact.manifest.metrics["model"])
            names = {each.path for each in artifact.manifest.files if Path(each.path).stem == model.stem}
            files |= {f"{name}/{each}": artifact.directory / each for each in names}
    return {name: path for name, path in files.items() if path.is_file()}

"""A run on an MLflow server (optional extra `mlflow`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking.base import End, Record, TrackedRun, flattened, numbers_of, wall_times
from pipeline.tracking.config import MlflowConfig, tracking_uri

KEY_TAG = "edgeship.key"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_MOST_PARAMETERS = 100
_MOST_CHARACTERS = 6000
"""Limits of MLflow's REST interface: parameters a request, characters a parameter."""

_ENVIRONMENT = {
    # A server that is down must not hold up the training: MLflow's own 7 tries of 2 minutes would.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # MLflow otherwise tells its makers about every run.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A directory is only taken where the recipe names one.
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


class MlflowTracker:
    """Goes on with the run of an interrupted training, which it finds by the training's key."""

    def __init__(self, run: TrackedRun, config: MlflowConfig) -> None:
        self._run, self._config = run, config
        self._client: Any = None
        self._id = ""
        self._logged: set[int] = set()

    def write(self, history: Sequence[Record]) -> None:
        """Sends the epochs that the server does not have; each arrives whole or not at all."""
        from mlflow.entities import Metric

        self._connect()
        for record, at in zip(history, wall_times(history), strict=True):
            step = int(record["epoch"])
            if step not in self._logged:
                metrics = [Metric(name, value, int(1000 * at), step) for name, value in numbers_of(record).items()]
                try:
                    self._client.log_batch(self._id, metrics=metrics)
                except Exception:
                    self._id = ""  # The next call asks the server what of it arrived.
                    raise
                self._logged.add(step)

    def finish(self, results: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Sends results and files."""
        self._connect()
        for name, value in results.items():
            self._client.log_metric(self._id, name, value)
        for name, path in files.items():
            self._client.log_artifact(self._id, str(path), name.rpartition("/")[0] or None)

    def close(self, end: End) -> None:
        """Says how the run ended."""
        if self._id:
            self._client.set_terminated(self._id, _STATUS[end])

    def _connect(self) -> None:
        """Finds or makes the run."""
        if self._id:
            return
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=tracking_uri(self._config))
        known = self._client.get_experiment_by_name(self._config.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(self._config.experiment)
        found = self._client.search_runs(
            [experiment],
            filter_string=f"tags.`{KEY_TAG}` = '{self._run.key}' and attributes.status != 'FINISHED'",
            max_results=1,
        )
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
            self._logged = {metric.step for metric in self._client.get_metric_history(run, "loss")}
        else:
            run = self._begin(experiment)
        self._id = run

    def _begin(self, experiment: str) -> str:
        from mlflow.entities import Param

        name = self._config.run_name or self._run.name
        tags = {KEY_TAG: self._run.key, "edgeship.recipe": self._run.name}
        run: str = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        parameters = [Param(key, _text(value)) for key, value in flattened(self._run.parameters).items()]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(run, params=parameters[start : start + _MOST_PARAMETERS])
        return run


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"

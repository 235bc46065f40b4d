"""Who watches a training: the `track` section of a recipe. It is part of no stage's key."""

from __future__ import annotations

import os
from importlib.util import find_spec

from pydantic import Field

from pipeline.errors import InputError
from pipeline.stages.base import FrozenConfig


class MlflowConfig(FrozenConfig):
    """A run on an MLflow server.

    Attributes:
        uri: Address of the server, or `file:DIRECTORY`; None takes the environment's MLFLOW_TRACKING_URI.
        experiment: Is made where it is missing.
        run_name: None takes the recipe's name.
    """

    uri: str | None = Field(default=None, min_length=1)
    experiment: str = Field(default="edgeship", min_length=1)
    run_name: str | None = Field(default=None, min_length=1)


class TrackConfig(FrozenConfig):
    """Who watches a training.

    Attributes:
        tensorboard: Event files in `runs/<recipe>/tensorboard/`, a directory a training.
        csv: One row an epoch in `runs/<recipe>/history.csv`.
        mlflow: Parameters, metrics and artifacts on an MLflow server; None sends nothing anywhere.
    """

    tensorboard: bool = True
    csv: bool = True
    mlflow: MlflowConfig | None = None


def tracking_uri(config: MlflowConfig) -> str:
    """Returns the address of the MLflow server; empty where there is none."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")


def check_tracking(config: TrackConfig) -> None:
    """Refuses what could not be tracked, before anything runs.

    Raises:
        InputError: MLflow is switched on, but it or what its address needs is not installed, or there is no address.
    """
    if config.mlflow is None:
        return
    uri = tracking_uri(config.mlflow)
    if find_spec("mlflow") is None:
        raise InputError(
            "track.mlflow is given, but MLflow is not installed. Install it with `pip install '.[mlflow]'`, or "
            "leave track.mlflow out."
        )
    if not uri:
        raise InputError(
            "track.mlflow has no uri and MLFLOW_TRACKING_URI is not set. Give the server's address, such as "
            "http://127.0.0.1:5000, or a directory as file:mlruns."
        )
    if uri.split(":", 1)[0].split("+", 1)[0] in _DATABASES and find_spec("sqlalchemy") is None:
        raise InputError(
            f"track.mlflow.uri is a database ({uri.split(':', 1)[0]}), which MLflow reaches by SQLAlchemy, but that "
            f"is not installed. Install the whole package (`pip install mlflow`), or give a server or file:DIRECTORY."
        )


_DATABASES = ("mssql", "mysql", "postgresql", "sqlite")

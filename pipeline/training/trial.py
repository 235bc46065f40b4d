"""A training that is only tried out: what a dry run and the learning-rate test share. Loads Keras."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.network import ModelConfig
from pipeline.stages.base import Tell
from pipeline.training.backends import check_backend
from pipeline.training.config import Backend, TrainConfig
from pipeline.training.distribution import Distribution, set_up, shut_down
from pipeline.training.images import TrainingImages
from pipeline.training.loop import Training, Validation


@dataclass(frozen=True)
class Trial:
    """A fresh training and what it was made of; it is of no use after the trial."""

    training: Training
    model: ModelConfig
    config: TrainConfig
    backend: Backend
    images: TrainingImages
    validation: Validation
    distribution: Distribution
    tell: Tell


@contextlib.contextmanager
def trial(data: Path, *, model: ModelConfig, train: TrainConfig, backend: Backend, tell: Tell) -> Iterator[Trial]:
    """Builds a training as the train stage does.

    Args:
        data: Directory of the `data` artifact.
        model: Which network.
        train: How it is trained.
        backend: On which Keras runs.
        tell: Takes progress events.

    Raises:
        DataError: The data can't be trained on.
        InputError: The config does not fit the network or the machine.
        StageError: The backend found no GPU where one was counted on.
    """
    check_backend(backend, train.backend)
    images = TrainingImages(data)
    validation = (np.load(data / "validation_images.npy"), np.load(data / "validation_labels.npy"))
    distribution = set_up(train, backend)
    try:
        training = Training(
            model=model,
            train=train,
            backend=backend,
            images=images,
            validation=validation,
            tell=tell,
            distribution=distribution,
        )
        yield Trial(training, model, train, backend, images, validation, distribution, tell)
    finally:
        shut_down(distribution)

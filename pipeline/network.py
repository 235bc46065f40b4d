"""The network of a recipe: its config, building it, its weights on disk."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

import models
from pipeline.errors import InputError, StageError
from pipeline.stages.base import FrozenConfig

if TYPE_CHECKING:
    import keras

NETWORK_FILE = "network.json"
WEIGHTS_FILE = "network.weights.h5"
FAKE_NETWORK = "fake"
"""A linear classifier that needs no heavy runtime: for trying out recipes, devices and the command line."""

PREDICTION_BATCH = 64


class ModelConfig(FrozenConfig):
    """Which network: a row of `models.MODELS` and its options.

    Attributes:
        name: Key of `models.MODELS`, or `fake`.
        width: Width multiplier, for the families that have one.
        dropout: Share of features dropped before the last layer; None takes the paper's.
        early_stride: True for the paper's strides, False for the variant for small images; None chooses by the
            image size (`models.default_early_stride`).
        batch_norm_momentum: Weight of the old value in the moving averages; None takes the family's.
    """

    name: str
    width: float | None = Field(default=None, gt=0, le=4)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    early_stride: bool | None = None
    batch_norm_momentum: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.name == FAKE_NETWORK:
            given = self.options()
            if given:
                raise ValueError(f"{next(iter(given))} belongs to a real network, not to fake: leave it out.")
            return self
        try:
            spec = models.find(self.name)
        except ValueError as error:
            raise ValueError(f"name: {error}") from error
        if self.width not in (None, 1.0) and not spec.has_width:
            raise ValueError(f"width is {self.width:g}, but {self.name} has no width multiplier: leave it out.")
        return self

    def options(self) -> dict[str, Any]:
        """Returns the options that were given, as keyword arguments of `models.build`."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


def build_network(config: ModelConfig, input_shape: Sequence[int], num_classes: int) -> keras.Model:
    """Builds the network with fresh weights.

    Args:
        config: Which one.
        input_shape: (height, width, 3).
        num_classes: How many logits.
    """
    height, width, channels = input_shape
    return models.build(config.name, input_shape=(height, width, channels), num_classes=num_classes, **config.options())


def save_network(model: keras.Model, directory: Path, *, config: ModelConfig, classes: Sequence[str]) -> None:
    """Writes what `load_network` needs: the config and the weights, without the state of an optimizer."""
    description = {
        "model": config.model_dump(mode="json"),
        "input_shape": list(model.inputs[0].shape[1:]),
        "classes": list(classes),
    }
    (directory / NETWORK_FILE).unlink(missing_ok=True)
    (directory / WEIGHTS_FILE).unlink(missing_ok=True)
    (directory / NETWORK_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    bare = build_network(config, model.inputs[0].shape[1:], len(classes))
    bare.set_weights(model.get_weights())
    bare.save_weights(directory / WEIGHTS_FILE)


def load_network(directory: Path) -> keras.Model:
    """Builds the network that an artifact holds and loads its weights, on whatever Keras backend is active.

    Raises:
        StageError: The weights don't fit the network.
    """
    description = json.loads((directory / NETWORK_FILE).read_text(encoding="utf-8"))
    model = build_network(
        ModelConfig.model_validate(description["model"]),
        description["input_shape"],
        len(description["classes"]),
    )
    try:
        model.load_weights(directory / WEIGHTS_FILE)
    except (ValueError, OSError) as error:
        raise StageError(f"The weights in {directory} don't fit {description['model']['name']}: {error}.") from error
    return model


def save_fresh_network(name: str, path: Path, *, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Writes a network with random weights as a `.keras` file, which Keras loads without Edgeship.

    Args:
        name: Key of `models.MODELS`.
        path: The file; there must be none.
        seed: Of the random weights.
        options: Keyword arguments of `models.build`.

    Returns:
        `name`, `path`, `parameters` (all of them), `size_bytes` and `seed`.

    Raises:
        InputError: The path is no new `.keras` file in a directory that can be written.
        ValueError: As in `models.build`.
    """
    if path.suffix != ".keras":
        raise InputError(f"{path} is no name for a Keras file: end it in .keras.")
    if path.exists():
        raise InputError(f"{path} is there already and may be trained: give another name, or remove it.")
    # Keras draws the seeds of its initializers from here; keras.utils.set_random_seed would load TensorFlow.
    random.seed(seed)
    model = models.build(name, **options)
    # Beside it and renamed: nobody reads half a file.
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.keras")
    try:
        model.save(scratch)
        scratch.rename(path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from error
    finally:
        scratch.unlink(missing_ok=True)
    size = path.stat().st_size
    return {
        "name": name,
        "path": str(path),
        "parameters": model.count_params(),
        "size_bytes": size,
        "seed": seed,
    }


def predict_logits(model: keras.Model, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns the logits `(images, classes)` of uint8 images `(images, height, width, 3)`.

    Every batch has the same size, so that the backend traces the network once.
    """
    import keras

    rows = []
    for start in range(0, len(images), PREDICTION_BATCH):
        batch = np.asarray(images[start : start + PREDICTION_BATCH])
        missing = PREDICTION_BATCH - len(batch)
        padded = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)]) if missing else batch
        logits = keras.ops.convert_to_numpy(model.predict_on_batch(padded))
        rows.append(np.asarray(logits, np.float32)[: len(batch)])
    return np.concatenate(rows)

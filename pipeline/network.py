"""The network of a recipe: its config, building it, its weights on disk."""

from __future__ import annotations

import hashlib
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
from models.pretrained import IMAGENET
from models.scaling import compound_scaling
from pipeline.errors import InputError, StageError
from pipeline.stages.base import FrozenConfig

if TYPE_CHECKING:
    import keras

NETWORK_FILE = "network.json"
WEIGHTS_FILE = "network.weights.h5"
FAKE_NETWORK = "fake"
"""A linear classifier that needs no heavy runtime: for trying out recipes, devices and the command line."""

PREDICTION_BATCH = 64


class NetworkOptions(FrozenConfig):
    """What can be chosen of a network besides its size.

    Attributes:
        dropout: Share of features dropped before the last layer; None takes the paper's.
        drop_path: Share of the samples for which the last residual block is skipped in training (stochastic depth);
            None takes the paper's.
        activation: The principal nonlinearity; None takes the paper's. relu6 quantizes well everywhere.
        squeeze_excite: Whether blocks gate their channels; None as in the paper.
        early_stride: True for the paper's strides, False for the variant for small images; None chooses by the
            image size (`models.default_early_stride`).
        batch_norm_momentum: Weight of the old value in the moving averages; None takes the family's.
        weights: What training starts from: `imagenet`, or the path of a .keras file, a .weights.h5 file or an
            artifact of Edgeship; None starts from random weights.
    """

    dropout: float | None = Field(default=None, ge=0, lt=1)
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    activation: models.Activation | None = None
    squeeze_excite: bool | None = None
    early_stride: bool | None = None
    batch_norm_momentum: float | None = Field(default=None, gt=0, lt=1)
    weights: str | None = Field(default=None, min_length=1)

    def options(self) -> dict[str, Any]:
        """Returns the options that were given, as keyword arguments of `models.build`."""
        return self.model_dump(include=set(NetworkOptions.model_fields) - {"weights"}, exclude_none=True)


class ModelConfig(NetworkOptions):
    """Which network: a row of `models.MODELS` and its options.

    Attributes:
        name: Key of `models.MODELS`, or `fake`.
        width: Width multiplier, for the families that have one.
        depth: Depth multiplier, for the families that have one.
        phi: Compound coefficient (Tan and Le 2019), for the families with width and depth: stands for both.
    """

    name: str
    width: float | None = Field(default=None, gt=0, le=4)
    depth: float | None = Field(default=None, gt=0, le=8)
    phi: float | None = Field(default=None, ge=-4, le=8)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.name == FAKE_NETWORK:
            given = self.model_dump(exclude={"name"}, exclude_none=True)
            if given:
                raise ValueError(f"{next(iter(given))} belongs to a real network, not to fake: leave it out.")
            return self
        try:
            spec = models.find(self.name)
        except ValueError as error:
            raise ValueError(f"model.name: {error}") from error
        if spec.input_kind != "image":
            raise ValueError(
                f"model.name is {self.name}, which takes features {spec.input_shape} and no images: write it with "
                f"edgeship models save {self.name} --out {self.name}.keras, train it where its data are, and give "
                f"model.path."
            )
        if self.phi is not None:
            beside = " and ".join(name for name in ("width", "depth") if getattr(self, name) is not None)
            if beside:
                raise ValueError(f"phi stands for width and depth, but {beside} is given too: leave one out.")
            if not (spec.has_width and spec.has_depth):
                raise ValueError(f"phi is {self.phi:g}, but {self.name} has no compound scaling: leave it out.")
        neutral = {"width": 1.0, "depth": 1.0, "activation": spec.activation, "squeeze_excite": spec.squeeze_excite}
        options = {name: value for name, value in self.options().items() if neutral.get(name) != value}
        models.check_options(
            spec, **{name: value for name, value in options.items() if value or name == "early_stride"}
        )
        return self

    def options(self) -> dict[str, Any]:
        """Returns the options that were given, as keyword arguments of `models.build`."""
        chosen = super().options() | self.model_dump(include={"width", "depth"}, exclude_none=True)
        if self.phi is not None:
            scaling = compound_scaling(self.phi)
            chosen |= {"width": scaling.width, "depth": scaling.depth}
        return chosen


def weights_fingerprint(weights: str) -> str:
    """Returns what stands for weights in a key: `imagenet`, or the digest of the files at a path.

    Raises:
        InputError: There is nothing, or it can't be read.
    """
    if weights == IMAGENET:
        return IMAGENET
    path = Path(weights).expanduser()
    try:
        return network_digest(path)
    except OSError as error:
        raise InputError(
            f"model.weights is {weights}, but {error.filename or path} can't be read ({error.strerror or error}): "
            f"expected imagenet, a .keras file, a .weights.h5 file, or an artifact of train or calibrate."
        ) from error


def network_digest(path: Path) -> str:
    """Returns a digest of a file of weights, or of the network in an artifact's directory; it loads nothing.

    Raises:
        OSError: There is nothing, or it can't be read.
    """
    files = [path / name for name in (NETWORK_FILE, WEIGHTS_FILE)] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


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

"""Weights for a network that is to be trained further: ImageNet's, those of a file, those of an Edgeship artifact.

| given | holds |
|---|---|
| `imagenet` | what `keras.applications` publishes for the network, fetched through Keras and kept in its cache |
| `*.keras` | a whole model: one of ours, or one of `keras.applications` |
| `*.weights.h5`, `*.h5` | weights alone, of either |
| a directory | an artifact with `network.json` and `network.weights.h5` |

Image size, activation, dropout and early strides may differ from those of the network that the weights were
trained in; channels, blocks and gates may not. All weights are set, but those of the last layer if the classes
differ; nothing is set if anything does not fit.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from models.reference import (
    HEAD,
    REFERENCES,
    FloatArray,
    build_reference,
    copy_from_reference,
    find_reference,
    set_reference_weights,
    weighted_layers,
)

if TYPE_CHECKING:
    import keras

IMAGENET = "imagenet"
IMAGENET_CLASSES = 1000
NETWORK_FILE = "network.json"
WEIGHTS_FILE = "network.weights.h5"
_HEADS_OF_REFERENCES = ("predictions", "conv_preds", "logits")
SILENT_SERVER_SECONDS = 30.0
"""How long a server may say nothing before weights count as out of reach."""

_WHAT_ELSE = "Take weights of the same network, with the same width, depth and gates, or leave them out."


class UnreachableWeightsError(ValueError):
    """Published weights exist, but this machine can't fetch them."""


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """What was loaded.

    Args:
        source: Where it came from, for people: `imagenet`, with the function of Keras, the width and the resolution
            that the weights were trained at, or the path.
        num_tensors: Number of weights that were set.
        fresh_head: Whether the last layer kept its random weights.
    """

    source: str
    num_tensors: int
    fresh_head: bool


def load_pretrained(
    network: keras.Model,
    *,
    name: str,
    weights: str | Path,
    width: float = 1.0,
    classes: Sequence[str] | None = None,
) -> LoadedWeights:
    """Sets the weights of a network.

    Args:
        network: As `models.build` makes it; changed in place.
        name: Its key in `models.MODELS`.
        weights: `imagenet` or a path; see the module's table.
        width: The width multiplier that it was built with.
        classes: Names of its classes in order. An artifact with other names leaves the head fresh even if there
            are as many; None compares the numbers only.

    Raises:
        UnreachableWeightsError: If published weights can't be fetched.
        ValueError: If there are none, a file is missing or not what its name says, or the weights belong to
            another network; the message names the first layer that differs.
    """
    if weights == IMAGENET:
        return _load_imagenet(network, name=name, width=width)
    path = Path(weights)
    if not path.exists():
        raise ValueError(
            f"weights is {str(weights)!r}, expected {IMAGENET!r} or an existing path: a .keras file, a .weights.h5 "
            "file, or the directory of an artifact."
        )
    if path.is_dir():
        return _load_artifact(network, path, name=name, classes=classes)
    if path.name.endswith(".keras"):
        return _load_keras_model(network, path, name=name)
    if path.name.endswith(".h5"):
        return _load_weights_file(network, path, name=name, width=width)
    raise ValueError(f"{path} is no file of weights, expected the ending .keras, .weights.h5 or .h5, or a directory.")


def imagenet_resolution(name: str, *, width: float = 1.0, resolution: int) -> int:
    """The resolution whose published ImageNet weights suit a network best: the one that is nearest.

    Convolutions have the same weights at every image size, so that every size can start from them.

    Args:
        name: Key in `models.MODELS`.
        width: Width multiplier.
        resolution: Shorter side of the image in pixels.

    Raises:
        ValueError: If `keras.applications` has no weights for the network or the width.
    """
    try:
        reference = find_reference(name)
    except ValueError as error:
        raise ValueError(f"There are no ImageNet weights of {name!r}. {error}") from error
    if width not in reference.widths:
        have = ", ".join(f"{value:g}" for value in reference.widths)
        raise ValueError(
            f"There are no ImageNet weights of {name!r} for the width {width:g}; keras.applications has them for the "
            f"widths {have}."
        )
    return min(reference.resolutions, key=lambda side: (abs(side - resolution), -side))


def _load_imagenet(network: keras.Model, *, name: str, width: float) -> LoadedWeights:
    """From `keras.applications`; the head is fresh unless there are 1,000 classes."""
    side = imagenet_resolution(name, width=width, resolution=min(network.inputs[0].shape[1:3]))
    function = REFERENCES[name].function
    try:
        # Keras reports its progress on standard output, which belongs to the caller.
        with _socket_timeout(SILENT_SERVER_SECONDS), contextlib.redirect_stdout(sys.stderr):
            reference = build_reference(name, input_shape=(side, side, 3), width=width, weights=IMAGENET)
    # Keras raises a bare Exception if a download fails, a ValueError if the file has another hash.
    except Exception as error:
        raise UnreachableWeightsError(
            f"The ImageNet weights of {name!r} can't be fetched: {_first_line(error)}. Give a path instead: of the "
            f"file that keras.applications.{function} fetches, from a machine that reaches storage.googleapis.com; or "
            "leave the weights out."
        ) from error
    head = network.get_layer(HEAD).units == IMAGENET_CLASSES
    count = copy_from_reference(reference, network, name, head=head)
    source = f"{IMAGENET} (keras.applications.{function}, width {width:g}, {side}x{side} pixels)"
    return LoadedWeights(source=source, num_tensors=count, fresh_head=not head)


def _load_artifact(network: keras.Model, directory: Path, *, name: str, classes: Sequence[str] | None) -> LoadedWeights:
    """From a directory that the pipeline wrote."""
    description, weights = directory / NETWORK_FILE, directory / WEIGHTS_FILE
    if not description.is_file() or not weights.is_file():
        raise ValueError(
            f"{directory} is no artifact with a network, expected {NETWORK_FILE} and {WEIGHTS_FILE} in it."
        )
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        stored_name, stored_classes = str(content["model"]["name"]), [str(item) for item in content["classes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description} does not describe a network: {type(error).__name__}, {error}.") from error
    if stored_name != name:
        raise ValueError(f"{directory} holds weights of {stored_name!r}, but the network is {name!r}. {_WHAT_ELSE}")
    same_classes = classes is None or list(classes) == stored_classes
    with _reading(weights), weights.open("rb") as file:
        tensors = _tensors_by_layer(file)
    return _set_weights(network, tensors, weights, fresh_head=not same_classes)


def _load_keras_model(network: keras.Model, path: Path, *, name: str) -> LoadedWeights:
    """From a model that Keras saved.

    Ours are read as arrays by the names of their layers: nothing in the file is executed.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        tensors = _tensors_by_layer(io.BytesIO(archive.read("model.weights.h5")))
    if _is_ours(tensors):
        return _set_weights(network, tensors, path)
    import keras

    _check_counterpart(name, path)
    with _reading(path):
        model = keras.saving.load_model(path, compile=False)
    return _copy_model(model, network, path, name=name)


def _load_weights_file(network: keras.Model, path: Path, *, name: str, width: float) -> LoadedWeights:
    """From a file of weights alone: ours, or one of `keras.applications`.

    The files that `keras.applications` fetches are of the older form and may have other names of layers than the
    networks that are built today; Keras loads them by the order of the layers.
    """
    with _reading(path), path.open("rb") as file:
        tensors = _tensors_by_layer(file)
    if _is_ours(tensors):
        return _set_weights(network, tensors, path)
    _check_counterpart(name, path)
    heads = [arrays for layer, arrays in tensors.items() if layer.lower() in _HEADS_OF_REFERENCES]
    num_classes = heads[-1][-1].size if heads else IMAGENET_CLASSES
    side = REFERENCES[name].resolutions[-1]
    is_older = not path.name.endswith(".weights.h5")
    with _reading(path):
        model = build_reference(
            name,
            input_shape=(side, side, 3),
            num_classes=num_classes,
            width=width,
            weights=path if is_older else None,
        )
    if not is_older:
        try:
            set_reference_weights(model, tensors)
        except ValueError as error:
            raise ValueError(f"The weights in {path} don't fit {name!r}: {error} {_WHAT_ELSE}") from error
    return _copy_model(model, network, path, name=name)


def _check_counterpart(name: str, path: Path) -> None:
    """Refuses a file that holds none of our networks, if the network has no counterpart that it could hold.

    Raises:
        ValueError: If it is refused.
    """
    try:
        find_reference(name)
    except ValueError as error:
        raise ValueError(f"{path} does not hold {name!r} as this package builds it. {error}") from error


def _copy_model(model: keras.Model, network: keras.Model, path: Path, *, name: str) -> LoadedWeights:
    """From a model of `keras.applications`; the head is fresh if the numbers of classes differ."""
    head = model.outputs[0].shape[-1] == network.get_layer(HEAD).units
    try:
        count = copy_from_reference(model, network, name, head=head)
    except ValueError as error:
        raise ValueError(f"The weights in {path} don't fit {name!r}: {error} {_WHAT_ELSE}") from error
    return LoadedWeights(source=str(path), num_tensors=count, fresh_head=not head)


def _is_ours(tensors: dict[str, list[FloatArray]]) -> bool:
    """Whether a file's layers have names as `models.blocks` gives them."""
    return HEAD in tensors and any(name.startswith("block_") for name in tensors)


def _tensors_by_layer(file: IO[bytes]) -> dict[str, list[FloatArray]]:
    """Reads the weights of each layer from an HDF5 file.

    Two forms are known: Keras 3 keeps a group for each layer, with the layer's name as an attribute; older files
    list the names of layers and weights as attributes, those of whole models one level down.

    Raises:
        ValueError: If it is neither.
        OSError: If it is no HDF5 file, or a damaged one.
    """
    import h5py

    with h5py.File(file, "r") as opened:
        content = opened.get("model_weights", opened)
        if "layers" in content:
            return {
                str(values.attrs.get("name", key)): [np.asarray(values[index]) for index in sorted(values, key=int)]
                for key, group in content["layers"].items()
                if (values := group.get("vars")) is not None and len(values)
            }
        if "layer_names" in content.attrs:
            names = [_decoded(name) for name in content.attrs["layer_names"]]
            weights = {name: [_decoded(item) for item in content[name].attrs["weight_names"]] for name in names}
            return {
                name: [np.asarray(content[name][item]) for item in items] for name, items in weights.items() if items
            }
    raise ValueError("it holds no weights of Keras layers")


def _decoded(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _set_weights(
    network: keras.Model, tensors: dict[str, list[FloatArray]], path: Path, *, fresh_head: bool = False
) -> LoadedWeights:
    """Sets our weights from those of one of our networks, by the names of the layers.

    Raises:
        ValueError: If a layer is missing in the file, left over, or has other shapes.
    """
    fitting = []
    remaining = dict(tensors)
    for layer in weighted_layers(network):
        arrays = remaining.pop(layer.name, None)
        if arrays is None:
            raise ValueError(
                f"The weights in {path} don't fit {network.name!r}: they have no layer {layer.name!r}. {_WHAT_ELSE}"
            )
        received = [array.shape for array in arrays]
        expected = [tuple(weight.shape) for weight in layer.weights]
        if layer.name == HEAD and (fresh_head or received[-1] != expected[-1]):
            fresh_head = True
            continue
        if received != expected:
            raise ValueError(
                f"The weights in {path} don't fit {network.name!r}: layer {layer.name!r} has the shapes "
                f"{', '.join(map(str, received))} in the file, but {', '.join(map(str, expected))} in the network. "
                f"{_WHAT_ELSE}"
            )
        fitting.append((layer, arrays))
    if remaining:
        raise ValueError(
            f"The weights in {path} don't fit {network.name!r}: their layer {next(iter(remaining))!r} is left over. "
            f"{_WHAT_ELSE}"
        )
    for layer, arrays in fitting:
        layer.set_weights(arrays)
    return LoadedWeights(source=str(path), num_tensors=sum(len(arrays) for _, arrays in fitting), fresh_head=fresh_head)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file in whatever goes wrong while it is read."""
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{path} can't be read as what its name says: {_first_line(error)}. It may be truncated, or hold "
            "layers that Keras does not know."
        ) from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Limits how long a connection may stay silent; Keras' download has no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: BaseException) -> str:
    """The start of a message that may be long, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

"""Which layers of a network are kept as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    import keras


def frozen_layers(network: keras.Model, until: str) -> list[keras.Layer]:
    """Returns the layers that are frozen, the first ones of the network.

    Args:
        network: A functional network; its layers are in the order of its graph.
        until: Name of the last frozen layer, or of the block it ends, a prefix up to `_`; `head` freezes all but the
            last layer.

    Raises:
        InputError: No layer has that name or prefix, or nothing would be left to train.
    """
    layers = list(network.layers)
    if until == "head":
        return layers[:-1]
    matching = [at for at, layer in enumerate(layers) if layer.name == until or layer.name.startswith(f"{until}_")]
    if not matching:
        names = list(dict.fromkeys(_block(layer.name) for layer in layers if layer.weights))
        raise InputError(
            f"train.freeze.until is {until}, but {network.name} has no layer of that name; its blocks are "
            f"{', '.join(names)}. Name one of them or a layer, or head for all but the last layer."
        )
    frozen = layers[: matching[-1] + 1]
    if not any(layer.trainable_variables for layer in layers[len(frozen) :]):
        raise InputError(f"train.freeze.until is {until}, which leaves no layer to train: name an earlier one.")
    return frozen


def _block(name: str) -> str:
    """`block_03_project_bn` -> `block_03`; a layer outside of blocks stands for itself."""
    parts = name.split("_")
    return "_".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else name

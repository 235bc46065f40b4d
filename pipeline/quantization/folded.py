"""A network without batch normalizations, and the way back.

Every remedy changes weights, and the weights that a target quantizes are those after folding. So remedies work on the
folded network. `unfold` writes what they made of it into the network's own layers, which is saved, loaded and exported
as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.folding import SCALE_SUFFIXES, fold_for_inference
from pipeline.errors import UnsupportedModelError
from pipeline.quantization.graph import Graph, array_of, copy_network, graph_of, is_linear

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float32]


def fold(network: keras.Model) -> keras.Model:
    """Returns the same function without batch normalizations and dropout.

    A normalization becomes a part of the convolution or dense layer before it, which gets a bias if it has none. One
    that follows something else, as before MobileNetV4's attention, becomes a depthwise 1x1 convolution with a bias and
    keeps its name. Layer scales are folded as for export (`models.folding`).

    Args:
        network: Functional, trained.

    Returns:
        A network with weights of its own; the layers that stay keep their names.

    Raises:
        UnsupportedModelError: A normalization follows something else, and is not one of channels of a map.
    """
    import keras

    scaled = fold_for_inference(network)
    graph = graph_of(scaled)
    targets = _targets(graph)
    folded_into = set(targets.values())
    alone = {layer.name for layer in graph.layers.values() if _is_norm(layer)} - set(targets)

    def renew(layer: keras.Layer) -> keras.Layer:
        if layer.name in alone:
            return _channel_scale(layer)
        config = layer.get_config()
        if layer.name in folded_into:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer: keras.Layer, *arguments: Any, **options: Any) -> Any:
        if layer.name in targets or isinstance(layer, keras.layers.Dropout):
            return arguments[0]
        # A normalization is called with a mask, which the convolution in its place does not take.
        return layer(*arguments) if layer.name in alone else layer(*arguments, **options)

    folded = keras.models.clone_model(scaled, clone_function=renew, call_function=call)
    norms = {conv: norm for norm, conv in targets.items()}
    for layer in folded.layers:
        source = graph.layers[layer.name]
        if layer.name in alone:
            factor, shift = _affine(source)
            layer.set_weights([factor.reshape(1, 1, -1, 1).astype(np.float32), shift.astype(np.float32)])
        elif layer.name in norms:
            layer.set_weights(_folded_weights(source, *_affine(graph.layers[norms[layer.name]])))
        else:
            layer.set_weights(source.get_weights())
    return folded


def unfold(folded: keras.Model, network: keras.Model) -> keras.Model:
    """Returns the function of a folded network in the layers of the one that it came from.

    The normalizations keep nothing but a bias. A layer scale becomes 1.

    Args:
        folded: What `fold` gave, with any weights.
        network: What `fold` took; it is not changed.

    Returns:
        A network with the layers of `network`, for `pipeline.network.save_network`.

    Raises:
        UnsupportedModelError: The folded network did not come from this one.
    """
    restored = copy_network(network)
    graph = graph_of(restored)
    layers = {layer.name: layer for layer in folded.layers if layer.weights}
    missing = sorted(set(layers) - set(graph.layers))
    if missing:
        raise UnsupportedModelError(
            f"The folded network has the layer {missing[0]}, which {network.name} has no place for: give the network "
            "that it was folded from."
        )
    dividers = _constant_scales(graph)
    for name, layer in graph.layers.items():
        if name.endswith(SCALE_SUFFIXES[0]):
            layer.set_weights([np.ones_like(weight) for weight in layer.get_weights()])
        elif _is_norm(layer):
            _unfold_norm(layer, layers.get(name), graph.layers[graph.sources[name][0]], layers)
        elif name in layers:
            kernel, *biases = layers[name].get_weights()
            weights = [kernel / np.float32(dividers.get(name, 1.0)), *biases]
            layer.set_weights(weights[: len(layer.get_weights())])
    return restored


def _unfold_norm(
    norm: keras.Layer, own: keras.Layer | None, source: keras.Layer, layers: dict[str, keras.Layer]
) -> None:
    """Gives a normalization the layer that stands in its place, or the bias that its source has no place for."""
    if own is not None:
        kernel, bias = own.get_weights()
        _set_affine(norm, kernel.reshape(-1), bias)
    else:
        _set_affine(norm, None, None if source.use_bias else layers[source.name].get_weights()[1])


def _is_norm(layer: keras.Layer) -> bool:
    import keras

    return isinstance(layer, keras.layers.BatchNormalization)


def _targets(graph: Graph) -> dict[str, str]:
    """The layer into which each normalization is folded; one that follows no linear layer is not in it."""
    import keras

    targets = {}
    for name, layer in graph.layers.items():
        if not _is_norm(layer):
            continue
        [source] = graph.sources[name]
        before = graph.layers[source]
        if is_linear(before) and before.activation is keras.activations.linear and graph.sole_reader(source) == name:
            targets[name] = source
    return targets


def _channel_scale(norm: keras.Layer) -> keras.Layer:
    """A factor and a bias for each channel of a map, as a layer with the name of the normalization."""
    import keras

    if len(norm.input.shape) != 4:
        raise UnsupportedModelError(
            f"The normalization {norm.name} follows no convolution or dense layer and takes {norm.input.shape}, "
            "expected a map (batch, height, width, channels): put it after a linear layer."
        )
    return keras.layers.DepthwiseConv2D(1, data_format="channels_last", name=norm.name)


def _affine(norm: keras.Layer) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Factor and shift of each channel, in double precision."""
    mean, variance = (array_of(each).astype(np.float64) for each in (norm.moving_mean, norm.moving_variance))
    factor = (array_of(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    return factor, (array_of(norm.beta) if norm.center else 0.0) - mean * factor


def _set_affine(norm: keras.Layer, factor: Array | None, shift: Array | None) -> None:
    """Makes a normalization a factor and a shift; None stands for 1 and for 0."""
    zeros = np.zeros(norm.moving_mean.shape, np.float32)
    norm.moving_mean.assign(zeros)
    norm.moving_variance.assign(zeros + np.float32(1 - norm.epsilon))
    norm.gamma.assign(zeros + 1 if factor is None else factor)
    norm.beta.assign(zeros if shift is None else shift)


def _folded_weights(layer: keras.Layer, factor: npt.NDArray[np.float64], shift: npt.NDArray[np.float64]) -> list[Array]:
    """Kernel and bias of a linear layer with what follows it."""
    import keras

    kernel = array_of(layer.kernel).astype(np.float64)
    bias = array_of(layer.bias).astype(np.float64) if layer.use_bias else 0.0
    by_channel = factor
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        by_channel = factor.reshape(kernel.shape[2:])
    return [(kernel * by_channel).astype(np.float32), (bias * factor + shift).astype(np.float32)]


def _constant_scales(graph: Graph) -> dict[str, float]:
    """By the linear layer it was folded into, the factor of each rescaling that is no weight."""
    import keras

    found = {}
    for name, layer in graph.layers.items():
        if name.endswith(SCALE_SUFFIXES[1]) and isinstance(layer, keras.layers.Rescaling):
            found[graph.sources[name][0]] = float(layer.scale)
    return found

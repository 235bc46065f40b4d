"""Cross-layer equalization: moves scale between layers, so that one step fits all channels (Nagel et al. 2019).

A channel that is divided by a factor on one side of a ReLU and multiplied by it on the other gives the same network
(section 4.1 of arXiv:1906.04721). Other activations don't let a factor through: hard-swish, swish, gelu and the
sigmoids never do; ReLU6 does where nothing reaches 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import UnsupportedModelError
from pipeline.quantization.config import EqualizationConfig
from pipeline.quantization.graph import Graph, array_of, copy_network, graph_of, is_clipped, is_linear, is_rectifier

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two linear layers with a tensor between them that nothing else reads.

    Attributes:
        first: Gives the tensor, before the activation.
        second: Reads it.
        tensor: The layer whose result `second` reads, which is the activation where there is one.
        is_clipped: Whether a ReLU6 is between them.
    """

    first: str
    second: str
    tensor: str
    is_clipped: bool


def find_pairs(network: keras.Model, *, clipped: bool = False) -> tuple[Pair, ...]:
    """Returns the pairs that can be equalized, in the order in which they run.

    Args:
        network: Folded.
        clipped: Whether those with a ReLU6 between them belong to it.
    """
    graph = graph_of(network)
    found = (_pair_from(graph, name) for name, layer in graph.layers.items() if is_linear(layer))
    return tuple(pair for pair in found if pair is not None and (clipped or not pair.is_clipped))


def equalize(
    network: keras.Model,
    inputs: npt.NDArray[Any] | None = None,
    config: EqualizationConfig | None = None,
) -> keras.Model:
    """Returns the same function with channels of like size.

    Args:
        network: Folded; it is not changed.
        inputs: Calibration images (images, ...); needed for `measure: activations` and `relu6: unclipped`.
        config: What is made equal.

    Raises:
        UnsupportedModelError: Images are needed, and there are none.
    """
    config = config or EqualizationConfig()
    result = copy_network(network)
    pairs = find_pairs(network, clipped=config.relu6 == "unclipped")
    needs_images = config.measure == "activations" or any(pair.is_clipped for pair in pairs)
    if needs_images and inputs is None:
        raise UnsupportedModelError(
            f"Equalization by {config.measure} with relu6: {config.relu6} needs calibration images, and got none: give "
            "some, or take measure: weights and relu6: leave."
        )
    peaks = _peaks(network, inputs, pairs) if needs_images and inputs is not None and pairs else {}
    factors = {pair: np.ones(_num_channels(network, pair)) for pair in pairs}
    for _ in range(config.passes):
        for pair in pairs:
            before = factors[pair]
            wanted = before * _wanted(result, pair, config, peaks, before)
            factors[pair] = _limited(wanted, config, peaks.get(pair.tensor) if pair.is_clipped else None)
            _scale(result, pair, factors[pair] / before)
    return result


def _pair_from(graph: Graph, name: str) -> Pair | None:
    """The pair that starts with a linear layer, if there is one."""
    import keras

    if graph.layers[name].activation is not keras.activations.linear:
        return None
    tensor, clipped = name, False
    passes = keras.layers.GlobalAveragePooling2D | keras.layers.AveragePooling2D | keras.layers.Dropout
    while (reader := graph.sole_reader(tensor)) is not None:
        layer = graph.layers[reader]
        if is_linear(layer):
            return Pair(first=name, second=reader, tensor=tensor, is_clipped=clipped)
        if is_rectifier(layer):
            clipped |= is_clipped(layer)
        elif not (isinstance(layer, passes) or _keeps_channels(layer)):
            return None
        tensor = reader
    return None


def _keeps_channels(layer: keras.Layer) -> bool:
    """Whether a layer flattens a map of one place, which leaves channels where they are."""
    import keras

    return isinstance(layer, keras.layers.Flatten) and all(side == 1 for side in layer.input.shape[1:-1])


def _peaks(network: keras.Model, inputs: npt.NDArray[Any], pairs: tuple[Pair, ...]) -> dict[str, Array]:
    """The largest magnitude of each channel of the tensors between pairs."""
    from pipeline.quantization.fake_quantization import activations

    peaks: dict[str, Array] = {}
    for batch in activations(network, inputs, [pair.tensor for pair in pairs]):
        for name, values in batch.items():
            largest = np.abs(values.reshape(-1, values.shape[-1])).max(axis=0).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, 0.0), largest)
    return peaks


def _wanted(
    network: keras.Model, pair: Pair, config: EqualizationConfig, peaks: Mapping[str, Array], factors: Array
) -> Array:
    """The factors that divide the tensor's channels so that both sides become equally large (equation 11).

    For a depthwise reader, whose steps are by channel anyway, the tensor's channels all become equally large.
    """
    second = network.get_layer(pair.second)
    if config.measure == "weights":
        before = _giving_peaks(network.get_layer(pair.first))
    else:
        before = peaks[pair.tensor] / factors
        if _is_depthwise(second):
            alive = before > 0
            middle = np.exp(np.log(before[alive]).mean()) if alive.any() else 1.0
            return np.where(alive, before / middle, 1)
    after = _reading_peaks(second)
    alive = (before > 0) & (after > 0)
    return np.where(alive, np.sqrt(before / np.where(alive, after, 1)), 1)


def _limited(factors: Array, config: EqualizationConfig, peaks: Array | None) -> Array:
    """Factors within the limits, and 1 for channels that might be clipped; `peaks` are those before a ReLU6."""
    factors = np.clip(factors, 1 / config.largest_factor, config.largest_factor)
    if peaks is None:
        return factors
    room = 6 / (np.maximum(peaks, 1e-12) * config.margin)
    # Below 6 before, and below 6 after: a channel may grow as far as there is room.
    return np.where(room >= 1, np.maximum(factors, 1 / np.maximum(room, 1)), 1)


def _scale(network: keras.Model, pair: Pair, factors: Array) -> None:
    """Divides the first layer's channels by the factors, and multiplies the second's weights with them."""
    first, second = network.get_layer(pair.first), network.get_layer(pair.second)
    kernel = array_of(first.kernel).astype(np.float64)
    by_channel = factors.reshape(kernel.shape[2:]) if _is_depthwise(first) else factors
    first.kernel.assign((kernel / by_channel).astype(np.float32))
    if first.use_bias:
        first.bias.assign((array_of(first.bias) / factors).astype(np.float32))
    kernel = array_of(second.kernel).astype(np.float64)
    second.kernel.assign((kernel * factors[:, None]).astype(np.float32))


def _num_channels(network: keras.Model, pair: Pair) -> int:
    return int(network.get_layer(pair.first).output.shape[-1])


def _giving_peaks(layer: keras.Layer) -> Array:
    """The largest weight of each output channel."""
    kernel = np.abs(array_of(layer.kernel)).astype(np.float64)
    if _is_depthwise(layer):
        return np.asarray(kernel.max(axis=(0, 1)).reshape(-1))
    return np.asarray(kernel.reshape(-1, kernel.shape[-1]).max(axis=0))


def _reading_peaks(layer: keras.Layer) -> Array:
    """The largest weight of each input channel."""
    kernel = np.abs(array_of(layer.kernel)).astype(np.float64)
    return np.asarray(np.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1).max(axis=1))


def _is_depthwise(layer: keras.Layer) -> bool:
    import keras

    return isinstance(layer, keras.layers.DepthwiseConv2D)

"""Which layer of a functional network reads which: what every remedy asks of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UnsupportedModelError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Graph:
    """The layers of a network and how they hang together.

    Attributes:
        layers: By name, each after those whose results it takes.
        sources: The layers whose results a layer takes, in the order of its arguments.
        readers: The layers that take a layer's result, once for each time.
        outputs: The layers that give the network's outputs.
    """

    layers: dict[str, keras.Layer]
    sources: dict[str, tuple[str, ...]]
    readers: dict[str, tuple[str, ...]]
    outputs: tuple[str, ...]

    def sole_reader(self, name: str) -> str | None:
        """The one layer that takes a layer's result; None where several do, or where it is an output."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def graph_of(network: keras.Model) -> Graph:
    """Returns the graph of a functional network.

    Raises:
        UnsupportedModelError: A layer is used more than once, or the network is not functional.
    """
    import keras

    if not hasattr(network, "operations"):
        raise UnsupportedModelError(
            f"{network.name} is a {type(network).__name__}, expected a functional network: build it with "
            "keras.Model(inputs, outputs)."
        )
    maker: dict[int, str] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for layer in network.layers:
        is_input = isinstance(layer, keras.layers.InputLayer)
        inputs = [] if is_input else keras.tree.flatten(layer.input)
        sources[layer.name] = tuple(_maker_of(tensor, maker, network) for tensor in inputs)
        maker |= {id(tensor): layer.name for tensor in keras.tree.flatten(layer.output)}
    readers: dict[str, list[str]] = {name: [] for name in sources}
    for name, taken in sources.items():
        for source in taken:
            readers[source].append(name)
    return Graph(
        layers={layer.name: layer for layer in network.layers},
        sources=sources,
        readers={name: tuple(names) for name, names in readers.items()},
        outputs=tuple(_maker_of(tensor, maker, network) for tensor in network.outputs),
    )


def _maker_of(tensor: Any, maker: dict[int, str], network: keras.Model) -> str:
    try:
        return maker[id(tensor)]
    except KeyError as error:
        raise UnsupportedModelError(
            f"{network.name} uses {tensor.name}, which none of its layers gives by its first and only use, expected a "
            "network whose layers are used once each, with nothing but layers between them."
        ) from error


def is_linear(layer: keras.Layer) -> bool:
    """Whether a layer is a convolution or a dense layer: what has weights in 8 bits and a bias in 32."""
    import keras

    return isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense)


def linear_layers(network: keras.Model) -> tuple[str, ...]:
    """Returns the names of the convolutions and dense layers, in the order in which they run."""
    return tuple(name for name, layer in graph_of(network).layers.items() if is_linear(layer))


def is_rectifier(layer: keras.Layer) -> bool:
    """Whether a layer is a ReLU or a ReLU6, which every target makes a part of the layer before it."""
    import keras

    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope and not layer.threshold
    kinds = (keras.activations.relu, keras.activations.relu6)
    return isinstance(layer, keras.layers.Activation) and layer.activation in kinds


def is_clipped(rectifier: keras.Layer) -> bool:
    """Whether a rectifier has an upper end."""
    import keras

    if isinstance(rectifier, keras.layers.ReLU):
        return rectifier.max_value is not None
    return bool(rectifier.activation is keras.activations.relu6)


def fused_rectifier(graph: Graph, name: str) -> str | None:
    """The ReLU or ReLU6 that becomes a part of a layer; None where there is none."""
    reader = graph.sole_reader(name)
    return reader if reader is not None and is_rectifier(graph.layers[reader]) else None


def copy_network(network: keras.Model) -> keras.Model:
    """Returns the same network with weights of its own."""
    import keras

    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy


def array_of(value: Any) -> Any:
    """Returns a weight or a tensor of any backend as a numpy array of its own."""
    import keras
    import numpy as np

    return np.array(keras.ops.convert_to_numpy(value))

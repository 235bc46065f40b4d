"""Runs a network layer by layer over calibration images, so that a layer can change before the next one runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.quantization.graph import array_of, graph_of

if TYPE_CHECKING:
    import keras

Values = list[npt.NDArray[Any]]


class LayerRun:
    """A run over all images that stops where it is told to.

    Only what later layers read is kept: at most a few activations of each image at a time, in memory.

    Args:
        network: Functional, without layers that behave differently in training.
        inputs: (images, ...), as the network takes them.
        batch_size: Images at a time.
    """

    def __init__(self, network: keras.Model, inputs: npt.NDArray[Any], *, batch_size: int = 32) -> None:
        self._graph = graph_of(network)
        self._order = list(self._graph.layers)
        self._batches = [np.asarray(inputs[start : start + batch_size]) for start in range(0, len(inputs), batch_size)]
        self._values: dict[str, Values] = {self._order[0]: self._batches}
        self._unread = {name: len(readers) for name, readers in self._graph.readers.items()}
        self._position = 1

    def advance_to(self, name: str) -> None:
        """Runs the layers before this one, as they are now."""
        target = self._order.index(name)
        if target < self._position:
            raise ValueError(f"{name} has run already: ask for layers in the order in which they run")
        while self._position < target:
            self._run(self._order[self._position])
            self._position += 1

    def inputs_of(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """Yields what the next layer takes, batch by batch: (images, ...)."""
        self.advance_to(name)
        [source] = self._graph.sources[name]
        yield from self._values[source]

    def outputs_of(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """Yields what the next layer gives with the weights that it has now, batch by batch: (images, ...)."""
        self.advance_to(name)
        yield from self._results(name)

    def _run(self, name: str) -> None:
        results = list(self._results(name))
        for source in self._graph.sources[name]:
            self._unread[source] -= 1
            if not self._unread[source]:
                self._values.pop(source, None)
        if self._graph.readers[name]:
            self._values[name] = results

    def _results(self, name: str) -> Iterator[npt.NDArray[Any]]:
        layer, sources = self._graph.layers[name], self._graph.sources[name]
        for index in range(len(self._batches)):
            values = [self._values[source][index] for source in sources]
            yield array_of(layer(values if isinstance(layer.input, list | tuple) else values[0]))

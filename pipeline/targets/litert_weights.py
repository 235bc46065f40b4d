"""Kernels and biases of a float `.tflite` file, by the names of its layers, for whatever changes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.litert_graph import Graph
from pipeline.targets.litert_rewrite import given_name

Floats = npt.NDArray[np.float32]

_OUTPUT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
_BIAS_AT = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


@dataclass(frozen=True)
class LayerWeights:
    """What a linear layer stores.

    Attributes:
        kind: CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED or TRANSPOSE_CONV.
        kernel: CONV_2D `(outputs, height, width, inputs)`, DEPTHWISE_CONV_2D `(1, height, width, outputs)`,
            FULLY_CONNECTED `(outputs, inputs)`, TRANSPOSE_CONV as CONV_2D.
        bias: `(outputs,)`; None where the layer has none.
        source: Name of the tensor that the layer takes.
    """

    kind: str
    kernel: Floats
    bias: Floats | None
    source: str

    @property
    def output_axis(self) -> int:
        """The axis of the kernel along which int8 has a scale each."""
        return _OUTPUT_AXIS[self.kind]


def read_weights(path: Path) -> dict[str, LayerWeights]:
    """Returns the layers that store float32 kernels, by the names that `litert_int8.linear_layers` gives them."""
    graph, found = Graph.read(path), {}
    for operator in graph.operators:
        kind = graph.code(operator)
        kernel = graph.constant(operator.inputs[1]) if kind in _OUTPUT_AXIS else None
        if kernel is not None and kernel.dtype == np.float32:
            source = operator.inputs[2 if kind == "TRANSPOSE_CONV" else 0]
            found[given_name(graph, operator)] = LayerWeights(kind, kernel, _bias(graph, operator), graph.name(source))
    return found


def write_weights(path: Path, changed: Mapping[str, LayerWeights], out_path: Path) -> None:
    """Writes the file with other kernels and biases; layers that are not named keep theirs.

    Raises:
        ValueError: The file has no such layer, or a kernel or bias has another shape.
    """
    held, graph = read_weights(path), Graph.read(path)
    for name, weights in changed.items():
        _check(name, held, weights)
    for operator in list(graph.operators):
        wanted = changed.get(given_name(graph, operator)) if graph.code(operator) in _OUTPUT_AXIS else None
        if wanted is not None:
            graph.store(operator, 1, wanted.kernel.astype(np.float32))
            if wanted.bias is not None:
                graph.store(operator, _BIAS_AT[wanted.kind], wanted.bias.astype(np.float32))
    graph.write(out_path)


def _bias(graph: Graph, operator: Any) -> Floats | None:
    place = _BIAS_AT[graph.code(operator)]
    return graph.constant(operator.inputs[place]) if len(operator.inputs) > place else None


def _check(name: str, held: Mapping[str, LayerWeights], weights: LayerWeights) -> None:
    if name not in held:
        raise ValueError(f"the file stores no kernel for {name}; take names of linear_layers")
    kernel = held[name].kernel
    if weights.kernel.shape != kernel.shape:
        raise ValueError(f"{name} has a kernel of the shape {kernel.shape}, and {weights.kernel.shape} is given")
    outputs = (kernel.shape[held[name].output_axis],)
    if weights.bias is not None and weights.bias.shape != outputs:
        raise ValueError(f"{name} has a bias of the shape {outputs}, and {weights.bias.shape} is given")

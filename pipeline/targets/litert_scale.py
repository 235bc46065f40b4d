"""Multiplies an output of a `.tflite` file by a number, in the scales and constants that it comes from.

An integer operation multiplies its sums by `input scale * weights scale / output scale`. Where the scales of the
weights and of the output are both multiplied, that number stays, and so do all integers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.targets.litert_graph import NO_ACTIVATION, RELU, Graph
from pipeline.targets.scaling import check_factor, chosen_output, refusal
from pipeline.targets.tflite_file import TFLiteFile

_PASSES = {
    "AVERAGE_POOL_2D",
    "DEQUANTIZE",
    "EXPAND_DIMS",
    "MEAN",
    "QUANTIZE",
    "RESHAPE",
    "SQUEEZE",
    "TRANSPOSE",
}
"""Operations that are linear in their first input and have no weights."""

_LINEAR = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


def scale_output(path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
    """Writes the file with one float output multiplied by a number; no operation is added, no stored integer changes.

    Args:
        path: A float, int8 or mixed file.
        factor: Above 0, so that the largest value stays the largest.
        out_path: Where to write; may be the same.
        output: Name of the output, as the signature has it; the first unless given.

    Raises:
        InputError: The factor is not above 0, or there is no such output.
        ModelFileError: The file is no TFLite model.
        UnsupportedModelError: Constants can't take the factor.
    """
    check_factor(factor)
    graph, described = Graph.read(path), TFLiteFile(path)
    names = [each.name for each in described.summary().outputs]
    index = graph.outputs[chosen_output(output, names)]
    if graph.type(index) != "float32":
        raise refusal(f"the output is {graph.type(index)}, and float32 is expected")
    _Scaling(graph, factor).tensor(index)
    graph.write(out_path)


class _Scaling:
    """One multiplication in a graph, which is changed."""

    def __init__(self, graph: Graph, factor: float) -> None:
        self._graph, self._factor = graph, factor

    def tensor(self, index: int) -> None:
        """Multiplies what is computed.

        Raises:
            UnsupportedModelError: It can't be.
        """
        graph, name = self._graph, self._graph.name(index)
        maker = graph.producer(index)
        if maker is None:
            raise refusal(f"{name} is given to the model and not computed")
        uses = len(graph.consumers(index)) + graph.outputs.count(index)
        if uses != 1:
            raise refusal(f"{name} is used {uses} times")
        code = graph.code(maker)
        if code not in {*_PASSES, *_LINEAR, "ADD", "SUB"} or graph.activation(maker) not in {None, NO_ACTIVATION, RELU}:
            raise refusal(f"{name} comes from {code}")
        self._multiply_scale(index)
        places = {"ADD": (0, 1), "SUB": (0, 1)}.get(code, (0,) if code in _PASSES else (1, 2))
        for place in places:
            if place < len(maker.inputs) and maker.inputs[place] >= 0:
                self._input(maker, place)

    def _input(self, operator: Any, place: int) -> None:
        graph, index = self._graph, int(operator.inputs[place])
        values = graph.constant(index)
        if values is None:
            self.tensor(index)
            return
        if graph.quantization(index) is None:
            if values.dtype != np.float32:
                raise refusal(f"{graph.name(index)} is {values.dtype.name} and has no scale")
            graph.store(operator, place, (values * np.float64(self._factor)).astype(np.float32))
            return
        if not graph.is_only_for(index, operator):
            index = self._own_copy(operator, place)
        self._multiply_scale(index)

    def _own_copy(self, operator: Any, place: int) -> int:
        """Gives an operation a tensor of its own for a constant that others take, too; the integers stay shared."""
        tensors = self._graph.model.subgraphs[0].tensors
        tensor = copy.deepcopy(tensors[operator.inputs[place]])
        tensor.name = f"{self._graph.name(operator.outputs[0])}/input{place}".encode()
        tensors.append(tensor)
        inputs = [int(index) for index in operator.inputs]
        inputs[place] = len(tensors) - 1
        operator.inputs = inputs
        return inputs[place]

    def _multiply_scale(self, index: int) -> None:
        """Multiplies what integers are expanded by; nothing for floats."""
        found = self._graph.quantization(index)
        if found is not None:
            scales = found[0].astype(np.float64) * self._factor
            self._graph.model.subgraphs[0].tensors[index].quantization.scale = scales.astype(np.float32)

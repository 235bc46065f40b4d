"""Multiplies an output of an ONNX file by a number, in the constants that it comes from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.targets.onnx_file import load_model
from pipeline.targets.onnx_names import all_graphs
from pipeline.targets.scaling import check_factor, chosen_output, refusal

_PASSES = {
    "Flatten",
    "GlobalAveragePool",
    "Identity",
    "ReduceMean",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operations that are linear in their first input and have no weights."""

_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def scale_output(path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
    """Writes the file with one float output multiplied by a number; no operation is added, no stored integer changes.

    Args:
        path: A float, int8 or mixed file.
        factor: Above 0, so that the largest value stays the largest.
        out_path: Where to write; may be the same.
        output: Name of the output; the first unless given.

    Raises:
        InputError: The factor is not above 0, or there is no such output.
        ModelFileError: The file is no ONNX model.
        UnsupportedModelError: Constants can't take the factor.
    """
    import onnx

    check_factor(factor)
    model = load_model(path)
    names = [value.name for value in model.graph.output]
    _Scaling(model.graph, factor).value(names[chosen_output(output, names)])
    onnx.save(model, str(out_path))


class _Scaling:
    """One multiplication in the main graph of a model, which is changed."""

    def __init__(self, graph: Any, factor: float) -> None:
        self._graph, self._factor = graph, factor
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._stored = {constant.name: constant for constant in graph.initializer}
        for node in graph.node:
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            if node.op_type == "Constant" and values:
                self._stored[node.output[0]] = values[0]
        self._uses = Counter(value.name for value in graph.output)
        for each in all_graphs(graph):
            self._uses.update(name for node in each.node for name in node.input)
            if each is not graph:
                self._uses.update(value.name for value in each.output)

    def value(self, name: str) -> None:
        """Multiplies what is computed.

        Raises:
            UnsupportedModelError: It can't be.
        """
        node = self._makers.get(name)
        if node is None:
            raise refusal(f"{name} is given to the model and not computed")
        if self._uses[name] != 1:
            raise refusal(f"{name} is used {self._uses[name]} times")
        kind = node.op_type
        if kind == "DequantizeLinear":
            self._input(node, 1)
        elif kind in _PASSES:
            self._input(node, 0)
        elif kind in _LINEAR:
            self._input(node, 1)
            if len(node.input) > 2 and node.input[2]:
                self._input(node, 2)
        elif kind in {"Add", "Sub"}:
            self._input(node, 0)
            self._input(node, 1)
        else:
            raise refusal(f"{name} comes from {kind}")

    def _input(self, node: Any, at: int) -> None:
        name = node.input[at]
        if name in self._stored:
            self._constant(node, at)
        else:
            self.value(name)

    def _constant(self, node: Any, at: int) -> None:
        """Multiplies what is stored, for this node alone."""
        import onnx

        name = node.input[at]
        values = onnx.numpy_helper.to_array(self._stored[name])
        if values.dtype not in (np.float32, np.float16):
            raise refusal(f"{node.op_type} takes {name}, which is {values.dtype.name} and has no scale")
        scaled = (values.astype(np.float64) * self._factor).astype(values.dtype)
        if self._uses[name] == 1:
            self._stored[name].CopyFrom(onnx.numpy_helper.from_array(scaled, self._stored[name].name))
            return
        own = f"{node.output[0]}.{at}.scaled"
        while own in self._stored or own in self._makers:
            own += "."
        self._graph.initializer.append(onnx.numpy_helper.from_array(scaled, own))
        self._stored[own] = self._graph.initializer[-1]
        node.input[at] = own
        self._uses[name] -= 1
        self._uses[own] = 1

"""Editing an ONNX graph: who makes a value, who takes it, which are constants, what shape they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.onnx_names import drop_unused_domains, name_after_position, subgraphs

Array = npt.NDArray[Any]

CONTRIB_DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""


class OnnxGraph:
    """The main graph of a model, open for changes; `saved` writes it back.

    Attributes:
        nodes: In an order in which each comes after what it takes, as long as changes keep to that; writing sorts them.
        constants: Stored tensors by name. A change of one is a change for all who take it: `add_constant` makes a new
            one.
        shapes: Of the values whose shape is fixed, by name.
        types: ONNX element types, by name.
        inputs: Names of the inputs that a user gives.
        outputs: Names of the results.
    """

    def __init__(self, model: Any) -> None:
        import onnx

        self._model = onnx.shape_inference.infer_shapes(model)
        graph = self._model.graph
        self.nodes: list[Any] = list(graph.node)
        self.constants: dict[str, Array] = {
            constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer
        }
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in graph.output]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        for value in [*graph.input, *graph.value_info, *graph.output]:
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self.shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
        for node in [node for node in self.nodes if node.op_type == "Constant"]:
            values = [attribute for attribute in node.attribute if attribute.name == "value"]
            if values:
                self.constants[node.output[0]] = onnx.numpy_helper.to_array(values[0].t)
                self.nodes.remove(node)

    def makers(self) -> dict[str, Any]:
        """Returns the node that makes each value."""
        return {name: node for node in self.nodes for name in node.output if name}

    def users(self) -> dict[str, list[Any]]:
        """Returns the nodes that take each value, in order; one that takes it twice is there once."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def is_output(self, name: str) -> bool:
        """Whether a value is a result of the model."""
        return name in self.outputs

    def scalar(self, name: str) -> float | None:
        """Returns the one number that a constant holds, else None."""
        values = self.constants.get(name)
        return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None

    def add_constant(self, name: str, values: Array) -> str:
        """Stores a tensor under this name, or one like it that is free, and returns the name."""
        free, number = name, 2
        while free in self.constants or free in self.types:
            free, number = f"{name}.{number}", number + 1
        self.constants[free] = values
        return free

    def add_node(
        self, before: Any, kind: str, inputs: list[str], output: str, *, name: str = "", **attributes: Any
    ) -> str:
        """Puts a node before another (at the end, if that is None) and returns its output.

        Args:
            before: A node of the graph.
            kind: Operation.
            inputs: Names of values.
            output: Name of its result, of which the caller knows that it is free.
            name: Of the node; that of its output unless given.
            **attributes: Of the node.
        """
        import onnx

        node = onnx.helper.make_node(kind, inputs, [output], name or output, **attributes)
        # Nodes compare by content, which is not unique.
        at = len(self.nodes) if before is None else next(i for i, other in enumerate(self.nodes) if other is before)
        self.nodes.insert(at, node)
        return output

    def use_domain(self, domain: str) -> None:
        """States that nodes of an operator set other than ONNX's are in the graph."""
        import onnx

        if all(opset.domain != domain for opset in self._model.opset_import):
            self._model.opset_import.append(onnx.helper.make_opsetid(domain, 1))

    def remove(self, node: Any) -> None:
        """Takes a node out."""
        self.nodes = [other for other in self.nodes if other is not node]

    def replace_uses(self, old: str, new: str, *, of: list[Any] | None = None) -> None:
        """Lets nodes (all, unless given) take another value; results of the model stay what they are."""
        for node in self.nodes if of is None else of:
            node.input[:] = [new if name == old else name for name in node.input]

    def bypass(self, node: Any) -> None:
        """Takes a node of one result out and hands its first input to those who took the result."""
        source, result = node.input[0], node.output[0]
        self.remove(node)
        if self.is_output(result):
            maker = self.makers()[source]
            maker.output[:] = [result if name == source else name for name in maker.output]
            self.replace_uses(source, result)
        else:
            self.replace_uses(result, source)

    def model(self) -> Any:
        """Returns the changed model, sorted, without what nothing leads to, with names that follow from the graph."""
        import onnx

        model = type(self._model)()
        model.CopyFrom(self._model)
        self._drop_unused()
        used = {name for node in self.nodes for name in node.input} | set(self.outputs)
        del model.graph.node[:]
        del model.graph.initializer[:]
        del model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
            if values.ndim
            else onnx.numpy_helper.from_array(values, name)
            for name, values in self.constants.items()
            if name in used
        )
        model.graph.value_info.extend(  # which ONNX can't infer
            onnx.helper.make_tensor_value_info(name, self.types[name], self.shapes.get(name))
            for node in self.nodes
            for name in node.output
            if node.domain and name in self.types and not self.is_output(name)
        )
        name_after_position(model)
        model = onnx.shape_inference.infer_shapes(model)
        drop_unused_domains(model)
        return model

    def save(self, path: Path) -> None:
        """Writes the changed model."""
        import onnx

        onnx.save(self.model(), str(path))

    def _drop_unused(self) -> None:
        makers = self.makers()
        waiting, needed = list(self.outputs), set()
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and id(node) not in needed:
                needed.add(id(node))
                waiting.extend(node.input)
        self.nodes = [node for node in self.nodes if id(node) in needed]


def has_bodies(model: Any) -> bool:
    """Whether a model has loops or branches."""
    return any(True for node in model.graph.node for _ in subgraphs(node))


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Returns an attribute of a node as a Python value."""
    import onnx

    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default


def is_depthwise(node: Any, weights: Array) -> bool:
    """Whether each channel of a convolution has a kernel of its own."""
    groups = attribute(node, "group", 1)
    return bool(groups > 1 and groups == weights.shape[0] and weights.shape[1] == 1)


def bias_of(graph: OnnxGraph, layer: Any) -> Array | None:
    """Returns the bias of a linear layer, zeros where it has none; None if it is not stored, or its weights are not."""
    weights = graph.constants.get(layer.input[1])
    if weights is None:
        return None
    if len(layer.input) > 2 and layer.input[2]:
        return graph.constants.get(layer.input[2])
    return np.zeros(weights.shape[output_axis(layer, weights)], weights.dtype)


def output_axis(layer: Any, weights: Array) -> int:
    """Returns the axis of a linear layer's weights that counts its outputs."""
    if layer.op_type == "Conv" or (layer.op_type == "Gemm" and attribute(layer, "transB", 0)):
        return 0
    return weights.ndim - 1

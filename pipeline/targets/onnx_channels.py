"""Channels of zeros around depthwise convolutions in an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.targets.onnx_graph import OnnxGraph, attribute, bias_of, is_depthwise


def pad_depthwise_channels(graph: OnnxGraph, multiple: int = 16) -> None:
    """Adds channels of zeros around depthwise convolutions until their number is a multiple.

    Integer kernels for depthwise convolutions exist for whole vectors of channels only. A zero channel stays zero
    through activations that keep 0, and the layer that follows has zero weights for it.
    """
    for node in [node for node in graph.nodes if node.op_type == "Conv"]:
        weights = graph.constants.get(node.input[1])
        if weights is None or not is_depthwise(node, weights) or attribute(node, "group") % multiple == 0:
            continue
        channels = attribute(node, "group")
        found = _channel_group(graph, node, channels)
        if found is None or weights.shape[0] != channels:
            continue
        for layer, widened in found:
            _widen(graph, layer, widened, -channels % multiple)


def _channel_group(graph: OnnxGraph, start: Any, channels: int) -> list[tuple[Any, str]] | None:
    """Returns the layers that share the channels of a depthwise convolution, each with what of it has them.

    That is `outputs`, `inputs` (a layer may be there for each), or `both` for a depthwise one; None if anything else
    takes or gives these channels.
    """
    makers, users = graph.makers(), graph.users()
    seen: set[str] = set()
    found: dict[tuple[int, str], tuple[Any, str]] = {}
    waiting = [start.input[0], start.output[0]]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = makers.get(value)
        shape = graph.shapes.get(value, ())
        if maker is None or graph.is_output(value) or len(shape) != 4 or shape[1] != channels:
            return None
        for node in (maker, *users.get(value, [])):
            role = _role(graph, node, value)
            if role is None:
                return None
            if role != "through":
                found[id(node), role] = (node, role)
            if role in {"both", "through"}:
                waiting += [name for name in (*node.input, *node.output) if name and name not in graph.constants]
    return list(found.values())


def _role(graph: OnnxGraph, node: Any, value: str) -> str | None:
    """Returns how a node shares the channels of a value; None if it does in a way that is not known here."""
    if node.op_type == "Conv":
        weights = graph.constants.get(node.input[1])
        if weights is None or value in node.input[1:] or bias_of(graph, node) is None:
            return None
        if is_depthwise(node, weights):
            return "both" if weights.shape[0] == attribute(node, "group") else None
        if attribute(node, "group", 1) != 1:
            return None
        return "outputs" if value in node.output else "inputs"
    if node.op_type in {"Relu", "Clip", "Add", "Mul", "Sigmoid", "QuickGelu", "GlobalAveragePool", "AveragePool"}:
        stored = [name for name in node.input if name in graph.constants]
        return "through" if all(graph.scalar(name) is not None for name in stored) else None
    return None


def _widen(graph: OnnxGraph, layer: Any, role: str, extra: int) -> None:
    weights = graph.constants[layer.input[1]]
    widths = [(0, 0)] * weights.ndim
    widths[1 if role == "inputs" else 0] = (0, extra)
    layer.input[1] = graph.add_constant(f"{layer.name}.weights", np.pad(weights, widths))
    if role != "inputs" and len(layer.input) > 2 and layer.input[2]:
        bias = graph.constants[layer.input[2]]
        layer.input[2] = graph.add_constant(f"{layer.name}.bias", np.pad(bias, (0, extra)))
    if role == "both":
        for found in layer.attribute:
            if found.name == "group":
                found.i += extra

"""Rewrites of a float ONNX graph that keep its function and let more of it run as fast integer operators.

Each takes an `OnnxGraph` whose layout is channels first and changes it in place. What they need of a graph is checked;
where a pattern is not there, nothing happens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.targets.onnx_graph import CONTRIB_DOMAIN, OnnxGraph, attribute, bias_of

_LAYOUT = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Identity", "Dropout"}
_HOMOGENEOUS = {"GlobalAveragePool", "AveragePool", "MaxPool", "Relu", *_LAYOUT}
"""Operations that give `c` times their result for `c` times their first input, for c > 0."""


def drop_idle_layout(graph: OnnxGraph) -> None:
    """Takes out reshapes and transposes that change nothing, as a converter leaves them around 1x1 images."""
    for node in list(graph.nodes):
        same = node.op_type in {"Identity", "Dropout"} and len([name for name in node.output if name]) == 1
        if node.op_type == "Reshape":
            known = graph.shapes.get(node.input[0])
            same = known is not None and known == graph.shapes.get(node.output[0])
        elif node.op_type == "Transpose":
            order = attribute(node, "perm", ())
            same = list(order) == list(range(len(order))) and bool(order)
        if same and node.input[0] in graph.makers():
            graph.bypass(node)


def expand_hard_activations(graph: OnnxGraph) -> None:
    """Writes HardSwish and HardSigmoid as Add, Clip and Mul, of which integer forms exist."""
    for node in list(graph.nodes):
        if node.op_type not in {"HardSwish", "HardSigmoid"}:
            continue
        swish = node.op_type == "HardSwish"
        alpha = 1 / 6 if swish else attribute(node, "alpha", 0.2)
        beta = 0.5 if swish else attribute(node, "beta", 0.5)
        source, result, name = node.input[0], node.output[0], node.name or node.output[0]
        shift = graph.add_constant(f"{name}.shift", np.array(beta / alpha, np.float32))
        low = graph.add_constant(f"{name}.low", np.array(0, np.float32))
        high = graph.add_constant(f"{name}.high", np.array(1 / alpha, np.float32))
        factor = graph.add_constant(f"{name}.factor", np.array(alpha, np.float32))
        shifted = graph.add_node(node, "Add", [source, shift], f"{name}/shift")
        clipped = graph.add_node(node, "Clip", [shifted, low, high], f"{name}/clip")
        gate = f"{name}/gate" if swish else result
        graph.add_node(node, "Mul", [clipped, factor], gate, name=f"{name}/scale")
        if swish:
            graph.add_node(node, "Mul", [source, gate], result, name=name)
        graph.remove(node)


def fold_shifts(graph: OnnxGraph) -> None:
    """Folds a number that is added to the result of a linear layer into its bias, if nothing else takes the result.

    So hard-sigmoid needs no addition of its own, and its clipping can become a part of the layer.
    """
    for node in list(graph.nodes):
        if node.op_type != "Add":
            continue
        makers, users = graph.makers(), graph.users()
        for source, other in (node.input, reversed(node.input)):
            layer, shift = makers.get(source), graph.scalar(other)
            if shift is None or layer is None or layer.op_type not in {"Conv", "Gemm"}:
                continue
            if len(users[source]) > 1 or graph.is_output(source) or attribute(layer, "beta", 1.0) != 1.0:
                continue
            bias = bias_of(graph, layer)
            if bias is None:
                continue
            stored = graph.add_constant(f"{layer.name}.bias", (bias + shift).astype(bias.dtype))
            layer.input[:] = [*layer.input[:2], stored]
            node.input[:] = [source, other]
            graph.bypass(node)
            break


def clip_hard_swish_inputs(graph: OnnxGraph) -> None:
    """Clips what goes into a hard-swish at -3, below which it is 0 anyway.

    In int8 the clipping costs nothing, being the end of the range, and the range is spent on values that count.
    """
    users = graph.users()
    for clip in [node for node in graph.nodes if node.op_type == "Clip" and len(node.input) > 1]:
        add = graph.makers().get(clip.input[0])
        if add is None or add.op_type != "Add" or graph.scalar(clip.input[1]) != 0 or len(users[clip.input[0]]) > 1:
            continue
        shift, source = graph.scalar(add.input[1]), add.input[0]
        gates = _only_products(graph, clip.output[0])
        takers = users.get(source, [])
        if shift is None or shift <= 0 or graph.is_output(source) or source in graph.constants or not gates:
            continue
        if len(takers) != 2 or not all(taker is add or any(taker is gate for gate in gates) for taker in takers):
            continue
        low = graph.add_constant(f"{clip.name}.lowest", np.array(-shift, np.float32))
        clipped = graph.add_node(add, "Clip", [source, low], f"{clip.name}/input")
        graph.replace_uses(source, clipped, of=takers)


def _only_products(graph: OnnxGraph, name: str) -> list[Any]:
    """Returns the products that take a value, looking through a scaling of it; none if anything else takes it."""
    users = graph.users().get(name, [])
    if any(user.op_type != "Mul" for user in users) or graph.is_output(name):
        return []
    found = []
    for user in users:
        others = [other for other in user.input if other != name]
        if any(graph.scalar(other) is not None for other in others):
            found += _only_products(graph, user.output[0])
        else:
            found.append(user)
    return found


def push_scales(graph: OnnxGraph) -> None:
    """Moves multiplications by a positive number on, into the weights of the linear layers that follow.

    They pass products, averages and rectifiers. Where something follows that can't take the number, it stays.
    """
    for node in list(graph.nodes):
        if node.op_type != "Mul":
            continue
        for source, other in (node.input, reversed(node.input)):
            factor = graph.scalar(other)
            if factor is None or factor <= 0 or source in graph.constants or source in graph.inputs:
                continue
            layers = _absorbers(graph, node.output[0])
            if layers is None:
                continue
            for layer in layers:
                _scale_weights(graph, layer, factor)
            node.input[:] = [source, other]
            graph.bypass(node)
            break


def _absorbers(graph: OnnxGraph, name: str) -> list[Any] | None:
    """Returns the layers that make up for a factor on a value, or None if that can't be done."""
    layers: list[Any] = []
    passed: list[Any] = []
    users = graph.users()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        if graph.is_output(value):
            return None
        for user in users.get(value, []):
            if any(user is other for other in (*passed, *layers)) or list(user.input).count(value) > 1:
                return None
            if user.op_type in {"Conv", "Gemm", "MatMul"}:
                if user.input[0] != value or user.input[1] not in graph.constants:
                    return None
                layers.append(user)
            elif user.op_type == "Mul" or (user.op_type in _HOMOGENEOUS and user.input[0] == value):
                passed.append(user)
                waiting.append(user.output[0])
            else:
                return None
    return layers


def _scale_weights(graph: OnnxGraph, layer: Any, factor: float) -> None:
    weights = graph.constants[layer.input[1]]
    scaled = (weights.astype(np.float64) * factor).astype(weights.dtype)
    layer.input[1] = graph.add_constant(f"{layer.name}.weights", scaled)


def swish_nodes(graph: OnnxGraph) -> list[tuple[Any, Any]]:
    """Returns the sigmoid and the product of each swish on an image of more than one pixel."""
    makers, users = graph.makers(), graph.users()
    found = []
    for product in graph.nodes:
        if product.op_type != "Mul" or np.prod(graph.shapes.get(product.output[0], (1, 1))[2:]) <= 1:
            continue
        for source, other in (product.input, reversed(product.input)):
            sigmoid = makers.get(other)
            if sigmoid is None or sigmoid.op_type != "Sigmoid" or sigmoid.input[0] != source:
                continue
            if len(users[other]) == 1 and not graph.is_output(other):
                found.append((sigmoid, product))
                break
    return found


def fuse_swish(graph: OnnxGraph, swishes: list[tuple[Any, Any]]) -> None:
    """Writes swishes that stayed float as ONNX Runtime's operator for them.

    Its optimizer does that itself in a float graph. Behind a DequantizeLinear it does not: it gives the sigmoid and the
    product each one of their own.
    """
    for sigmoid, product in swishes:
        source, result = sigmoid.input[0], product.output[0]
        if source not in product.input or sigmoid.output[0] not in product.input:
            continue  # they are computed on integers after all
        graph.add_node(product, "QuickGelu", [source], result, name=product.name, domain=CONTRIB_DOMAIN, alpha=1.0)
        graph.remove(sigmoid)
        graph.remove(product)
        graph.use_domain(CONTRIB_DOMAIN)

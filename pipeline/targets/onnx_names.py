"""Names in an ONNX graph that depend on the graph alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_ARBITRARY = re.compile(r"^(StatefulPartitionedCall(_\d+)?/)+|__\d+")
"""What TensorFlow puts before a name and tf2onnx behind it."""


def name_after_position(model: Any) -> None:
    """Sorts nodes, and names them, values and constants after their place, also in the bodies of loops and branches.

    tf2onnx numbers them by a counter and sorts them by sets, which differ from one time to the next, and so would the
    file. The inputs and outputs of the graph keep their names; a node keeps the part of its name that says which layer
    it came from.
    """
    graph = model.graph
    kept = {value.name: value.name for value in [*graph.input, *graph.output]}
    taken = {name.rpartition(mark)[0] for name in kept for mark in ":."} - {""}
    _name_graph(graph, kept, taken)


def rename_values(model: Any, new: Mapping[str, str]) -> None:
    """Renames values of the graph, wherever they are used."""
    for graph in all_graphs(model.graph):
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
            value.name = new.get(value.name, value.name)


def subgraphs(node: Any) -> Iterator[Any]:
    """Yields the graphs in a node's attributes: the bodies of loops and branches."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: Any) -> Iterator[Any]:
    """Yields a graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from all_graphs(body)


def drop_unused_domains(model: Any) -> None:
    """Leaves out the operator sets that ONNX Runtime notes down without using them."""
    used = {node.domain for graph in all_graphs(model.graph) for node in graph.node} | {""}
    kept = [_copy(opset) for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _name_graph(graph: Any, new: dict[str, str], taken: set[str]) -> None:
    """Renames what a graph defines.

    Args:
        graph: Of the model or of the body of a node.
        new: New names of what is defined already, by old name; those of this graph are added.
        taken: Node names that are in use.
    """
    _sort_nodes(graph)
    constants = {constant.name: constant for constant in graph.initializer}
    in_order: dict[str, Any] = {}

    def refer(name: str, proposed: str) -> None:
        if name in constants and name not in in_order:
            in_order[name] = constants[name]
            new.setdefault(name, proposed)

    for node in graph.node:
        node.name = _unique(_ARBITRARY.sub("", node.name) or node.op_type, taken)
        for index, name in enumerate(node.input):
            refer(name, f"{node.name}.{index}")
        bodies = list(subgraphs(node))
        outer = dict.fromkeys(name for body in bodies for name in _references(body))
        for index, name in enumerate(outer):
            refer(name, f"{node.name}.body.{index}")
        node.input[:] = [new.get(name, name) for name in node.input]
        for number, body in enumerate(bodies):
            _name_body(body, new, f"{node.name}.{number}", taken)
        for index, name in enumerate(node.output):
            if name:  # an optional output that is left out has none
                new.setdefault(name, f"{node.name}:{index}")
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in graph.output:  # a constant may be an output itself
        refer(value.name, value.name)
    kept = [_copy(constant) for constant in in_order.values()]
    for constant in kept:
        constant.name = new[constant.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _name_shapes(graph, new)


def _sort_nodes(graph: Any) -> None:
    """Puts each node right before the first that needs it, going back from the outputs of the graph."""
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    done: dict[int, None] = {}
    for start in [*(makers[value.name] for value in graph.output if value.name in makers), *range(len(nodes))]:
        waiting = [start]
        while waiting:
            index = waiting[-1]
            needed = [makers[name] for name in _takes(nodes[index]) if name in makers and makers[name] not in done]
            if index in done or not needed:
                done[index] = None
                waiting.pop()
            else:
                waiting.extend(reversed(needed))
    ordered = [_copy(nodes[index]) for index in done]
    del graph.node[:]
    graph.node.extend(ordered)


def _takes(node: Any) -> Iterator[str]:
    """Yields what a node and its bodies refer to."""
    yield from node.input
    for body in subgraphs(node):
        yield from _references(body)


def _name_body(body: Any, outer: Mapping[str, str], prefix: str, taken: set[str]) -> None:
    new = dict(outer)
    body.name = prefix
    for index, value in enumerate(body.input):
        new[value.name] = f"{prefix}.in{index}"
        value.name = new[value.name]
    defined = {name for node in body.node for name in node.output} | {constant.name for constant in body.initializer}
    for name in defined:
        new.pop(name, None)
    _name_graph(body, new, taken)
    for index, value in enumerate(body.output):
        value.name = new.setdefault(value.name, f"{prefix}.out{index}")


def _name_shapes(graph: Any, new: Mapping[str, str]) -> None:
    # Types of values in between follow from the graph.
    shapes = sorted((value for value in graph.value_info if value.name in new), key=lambda value: new[value.name])
    for value in shapes:
        value.name = new[value.name]
    described = [_copy(value) for value in shapes]
    del graph.value_info[:]
    graph.value_info.extend(described)


def _references(graph: Any) -> Iterator[str]:
    """Yields the names that a body takes from around it or defines itself, in order."""
    for node in graph.node:
        yield from node.input
        for body in subgraphs(node):
            yield from _references(body)
    for value in graph.output:
        yield value.name


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique)
    return unique


def _copy(message: Any) -> Any:
    fresh = type(message)()
    fresh.CopyFrom(message)
    return fresh

"""SavedModels: which signature of one is meant, and the forms of it that converters take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedModelError
from pipeline.model_source import ModelSource

_PREFERRED = ("serving_default", "serve")


@dataclass(frozen=True)
class Endpoint:
    """A signature of a SavedModel.

    Attributes:
        key: Its name in the SavedModel.
        is_static: Whether its inputs have the shapes of the model's signature already.
    """

    key: str
    is_static: bool


@dataclass(frozen=True)
class FrozenGraph:
    """A graph without variables.

    Attributes:
        graph_def: In which everything the function captured is a constant.
        inputs: Tensor names, in the order of the signature's inputs.
        outputs: The same of the outputs.
    """

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def find_endpoint(source: ModelSource) -> Endpoint:
    """Returns the signature of the SavedModel that has the inputs and outputs of the model's signature.

    Raises:
        UnsupportedModelError: It has none.
    """
    known = dict(_meta_graph(source).signature_def)
    inputs = {tensor.name: tensor.shape for tensor in source.signature.inputs}
    outputs = {tensor.name for tensor in source.signature.outputs}
    for key in sorted(known, key=lambda key: (_PREFERRED.index(key) if key in _PREFERRED else len(_PREFERRED), key)):
        endpoint = known[key]
        if set(endpoint.inputs) == set(inputs) and outputs <= set(endpoint.outputs):
            is_static = outputs == set(endpoint.outputs) and all(
                _shape(endpoint.inputs[name].tensor_shape) == shape for name, shape in inputs.items()
            )
            return Endpoint(key, is_static)
    has = "; ".join(
        f"{key} takes {', '.join(sorted(value.inputs)) or 'nothing'} and gives {', '.join(sorted(value.outputs))}"
        for key, value in sorted(known.items())
        if not key.startswith("__")
    )
    raise UnsupportedModelError(
        f"No signature of the SavedModel takes {', '.join(sorted(inputs))} and gives {', '.join(sorted(outputs))}. "
        f"It has: {has or 'none'}. Export the model with a signature that does."
    )


def control_flow(source: ModelSource) -> tuple[str, ...]:
    """Returns the kinds of loops and branches in the SavedModel, such as `While`; a loop over time is one."""
    endpoint = find_endpoint(source)
    # What functions hold that this signature never calls is told apart only by loading, which takes seconds.
    if not _control_flow_in(_meta_graph(source).graph_def):
        return ()
    _loaded, function = _static_function(source, endpoint.key)
    with _reported():
        return _control_flow_in(function.get_concrete_function().graph.as_graph_def())


def _control_flow_in(graph_def: Any) -> tuple[str, ...]:
    kinds = {node.op.removeprefix("Stateless") for nodes in _bodies(graph_def) for node in nodes}
    return tuple(sorted(kinds & {"While", "If", "Case"}))


def _meta_graph(source: ModelSource) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    path = source.path / "saved_model.pb"
    if not path.is_file():
        raise UnsupportedModelError(
            f"{source.path} is no SavedModel: it holds no saved_model.pb. Export the model again."
        )
    return saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs[0]


def static_saved_model(source: ModelSource, scratch: Path) -> tuple[Path, str]:
    """Returns a SavedModel whose inputs have fixed shapes, and the name of the one signature to take.

    Args:
        source: The model.
        scratch: Where a new one is written, if the model's own has free dimensions.
    """
    import tensorflow as tf

    endpoint = find_endpoint(source)
    if endpoint.is_static:
        return source.path, endpoint.key
    module = tf.Module()
    module.loaded, module.function = _static_function(source, endpoint.key)
    with _reported():
        if _has_lists(module.function.get_concrete_function().graph.as_graph_def()):
            module = tf.Module()
            module.function = _function_of(frozen_graph(source), source)
    path = scratch / "static_saved_model"
    with _reported():
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.function})
    return path, "serving_default"


def frozen_graph(source: ModelSource) -> FrozenGraph:
    """Returns the graph of a SavedModel with constants in place of variables and of other captured tensors.

    Converters would otherwise take tensors that were captured by value, such as the mean and variance of a Keras
    Normalization layer, for inputs.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    _loaded, function = _static_function(source, find_endpoint(source).key)
    with _reported():
        concrete = function.get_concrete_function()
        captured = {inner.op.name: outer for outer, inner in concrete.graph.captures if outer.dtype.name != "resource"}
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
        graph_def = frozen.graph.as_graph_def(add_shapes=True)
        for node in graph_def.node:
            if node.op == "Placeholder" and node.name in captured:
                _make_constant(node, captured[node.name])
        _fix_lists(graph_def)
        _allow_inlining(graph_def)
        _spell_out_erfc(graph_def)
    inputs = tuple(tensor.name for tensor in concrete.inputs[: len(source.signature.inputs)])
    # Structured outputs of a function are in the order of their names.
    order = sorted(tensor.name for tensor in source.signature.outputs)
    outputs = tuple(frozen.outputs[order.index(tensor.name)].name for tensor in source.signature.outputs)
    return FrozenGraph(graph_def, inputs, outputs)


def _static_function(source: ModelSource, key: str) -> tuple[Any, Any]:
    """Returns what keeps the variables alive, and a function with the shapes of the signature.

    Its inputs are in the order of the signature; it gives a mapping from names to outputs.
    """
    import tensorflow as tf

    signature = source.signature
    with _reported():
        loaded = tf.saved_model.load(str(source.path))
    endpoint = loaded.signatures[key]
    names = [tensor.name for tensor in signature.inputs]
    wanted = [tensor.name for tensor in signature.outputs]

    def call(*values: Any) -> dict[str, Any]:
        answers = endpoint(**dict(zip(names, values, strict=True)))
        return {name: tf.identity(answers[name]) for name in wanted}

    function = tf.function(
        call,
        input_signature=[tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in signature.inputs],
        autograph=False,  # which would leave its copy of this code among the temporary files
    )
    return loaded, function


_LISTS = {"TensorListReserve": 0, "EmptyTensorList": 0, "TensorListFromTensor": 1, "TensorListStack": 1}
"""Operations on lists of tensors, as loops over time have them: which input is the shape of an element."""


def _has_lists(graph_def: Any) -> bool:
    nodes = (node for nodes in _bodies(graph_def) for node in nodes)
    return any(node.op in _LISTS for node in nodes)


def _bodies(graph_def: Any) -> list[Any]:
    return [graph_def.node, *(function.node_def for function in graph_def.library.function)]


def _fix_lists(graph_def: Any) -> None:
    """Gives the elements of lists the batch of 1, where the model was traced with any batch.

    The lists' shapes are constants, so that a fixed shape of the inputs does not reach them by itself, and the
    TFLite converter can't lower lists whose elements have no fixed shape.
    """
    import tensorflow as tf

    for nodes in _bodies(graph_def):
        constants = {node.name: node for node in nodes if node.op == "Const"}
        added = []
        for node in nodes:
            at = _LISTS.get(node.op)
            constant = None if at is None else constants.get(node.input[at].split(":")[0])
            if at is None or constant is None:
                continue
            shape = tf.make_ndarray(constant.attr["value"].tensor)
            if shape.ndim == 1 and len(shape) > 1 and shape[0] == -1 and (shape[1:] > 0).all():
                fixed = type(node)()
                fixed.CopyFrom(constant)
                fixed.name = f"{node.name}/static_element_shape"
                fixed.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([1, *shape[1:].tolist()], shape.dtype))
                node.input[at] = fixed.name + (":output:0" if ":" in node.input[at] else "")
                added.append(fixed)
        nodes.extend(added)


def _allow_inlining(graph_def: Any) -> None:
    """Takes back that functions must stay calls: Keras asks XLA to compile grouped convolutions as a whole."""
    for function in graph_def.library.function:
        for name in ("_noinline", "_XlaMustCompile"):
            function.attr.pop(name, None)
    for nodes in _bodies(graph_def):
        for node in nodes:
            if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
                node.attr.pop("_XlaMustCompile", None)


def _spell_out_erfc(graph_def: Any) -> None:
    """Writes Erfc, as in Keras's GELU, as 1 - Erf, which ONNX has."""
    import tensorflow as tf

    for nodes in _bodies(graph_def):
        added = []
        for node in nodes:
            if node.op != "Erfc":
                continue
            mark = ":output:0" if nodes is not graph_def.node else ""
            one, erf = type(node)(), type(node)()
            erf.CopyFrom(node)
            erf.name, erf.op = f"{node.name}/erf", "Erf"
            one.name, one.op = f"{node.name}/one", "Const"
            one.attr["dtype"].type = node.attr["T"].type
            one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, tf.as_dtype(node.attr["T"].type)))
            node.op = "Sub"
            node.input[:] = [one.name + mark, erf.name + mark.replace("output", "y")]
            added += [one, erf]
        nodes.extend(added)


def _function_of(frozen: FrozenGraph, source: ModelSource) -> Any:
    """Returns a frozen graph as a function, with the names of the signature."""
    import tensorflow as tf

    names = [tensor.name for tensor in source.signature.outputs]
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(frozen.graph_def, name=""), [])
    pruned = wrapped.prune(list(frozen.inputs), list(frozen.outputs))

    def call(*values: Any) -> dict[str, Any]:
        return dict(zip(names, pruned(*values), strict=True))

    return tf.function(
        call,
        input_signature=[
            tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in source.signature.inputs
        ],
        autograph=False,
    )


def _make_constant(node: Any, value: Any) -> None:
    import tensorflow as tf

    node.op = "Const"
    del node.input[:]
    kind = node.attr["dtype"].type
    node.attr.clear()
    node.attr["dtype"].type = kind
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.numpy()))


def _shape(proto: Any) -> tuple[int, ...] | None:
    return None if proto.unknown_rank else tuple(int(dim.size) for dim in proto.dim)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Raises what TensorFlow raises as an UnsupportedModelError."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"TensorFlow can't load the SavedModel with the shapes of its signature: {_first_lines(error)} "
            f"Give the shapes that the model was made for.",
            details=str(error),
        ) from error


def _first_lines(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= 500 else f"{text[:500]}...").rstrip(".") + "."

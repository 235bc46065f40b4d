"""SavedModels: which signature of one is meant, and the forms of it that converters take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
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
        StageError: It has none.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = source.path / "saved_model.pb"
    if not path.is_file():
        raise StageError(f"{source.path} is no SavedModel: it holds no saved_model.pb. Export the model again.")
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    known = dict(model.meta_graphs[0].signature_def)
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
    raise StageError(
        f"No signature of the SavedModel takes {', '.join(sorted(inputs))} and gives {', '.join(sorted(outputs))}. "
        f"It has: {has or 'none'}. Export the model with a signature that does."
    )


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
    """Raises what TensorFlow raises as a StageError."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise StageError(
            f"TensorFlow can't load the SavedModel with the shapes of its signature: {_first_lines(error)} "
            f"Give the shapes that the model was made for.",
            details=str(error),
        ) from error


def _first_lines(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= 500 else f"{text[:500]}...").rstrip(".") + "."

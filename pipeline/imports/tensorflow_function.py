"""A SavedModel with one static signature, `serve`, around what TensorFlow can call; shared by two formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.imports.base import one_line
from pipeline.imports.checks import FoundOutput, shape_text
from pipeline.saved_model import DIRECTORY
from pipeline.signature import InputTensor

SIGNATURE = "serve"

_PASSES_ON = {"Identity", "IdentityN", "Cast", "StopGradient", "Reshape", "Squeeze"}
_CALLS = {"StatefulPartitionedCall", "PartitionedCall"}


def write_static(
    function: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    inputs: Sequence[InputTensor],
    keep: Any,
    out_dir: Path,
) -> list[FoundOutput]:
    """Writes `saved_model/` and returns its outputs, in the order in which the function gives them.

    Args:
        function: Takes and gives tensors by name.
        inputs: What the signature takes.
        keep: What owns the variables and tables behind the function.
        out_dir: Directory of the artifact.

    Raises:
        InputError: The function does not take inputs of these shapes.
    """
    import tensorflow as tf

    module = tf.Module()
    module.keep = keep
    order: list[str] = []

    def serve(**tensors: Any) -> dict[str, Any]:
        outputs = dict(function(tensors))
        order[:] = outputs
        return {name: tf.convert_to_tensor(value) for name, value in outputs.items()}

    specs = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in inputs}
    try:
        # autograph would leave its copy of this code among the temporary files
        concrete = tf.function(serve, autograph=False).get_concrete_function(**specs)
    except Exception as error:
        shapes = ", ".join(f"{tensor.name} {shape_text(tensor.shape)}" for tensor in inputs)
        raise InputError(
            f"The model can't be run with the inputs {shapes}: {one_line(error)}. State shapes that it takes with "
            f"model.inputs, or mend the model."
        ) from error
    found = [_found(name, concrete.structured_outputs[name], concrete.graph) for name in order]
    tf.saved_model.save(module, str(out_dir / DIRECTORY), signatures={SIGNATURE: _frozen(concrete, specs, module)})
    return found


def _frozen(concrete: Any, specs: Mapping[str, Any], module: Any) -> Any:
    """Returns the function with its variables as constants.

    Converters do this themselves, where they see that nothing assigns a variable. In a model of another's making they
    do not always: the TFLite converter then leaves READ_VARIABLE, whose answer is no number.

    Args:
        concrete: The function.
        specs: Its inputs by name.
        module: Of the SavedModel; gives up what it keeps, where nothing but variables hangs on it.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    captured = [tensor for tensor, _ in concrete.graph.captures if tensor.dtype == tf.resource]
    variables = {variable.handle.ref() for variable in concrete.graph.variables}
    if any(tensor.ref() not in variables for tensor in captured):
        return concrete  # tables and other resources can't be constants
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    names = sorted(concrete.structured_outputs)

    def serve(**tensors: Any) -> dict[str, Any]:
        by_name = {tensor.name.rpartition(":")[0]: tensor for tensor in frozen.inputs}
        values = frozen(*(tensors[name] for name in by_name))
        return dict(zip(names, tf.nest.flatten(values), strict=True))

    module.keep = frozen
    return tf.function(serve, autograph=False).get_concrete_function(**specs)


def argument_names(names: Sequence[str]) -> list[str]:
    """Returns distinct names that a signature can have, as like the given ones as can be.

    `input:0` becomes `input`, and other characters than letters, digits and `_` become `_`.
    """
    taken: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", re.sub(r":0$", "", name), flags=re.ASCII).strip("_") or "tensor"
        plain = f"x{plain}" if plain[0].isdigit() else plain
        unique, number = plain, 2
        while unique in taken:
            unique, number = f"{plain}_{number}", number + 1
        taken.append(unique)
    return taken


def _found(name: str, tensor: Any, graph: Any) -> FoundOutput:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return FoundOutput(name, tensor.dtype.name, shape, is_softmax=_comes_from_softmax(tensor.name, graph))


def _comes_from_softmax(tensor: str, graph: Any) -> bool:
    """Whether a tensor comes right out of a softmax, also one within the functions that the graph calls."""
    definition = graph.as_graph_def()
    functions = {function.signature.name: function for function in definition.library.function}
    nodes, wanted = {node.name: node for node in definition.node}, tensor
    for _ in range(1000):
        name, _, place = wanted.lstrip("^").partition(":")
        node = nodes.get(name)
        if node is None:
            return False
        if node.op in _CALLS and node.attr["f"].func.name in functions:
            called = functions[node.attr["f"].func.name]
            results = [argument.name for argument in called.signature.output_arg]
            index = int(place.rpartition(":")[2] or 0)
            if index >= len(results):
                return False
            nodes, wanted = {inner.name: inner for inner in called.node_def}, called.ret[results[index]]
        elif node.op in _PASSES_ON and node.input:
            wanted = node.input[0]
        else:
            return bool(node.op == "Softmax")
    return False

"""int8 in LiteRT from a float `.tflite` file and a table of ranges, by ai-edge-quantizer.

The float file comes first, as `lower` writes it; names are those of its tensors. A layer is called by what it gives.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import UnsupportedModelError
from pipeline.model_source import Sample
from pipeline.targets import litert_scale
from pipeline.targets.litert_graph import Graph
from pipeline.targets.litert_rewrite import (
    UNCLAMPED,
    cast_in_delegate,
    center_image,
    drop_clamps,
    feed_centered,
    feed_image,
    find_centering,
    given_name,
    lower_activations,
)
from pipeline.targets.tflite_file import TFLiteFile

SCHEMES: Mapping[str, str] = {
    "delegated": (
        "Hard-swish is written as an addition and a product, the factor of a hard sigmoid and of the image's scaling "
        "is folded into weights, and clamps are left to the ranges, so that XNNPACK runs all of it."
    ),
    "float_attention": (
        "As `delegated`, with the products of activations and the softmaxes between them in float, which XNNPACK has "
        "for floats only; the file is then `mixed`. Without attention it is the same file."
    ),
    "converter": "The operations that the converter writes: hard-swish stays one, which XNNPACK lacks in int8.",
}
"""Ways to int8. The first is what is taken without a search."""

_ATTENTION = {"BATCH_MATMUL", "SOFTMAX"}

Range = tuple[float, float]
_REFUSALS = (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError, IndexError)
"""What ai-edge-quantizer raises at models that it can't take."""


def lower(float_path: Path, scheme: str, out_path: Path) -> None:
    """Writes the float graph as the scheme wants it: the same function in other operations.

    Raises:
        ValueError: There is no such scheme.
    """
    _check_scheme(scheme)
    if scheme == "converter":
        shutil.copyfile(float_path, out_path)
        return
    graph = Graph.read(float_path)
    lower_activations(graph)
    center_image(graph)
    graph.write(out_path)


def layers(path: Path) -> dict[str, str]:
    """Returns for each convolution and matrix product the tensor that it gives, in the order in which they run."""
    graph = Graph.read(path)
    names = [given_name(graph, operator) for operator in graph.operators if graph.is_linear(operator)]
    return {name: name for name in names}


def linear_layers(path: Path) -> tuple[str, ...]:
    """Returns the names of the convolutions and matrix products, in the order in which they run."""
    return tuple(layers(path))


def operations(path: Path) -> tuple[str, ...]:
    """Returns the names of all operations, each of which can be left in float, in the order in which they run."""
    graph = Graph.read(path)
    return tuple(dict.fromkeys(given_name(graph, operator) for operator in graph.operators))


def observed(path: Path) -> tuple[str, ...]:
    """Returns the names of the activation tensors that take a range, in the order in which they are computed.

    The values of an image need none: they are 0 to 255.
    """
    graph = Graph.read(path)
    centering = find_centering(graph)
    fixed = set() if centering is None else {*centering.cast.outputs, *centering.add.outputs}
    computed = [int(index) for operator in graph.operators for index in operator.outputs]
    return tuple(
        graph.name(index)
        for index in (*graph.inputs, *computed)
        if index not in fixed and graph.type(index) == "float32" and not graph.name(index).endswith(UNCLAMPED)
    )


def activations(
    path: Path, samples: Iterable[Sample], names: Collection[str]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Runs a file and yields, sample by sample, the values of the named tensors; integers are expanded to floats.

    The kernels are those that the file runs in elsewhere: the tensors are read as further results of the graph.

    Args:
        path: A float file or a quantized one.
        samples: What the file is fed with, by the names of its inputs.
        names: Of tensors, or of the signature's outputs; those that the file does not hold are left out.

    Raises:
        KeyError: The file holds none of the names.
    """
    from ai_edge_litert.interpreter import Interpreter

    graph = Graph.read(path)
    fed = dict(TFLiteFile(path).tensor_names())
    tensors = {name: fed.get(name, name) for name in names if graph.holds(fed.get(name, name))}
    if names and not tensors:
        raise KeyError(f"{path.name} holds none of {', '.join(names)}")
    for tensor in tensors.values():
        graph.add_output(graph.index(tensor))
    interpreter = Interpreter(model_content=graph.content(), num_threads=1)
    interpreter.allocate_tensors()
    inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
    results = {detail["name"]: detail for detail in interpreter.get_output_details()}
    for sample in samples:
        for name, values in sample.items():
            interpreter.set_tensor(inputs[fed[name]]["index"], values)
        interpreter.invoke()
        found = {name: results[tensor] for name, tensor in tensors.items()}
        yield {name: _floats(interpreter.get_tensor(detail["index"]), detail) for name, detail in found.items()}


def quantize(
    path: Path,
    scheme: str,
    ranges: Mapping[str, Range],
    float_layers: Collection[str],
    out_path: Path,
    *,
    reduce_range: bool = False,
    precision: Literal["int8", "int16x8"] = "int8",
) -> None:
    """Writes the model with 8-bit weights, one scale for each output channel, and 8-bit activations.

    Inputs and outputs keep their types. Where TFLite wants one range for all that an operation takes and gives
    (concatenation, padding, pooling, reshaping), ai-edge-quantizer gives them one, and sigmoids that of their kernel.

    Args:
        path: What `lower` wrote for the scheme.
        scheme: One of `SCHEMES`.
        ranges: The least and the largest value of each tensor of `observed`; 0 is always made part of it.
        float_layers: Names of `linear_layers`, or of what any other operation gives, that are computed in float.
        out_path: Where the file is written.
        reduce_range: Has no effect: LiteRT's kernels sum in 32 bits on all processors.
        precision: `int16x8` has activations of 16 bits, with ranges that are symmetric around 0.

    Raises:
        ValueError: There is no such scheme, no such layer, or a range is missing.
        UnsupportedModelError: ai-edge-quantizer refuses the model.
    """
    del reduce_range
    _check_scheme(scheme)
    graph, left = Graph.read(path), frozenset(float_layers)
    _check_names(path, graph, ranges, left)
    if scheme == "float_attention":
        left |= {given_name(graph, operator) for operator in graph.operators if graph.code(operator) in _ATTENTION}
    ends = drop_clamps(graph, left)
    table = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
    table |= {name: (0.0, min(table[name][1], end)) for name, end in ends.items()}
    image, level = "", None
    centering = find_centering(graph) if scheme != "converter" else None
    if centering is not None:
        add = given_name(graph, centering.add)
        image, table[add] = graph.name(centering.image), centering.ends
        level = centering.level if precision == "int8" and len(graph.inputs) == 1 else None
        if level is None or any(given_name(graph, layer) in left for layer in centering.layers):
            left, level = left | {add}, None
        else:
            table[add] = (-float(level), 255.0 - level)
            feed_centered(graph, centering)
    result = Graph(_by_tool(graph.content(), precision, table, left, quantize_inputs=level is not None))
    if level is not None:
        feed_image(result, image, level)
    elif scheme != "converter":
        cast_in_delegate(result)
    result.write(out_path)


def scale_output(path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
    """Writes a file with one float output multiplied by a positive number (`litert_scale.scale_output`)."""
    litert_scale.scale_output(path, factor, out_path, output=output)


def quantize_weights(path: Path, precision: Literal["int8_dynamic", "int8_weights"], out_path: Path) -> None:
    """Writes the model with 8-bit weights and float activations, which need no ranges.

    Args:
        path: A float file; one that `lower` did not change, as its operations are for int8.
        precision: `int8_weights` expands the weights when the file is loaded; `int8_dynamic` computes in int8,
            with ranges taken from the activations while it runs.
        out_path: Where the file is written.

    Raises:
        UnsupportedModelError: ai-edge-quantizer refuses the model.
    """
    from ai_edge_quantizer import recipe

    made = recipe.dynamic_wi8_afp32() if precision == "int8_dynamic" else recipe.weight_only_wi8_afp32()
    Graph(_quantized(path.read_bytes(), made, None)).write(out_path)


def _by_tool(
    content: bytes, precision: str, ranges: Mapping[str, Range], float_layers: Collection[str], *, quantize_inputs: bool
) -> bytes:
    from ai_edge_quantizer import recipe

    made = recipe.static_wi8_ai8() if precision == "int8" else recipe.static_wi8_ai16()
    # A scope is what an operation gives, each name with a semicolon behind it. The later entry wins.
    kept = [("*", f"^{re.escape(name + end)};") for name in sorted(float_layers) for end in ("", UNCLAMPED)]
    ends = [("OUTPUT", ".*")] + ([] if quantize_inputs else [("INPUT", ".*")])  # which keep the signature's types
    made += [
        {"regex": scope, "operation": operation, "algorithm_key": "no_quantize", "op_config": {}}
        for operation, scope in (*ends, *kept)
    ]
    values = {
        name: {"min": np.array(low, np.float32), "max": np.array(high, np.float32)}
        for name, (low, high) in ranges.items()
    }
    return _quantized(content, made, values)


def _quantized(content: bytes, made: Any, values: dict[str, Any] | None) -> bytes:
    from ai_edge_quantizer import model_modifier, params_generator, recipe_manager
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    # What the tool's `Quantizer` does, without the interpreter that it starts to look at the names of the tensors.
    try:
        model = tfl_flatbuffer_utils.read_model(bytearray(content))
        recipes = recipe_manager.RecipeManager()
        recipes.load_quantization_recipe(made)
        generator = params_generator.ParamsGenerator(model)
        parameters = generator.generate_quantization_parameters(recipes, values, enable_progress_bar=False)
        return bytes(model_modifier.ModelModifier(model).modify_model(parameters, enable_progress_bar=False))
    except _REFUSALS as error:
        raise UnsupportedModelError(
            f"ai-edge-quantizer can't quantize the model: {' '.join(str(error).split())[:500]}", details=str(error)
        ) from error


def _check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"there is no scheme {scheme!r} for LiteRT; there are {', '.join(SCHEMES)}")


def _check_names(path: Path, graph: Graph, ranges: Mapping[str, Range], float_layers: Collection[str]) -> None:
    missing = [name for name in observed(path) if name not in ranges]
    if missing:
        raise ValueError(f"{len(missing)} tensors of {path.name} have no range, the first is {missing[0]}")
    wrong = [name for name, (low, high) in ranges.items() if not -np.inf < low <= high < np.inf]
    if wrong:
        raise ValueError(f"the range of {wrong[0]} is {ranges[wrong[0]]}; give two finite numbers, the lower one first")
    known = {given_name(graph, operator) for operator in graph.operators}
    unknown = sorted(set(float_layers) - known)
    if unknown:
        raise ValueError(f"{path.name} has no operation that gives {', '.join(unknown)}; take names of linear_layers")


def _floats(values: npt.NDArray[Any], detail: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Returns the values that stored integers stand for, or the floats as they are."""
    parameters = detail["quantization_parameters"]
    scales, zeros = parameters["scales"], parameters["zero_points"]
    if values.dtype.kind == "f" or not len(scales):
        return np.array(values, np.float32)
    along = [1] * values.ndim
    if len(scales) > 1:
        along[parameters["quantized_dimension"]] = -1
    shifted = values.astype(np.float64) - zeros.reshape(along)
    return np.asarray(shifted * scales.reshape(along), np.float32)

"""ONNX models: checked, with static inputs, and with their weights inside where a file can hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, ModelFileError
from pipeline.imports.base import Imported, check_loads, one_line
from pipeline.imports.checks import FoundOutput, FoundTensor, make_signature, resolve_inputs, shape_text
from pipeline.imports.description import ModelDescription
from pipeline.imports.formats import external_files

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"

MAX_BYTES = 2**31 - 2**20
"""Of one protocol buffer, with room for what is not weights."""

_INSIDE_BYTES = 256
"""Constants up to this size, such as the shapes of reshapes, stay in a model whose weights lie outside."""

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.preview"}
_PASSES_ON = {"Identity", "Cast", "Reshape", "Squeeze", "Flatten", "DequantizeLinear", "QuantizeLinear"}
_FLOAT_TYPES = {1, 10, 11, 16}  # TensorProto.FLOAT, FLOAT16, DOUBLE, BFLOAT16


def import_onnx(path: Path, out_dir: Path, description: ModelDescription) -> Imported:
    """Writes `model.onnx`.

    Raises:
        ModelFileError: It is no valid model, uses operations that ONNX Runtime does not have, or weights are missing.
        InputError: It does not fit the description.
    """
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed

    model = onnx.load(str(path), load_external_data=False)
    _refuse_custom_operations(model)
    files = external_files(path)
    size_bytes = path.stat().st_size + sum(file.stat().st_size for file in files)
    if files:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    constants = {constant.name for constant in model.graph.initializer}
    found = [_found(value) for value in model.graph.input if value.name not in constants]
    inputs = resolve_inputs(found, description)
    parameters = _parameters(model)
    for tensor in inputs:
        _give_shape(model.graph, tensor.name, len(tensor.shape))
        try:
            make_input_shape_fixed(model.graph, tensor.name, list(tensor.shape))
        except ValueError as error:
            raise InputError(
                f"Input {tensor.name} can't have the shape {shape_text(tensor.shape)}: {one_line(error)}. Dimensions "
                f"that the file gives one name must be equal in all inputs; state them so with model.inputs."
            ) from error
    small = size_bytes < MAX_BYTES
    if small:
        _infer_and_check(model, onnx)
    target = out_dir / MODEL
    onnx.save(
        model,
        str(target),
        save_as_external_data=not small,
        location=None if small else WEIGHTS,
        size_threshold=_INSIDE_BYTES,
    )
    if not small:
        _infer_and_check(target, onnx)
    check_loads("onnxruntime", target, inputs)
    outputs = [_found_output(value, model.graph) for value in model.graph.output]
    return Imported(make_signature("onnx", MODEL, inputs, outputs, description), parameters)


def _infer_and_check(model: Any, onnx: Any) -> None:
    """Gives a model the shapes that follow from its inputs, and checks it; a path is of one too large for that."""
    from onnxruntime.tools.onnx_model_utils import fix_output_shapes

    try:
        if isinstance(model, Path):
            onnx.checker.check_model(str(model))
            return
        _forget_free_shapes(model.graph)
        fix_output_shapes(model)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelFileError(
            f"It is no valid ONNX model: {one_line(error)}. Export it again, with a later exporter if there is one."
        ) from error


def _refuse_custom_operations(model: Any) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    foreign = {
        f"{node.domain}::{node.op_type}"
        for node in _nodes(model)
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own
    }
    if foreign:
        raise ModelFileError(
            f"The model uses the custom operations {', '.join(sorted(foreign))}. Expected those of ONNX and ONNX "
            f"Runtime (domains ai.onnx, ai.onnx.ml and com.microsoft); export the model without them."
        )


def _nodes(model: Any) -> Iterator[Any]:
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting.extend(graph.node)


def _found(value: Any) -> FoundTensor:
    dtype, shape = _type_of(value)
    return FoundTensor(value.name, dtype, shape)


def _found_output(value: Any, graph: Any) -> FoundOutput:
    dtype, shape = _type_of(value)
    return FoundOutput(value.name, dtype, shape, is_softmax=_is_softmax(value.name, graph.node))


def _type_of(value: Any) -> tuple[str, tuple[int | None, ...] | None]:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return (kind or "unknown").removesuffix("_type"), None
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if dtype not in {"string", "undefined"}:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return dtype, None
    sizes = [dim.dim_value if dim.WhichOneof("value") == "dim_value" else None for dim in tensor.shape.dim]
    return dtype, tuple(None if size is None or size < 0 else size for size in sizes)


def _give_shape(graph: Any, name: str, rank: int) -> None:
    """Gives an input of any rank as many free dimensions as it is going to have."""
    (value,) = (value for value in graph.input if value.name == name)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        tensor.shape.SetInParent()
        for _ in range(rank):
            tensor.shape.dim.add()


def _forget_free_shapes(graph: Any) -> None:
    """Leaves out the shapes in between that still are free, so that they follow from the fixed inputs."""
    kept = [value for value in graph.value_info if _is_static(value)]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _is_static(value: Any) -> bool:
    _, shape = _type_of(value)
    return shape is not None and None not in shape


def _is_softmax(name: str, nodes: Sequence[Any]) -> bool:
    makers = {output: node for node in nodes for output in node.output}
    for _ in range(len(nodes) + 1):
        node = makers.get(name)
        if node is None or node.op_type not in _PASSES_ON or not node.input:
            return node is not None and node.op_type == "Softmax"
        name = node.input[0]
    return False


def _parameters(model: Any) -> int:
    total = 0
    for constant in model.graph.initializer:
        if constant.data_type in _FLOAT_TYPES:
            size = 1
            for dim in constant.dims:
                size *= dim
            total += size
    return total

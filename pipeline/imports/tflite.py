"""TensorFlow Lite models: copied as they are, once the runtime of the boards has taken them."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ModelFileError
from pipeline.imports.base import Imported, check_loads, one_line
from pipeline.imports.checks import FoundOutput, FoundTensor, distinct_names, make_signature, resolve_inputs
from pipeline.imports.description import ModelDescription

MODEL = "model.tflite"

_PASSES_ON = {"RESHAPE", "SQUEEZE", "QUANTIZE", "DEQUANTIZE", "CAST"}
_RUNTIME_CUSTOM = {"TFLite_Detection_PostProcess"}
"""Custom operations that come with the runtime."""


def import_tflite(path: Path, out_dir: Path, description: ModelDescription) -> Imported:
    """Copies the file to `model.tflite`. Free dimensions stay free in it; runners fix them by the signature.

    Raises:
        ModelFileError: LiteRT can't load it, or it uses operations that boards don't have.
        InputError: It does not fit the description.
    """
    content = path.read_bytes()
    graph = _read(content)
    _refuse_custom_operations(graph)
    interpreter = _interpreter(content)
    found, given = interpreter.get_input_details(), interpreter.get_output_details()
    inputs = resolve_inputs(
        [
            FoundTensor(name, np.dtype(detail["dtype"]).name, _shape(detail), known_as=(detail["name"],))
            for name, detail in zip(_names(interpreter, found, "input"), found, strict=True)
        ],
        description,
    )
    for detail, tensor in zip(found, inputs, strict=True):
        if tuple(detail["shape"]) != tensor.shape:
            interpreter.resize_tensor_input(detail["index"], tensor.shape)
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"LiteRT can't prepare it: {one_line(error)}. Export it with builtin operations and these input shapes."
        ) from error
    outputs = [
        FoundOutput(
            name,
            np.dtype(detail["dtype"]).name,
            tuple(int(size) or None for size in detail["shape"]),
            known_as=(detail["name"],),
            is_softmax=graph.is_softmax(detail["index"]),
        )
        for name, detail in zip(_names(interpreter, given, "output"), interpreter.get_output_details(), strict=True)
    ]
    signature = make_signature("tflite", MODEL, inputs, outputs, description)
    shutil.copyfile(path, out_dir / MODEL)
    check_loads("litert", out_dir / MODEL, inputs)
    return Imported(signature, None)


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    try:
        return Interpreter(model_content=content, num_threads=1)
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"LiteRT can't load it: {one_line(error)}. Expected a whole .tflite file; export it again."
        ) from error


def _read(content: bytes) -> _Graph:
    try:
        return _Graph(content)
    except (struct.error, TypeError, ValueError, IndexError) as error:
        raise ModelFileError(
            f"It is damaged or cut off: {one_line(error)}. Expected a whole .tflite file; copy or export it again."
        ) from error


def _refuse_custom_operations(graph: _Graph) -> None:
    flex = sorted(name.removeprefix("Flex") for name in graph.custom if name.startswith("Flex"))
    if flex:
        raise ModelFileError(
            f"The model uses operations of TensorFlow itself ({', '.join(flex)}), which the runtime of a board does "
            f"not have. Convert it with target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS] alone."
        )
    foreign = sorted(set(graph.custom) - _RUNTIME_CUSTOM)
    if foreign:
        raise ModelFileError(
            f"The model uses the custom operations {', '.join(foreign)}, which the runtime of a board does not have. "
            f"Expected builtin operations; convert it without allow_custom_ops."
        )


def _shape(detail: dict[str, Any]) -> tuple[int | None, ...]:
    signature = detail.get("shape_signature")
    sizes = detail["shape"] if signature is None or len(signature) == 0 else signature
    return tuple(None if size < 0 else int(size) for size in sizes)


def _names(interpreter: Any, details: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Returns the names that the runner gives the tensors: the signature's, where there is exactly one."""
    signatures = list(interpreter.get_signature_list())
    names: dict[int, list[str]] = {}
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(signatures[0])
        signed = runner.get_input_details() if kind == "input" else runner.get_output_details()
        for name, detail in signed.items():
            names.setdefault(detail["index"], []).append(name)
    found = []
    for detail in details:
        left = names.get(detail["index"])
        found.append(left.pop(0) if left else str(detail["name"]))
    return distinct_names(found, kind)


class _Graph:
    """The operations of a flatbuffer, read with the schema that ships with the runtime.

    Attributes:
        custom: Names of the custom operations in it.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        model = schema.Model.GetRootAsModel(content, 0)
        codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
        self.custom = [code.CustomCode().decode("utf-8", "replace") for code in codes if code.CustomCode()]
        if model.SubgraphsLength() == 0:
            raise ModelFileError("The file holds no graph. Expected a whole .tflite file; export it again.")
        graph = model.Subgraphs(0)
        numbers = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self._makers: dict[int, tuple[str, int]] = {}
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = codes[operator.OpcodeIndex()]
            name = numbers.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "")
            first = operator.Inputs(0) if operator.InputsLength() else -1
            for place in range(operator.OutputsLength()):
                self._makers[operator.Outputs(place)] = (name, first)

    def is_softmax(self, tensor: int) -> bool:
        """Whether a tensor comes right out of a softmax."""
        for _ in range(len(self._makers) + 1):
            name, first = self._makers.get(tensor, ("", -1))
            if name not in _PASSES_ON:
                return name == "SOFTMAX"
            tensor = first
        return False

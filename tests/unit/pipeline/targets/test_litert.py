"""What is read from TensorFlow Lite flatbuffers, on small ones built here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ModelFileError
from pipeline.targets import inspect_model


@dataclasses.dataclass(frozen=True)
class Layer:
    """A fully connected layer: types of its input and its weights, and whether the weights are dequantized."""

    activations: str
    weights: str
    dequantized: bool = False


def write(path: Path, layers: list[Layer], *, custom: bool = False, subgraph: bool = True) -> Path:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    codes = [schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.DEQUANTIZE, schema.BuiltinOperator.CUSTOM]
    model.operatorCodes = []
    for number in codes:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, number, 1
        model.operatorCodes.append(code)
    model.operatorCodes[2].customCode = b"FlexThing"
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []

    def tensor(name: str, kind: str, data: bytes = b"") -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type = name.encode(), [1, 4], getattr(schema.TensorType, kind.upper())
        made.buffer = 0
        if data:
            buffer = schema.BufferT()
            buffer.data = list(data)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code: int, inputs: list[int], outputs: list[int]) -> None:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, outputs
        graph.operators.append(made)

    for number, layer in enumerate(layers):
        source = tensor(f"in{number}", layer.activations)
        weights = tensor(f"weights{number}", layer.weights, bytes(16))
        if layer.dequantized:
            floating = tensor(f"floating{number}", "float32")
            operator(1, [weights], [floating])
            weights = floating
        operator(0, [source, weights, -1], [tensor(f"layer{number}", layer.activations)])
    if custom:
        operator(2, [0], [tensor("custom", "float32")])
    graph.inputs, graph.outputs = [0], [len(graph.tensors) - 1]
    model.subgraphs = [graph] if subgraph else []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@dataclasses.dataclass(frozen=True)
class Case:
    label: str
    layers: list[Layer]
    floating: tuple[str, ...] = ()


CASES = [
    Case("float32", [Layer("float32", "float32")]),
    Case("float16", [Layer("float32", "float16", dequantized=True)]),
    Case("int8", [Layer("int8", "int8")] * 2),
    Case("int8_dynamic", [Layer("float32", "int8")]),
    Case("int8_weights", [Layer("float32", "int8", dequantized=True)], ("layer0",)),
    Case("int16x8", [Layer("int16", "int8")]),
    Case("mixed", [Layer("int8", "int8"), Layer("float32", "float32")], ("layer1",)),
    Case("mixed", [Layer("int8", "int8"), Layer("float32", "int8")]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.label}-{len(case.layers)}")
def test_label(tmp_path: Path, case: Case) -> None:
    summary = inspect_model(write(tmp_path / "m.tflite", case.layers))
    assert summary.precision == case.label
    assert summary.float_operations == case.floating
    assert summary.operations["FULLY_CONNECTED"] == len(case.layers)
    assert sum(summary.weight_bytes.values()) == 16 * len(case.layers)


def test_custom_operations_are_seen(tmp_path: Path) -> None:
    summary = inspect_model(write(tmp_path / "m.tflite", [Layer("float32", "float32")], custom=True))
    assert summary.operations["CUSTOM:FlexThing"] == 1


def test_no_graph(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="holds no graph"):
        inspect_model(write(tmp_path / "m.tflite", [Layer("int8", "int8")], subgraph=False))


def test_wrong_identifier(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tflite", [Layer("int8", "int8")])
    content: Any = bytearray(path.read_bytes())
    content[4:8] = b"TFL2"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="TFL3 at byte 4, found b'TFL2'"):
        inspect_model(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "m.tflite", [Layer("int8", "int8")] * 4)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelFileError):
        inspect_model(path)

"""Where a runtime runs the operations of a file on this machine: in integers or floats, delegated or not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.targets.base import TargetName

_INTEGER_TENSORS = {"int8", "uint8", "int16"}
_INTEGER_KERNELS = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger")
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_DELEGATE = "DELEGATE"


@dataclass(frozen=True)
class Execution:
    """What a runtime does with a file when one thread runs it.

    Attributes:
        operations: Those that run.
        integer: Those of them that compute with integers.
        conversions: Those that only turn floats into integers or back.
        partitions: Parts that LiteRT gives to XNNPACK, None of the other runtimes.
        outside: Operations that LiteRT keeps, None of the other runtimes.
    """

    operations: int
    integer: int
    conversions: int
    partitions: int | None = None
    outside: int | None = None

    @property
    def integer_share(self) -> float:
        """0..1."""
        return self.integer / self.operations if self.operations else 0.0

    def __str__(self) -> str:
        words = f"{self.integer_share:.0%} integer of {self.operations}"
        if self.partitions is not None:
            words += f", {self.partitions} delegated parts, {self.outside} outside"
        return words


def execution(target: TargetName, path: Path) -> Execution:
    """Loads a file in its runtime and returns where the operations run.

    Raises:
        InputError: The target has no runtime that tells.
    """
    if target not in _LOOKS:
        raise InputError(f"{target} does not tell where operations run; expected one of {', '.join(_LOOKS)}.")
    return _LOOKS[target](path)


def _litert(path: Path) -> Execution:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    # The nodes of the file, then one for each part that the delegate takes in place of some of them.
    nodes = interpreter._get_ops_details()  # there is no public way
    own = [node for node in nodes if node["op_name"] != _DELEGATE]
    parts = [node for node in nodes if node["op_name"] == _DELEGATE]
    types = {detail["index"]: detail["dtype"].__name__ for detail in interpreter.get_tensor_details()}
    producers = {int(output): number for number, node in enumerate(own) for output in node["outputs"]}
    delegated: set[int] = set()
    for part in parts:
        borders = {int(index) for index in part["inputs"]}
        left = [int(index) for index in part["outputs"]]
        while left:
            index = left.pop()
            number = producers.get(index)
            if index in borders or number is None or number in delegated:
                continue
            delegated.add(number)
            left += [int(taken) for taken in own[number]["inputs"]]
    conversions = [node for node in own if node["op_name"] in {"QUANTIZE", "DEQUANTIZE", "CAST"}]
    integer = [
        node
        for node in own
        if node not in conversions and all(types.get(int(index)) in _INTEGER_TENSORS for index in node["outputs"])
    ]
    return Execution(len(own), len(integer), len(conversions), len(parts), len(own) - len(delegated))


def _onnxruntime(path: Path) -> Execution:
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3  # it warns that such a file fits this machine only
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(str(optimized)).graph.node]
    integer = [kind for kind in kinds if kind.startswith(_INTEGER_KERNELS)]
    return Execution(len(kinds), len(integer), sum(kind in _CONVERSIONS for kind in kinds))


def _openvino(path: Path) -> Execution:
    import numpy as np
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    compiled = ov.Core().compile_model(str(path), "CPU", settings)
    compiled([np.zeros(list(port.shape), port.get_element_type().to_dtype()) for port in compiled.inputs])
    rows: list[Any] = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [
        (row["layerType"].astype(str), row["primitiveType"].astype(str))
        for row in rows
        if row["execTimeMcs"].astype(str) != "not_executed"
    ]
    # A kernel is named after the type of what it takes: brgconv_avx512_I8.
    conversions = sum(kind in {"Reorder", "Convert", "FakeQuantize"} for kind, _ in kinds)
    integer = sum(kernel.lower().endswith(("i8", "u8")) for _, kernel in kinds)
    return Execution(len(kinds), integer, conversions)


_LOOKS: Mapping[TargetName, Callable[[Path], Execution]] = {
    "litert": _litert,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}

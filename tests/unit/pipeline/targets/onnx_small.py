"""Small ONNX graphs for tests, written as text, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.targets.onnx_graph import OnnxGraph


def model(text: str, seed: int = 0, **constants: Any) -> Any:
    """A checked model from the nodes of a graph in ONNX's text form.

    Args:
        text: `(inputs) => (outputs) { nodes }`.
        seed: Of the constants.
        **constants: By name the value, or the shape of random float32 ones.
    """
    import onnx

    rng = np.random.default_rng(seed)
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> g {text}')
    for number, node in enumerate(made.graph.node):
        node.name = node.name or f"{node.op_type}{number}"
    for name, value in constants.items():
        values = rng.normal(0, 0.5, value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.checker.check_model(made, full_check=True)
    return made


def graph(text: str, **constants: Any) -> OnnxGraph:
    return OnnxGraph(model(text, **constants))


def kinds(changed: OnnxGraph) -> Counter[str]:
    return Counter(node.op_type for node in changed.model().graph.node)


def run(made: Any, *inputs: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def optimized(path: Path, scratch: Path) -> Counter[str]:
    """How often each operation is in what ONNX Runtime runs of a file."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)

"""The shortest loop around ONNX Runtime or LiteRT, for `cross_checks.py`: `bare_loop.py MODEL`, then JSON lines.

measure {time_s, settle_time_s} -> latencies_ns. Of Edgeship there is nothing in it but the way that requests arrive.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from devices.board.jsonlines import serve


def onnxruntime_loop(path: str) -> Callable[[], Any]:
    """One inference of a session with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    feed = {tensor.name: image(tensor.shape)}
    return lambda: session.run(None, feed)


def litert_loop(path: str) -> Callable[[], Any]:
    """One inference of an interpreter with one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    (tensor,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    pixels = image(tensor["shape"])

    def infer() -> Any:
        interpreter.set_tensor(tensor["index"], pixels)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return infer


def image(shape: Any) -> np.ndarray[Any, Any]:
    """Random pixels, uint8."""
    sizes = [size if isinstance(size, (int, np.integer)) and size > 0 else 1 for size in shape]
    return np.random.default_rng(0).integers(0, 256, sizes, np.uint8)


def main() -> None:
    """Answers until standard input ends."""
    path = sys.argv[1]
    infer = litert_loop(path) if path.endswith(".tflite") else onnxruntime_loop(path)

    def measure(params: dict[str, Any], _: Any) -> dict[str, Any]:
        begin = time.perf_counter_ns()
        while time.perf_counter_ns() - begin < params["settle_time_s"] * 1e9:
            infer()
        latencies: list[int] = []
        begin = time.perf_counter_ns()
        while time.perf_counter_ns() - begin < params["time_s"] * 1e9:
            started = time.perf_counter_ns()
            infer()
            latencies.append(time.perf_counter_ns() - started)
        return {"latencies_ns": latencies}

    serve({"measure": measure})


if __name__ == "__main__":
    main()

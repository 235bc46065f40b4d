"""Where XNNPACK runs a LiteRT model."""

from __future__ import annotations

from pathlib import Path


def placement(path: Path) -> tuple[int, list[str]]:
    """How many pieces of the graph XNNPACK runs, and the operations that it does not run."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    operations = interpreter._get_ops_details()
    pieces = [operation for operation in operations if operation["op_name"] == "DELEGATE"]
    given = {index for piece in pieces for index in piece["outputs"]}
    left = []
    for operation in operations:
        if operation["op_name"] != "DELEGATE" and not given & set(operation["outputs"]):
            try:  # inside of a piece, tensors have no memory
                interpreter.get_tensor(int(operation["outputs"][0]))
            except ValueError:
                continue
            left.append(operation["op_name"])
    return len(pieces), left

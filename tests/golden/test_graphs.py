"""What the exports of a tiny MobileNetV2 hold, pinned: `pytest tests/golden --regenerate` writes it anew.

Structure is compared exactly; sizes, which move with the versions of converters, to 2 %.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

GOLDEN = Path(__file__).parent / "data" / "graphs.json"
STRUCTURE = ("format", "precision", "inputs", "outputs", "operations", "tensor_types", "float_operations")


def test_graphs(exports: Any, regenerate: bool) -> None:
    found = {}
    for target in ("litert", "onnxruntime", "openvino"):
        for precision in ("float32", "float16", "int8"):
            graph = exports.metrics(target, precision)["graph"]
            found[f"{target}/{precision}"] = {name: graph[name] for name in (*STRUCTURE, "weight_bytes", "size_bytes")}
    if regenerate:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert set(found) == set(golden)
    for name, graph in found.items():
        for field in STRUCTURE:
            assert graph[field] == golden[name][field], f"{name}: {field}"
        assert graph["weight_bytes"] == pytest.approx(golden[name]["weight_bytes"], rel=0.02), name
        assert graph["size_bytes"] == pytest.approx(golden[name]["size_bytes"], rel=0.02), name

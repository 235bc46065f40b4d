"""`devices.board` stands alone: nothing heavy, nothing of ours from outside, and it runs as a folder of its own."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BOARD = ROOT / "devices" / "board"
SOURCES = sorted(BOARD.rglob("*.py"))
FOREIGN = (
    "tensorflow keras click yaml ruamel pydantic PIL rich pipeline models "
    "onnxruntime openvino ai_edge_litert tflite_runtime"
)


def test_importing_everything_loads_nothing_heavy() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES if path.stem != "__main__"]
    code = f"""
import importlib, json, sys
for name in {[name.removesuffix(".__init__") for name in names]!r}:
    importlib.import_module(name)
foreign = set({FOREIGN.split()!r})
ours = {{name for name in sys.modules if name.startswith("devices.") and not name.startswith("devices.board")}}
print(json.dumps(sorted(foreign & set(sys.modules)) + sorted(ours)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_host_side_of_devices_loads_no_runtime() -> None:
    code = f"""
import json, sys
import devices.measurement
print(json.dumps(sorted((set({FOREIGN.split()!r}) - set(["ruamel", "pydantic", "rich"])) & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(BOARD)))
def test_sources_keep_to_what_a_board_has(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    top_level = {"numpy", *sys.stdlib_module_names}
    inside = top_level | {"onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime"}
    depth = len(path.relative_to(BOARD).parts)
    for node in ast.walk(tree):
        allowed = top_level if node in tree.body else inside
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= depth, "reaches out of the folder"
            assert node.level or (node.module or "").split(".")[0] in allowed
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "print" not in names
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    assert future or len(tree.body) <= 1


def test_the_folder_runs_by_itself(tmp_path: Path) -> None:
    shutil.copytree(BOARD, tmp_path / "board", ignore=shutil.ignore_patterns("__pycache__"))
    child = subprocess.Popen(
        [sys.executable, "-m", "board"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        for number, method in enumerate(("hello", "facts")):
            child.stdin.write(json.dumps({"id": number, "method": method}) + "\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline())
            assert answer["id"] == number
            assert "result" in answer
        child.stdin.close()
        assert child.wait(5) == 0

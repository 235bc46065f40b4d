"""Two processes that train one network through the command line, each with a store of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """\
name: together
data: {source: npz, path: tiny.npz, size: [32, 32]}
model: {name: resnet8}
train: {backend: jax, devices: 1, workers: 0, epochs: 2, warmup_epochs: 1, batch_size: 48, learning_rate: 0.004}
"""
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def start(place: Any, index: int, port: int, *arguments: str, **env: str) -> subprocess.Popen[str]:
    cluster = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(index))
    process: subprocess.Popen[str] = place.start(
        place.command("train", "together.yaml", *cluster, *arguments), env=ON_CPU | env
    )
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        stdout, stderr = process.communicate(timeout=400)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_two_processes_train_one_network_and_the_first_publishes_it(workplace: Any, tmp_path: Path) -> None:
    (workplace.directory / "together.yaml").write_text(RECIPE)
    other = type(workplace)(Path(shutil.copytree(workplace.directory, tmp_path / "other")))
    port = free_port()
    processes = [start(workplace, 0, port, "--json"), start(other, 1, port)]
    (code, stdout, stderr), (other_code, other_stdout, other_stderr) = [ended(process) for process in processes]

    assert code == 0, stderr
    summary = json.loads(stdout)
    assert (summary["epochs"], summary["backend"], summary["cached"]) == (2, "jax", False)
    assert (workplace.directory / summary["artifacts"]["train"] / "network.weights.h5").is_file()
    assert len(workplace.artifacts("train")) == len(workplace.artifacts("calibrate")) == 1

    assert other_code == 0, other_stderr
    assert other_stdout.split() == [
        "done",
        "process",
        "1",
        "trained",
        "along;",
        "process",
        "0",
        "has",
        "the",
        "network",
    ]
    assert [path.parent.name for path in other.artifacts()] == ["data"]
    assert not list((other.store / "work").glob("*"))
    assert not other.runs.exists()

    # Once it is there, process 0 trains nothing, and one that comes to train along is told so instead of waiting on.
    began = time.monotonic()
    processes = [start(workplace, 0, port, "--json"), start(other, 1, port, EDGESHIP_START_TIMEOUT="3")]
    (code, stdout, stderr), (other_code, other_stdout, other_stderr) = [ended(process) for process in processes]
    assert code == 0, stderr
    assert json.loads(stdout) == summary | {"cached": True, "history_csv": json.loads(stdout)["history_csv"]}
    assert other_code == 4, other_stderr
    assert "waited 3 s for process 0" in other_stderr
    assert "its store holds the trained network" in other_stderr
    assert "Traceback" not in other_stderr
    assert other_stdout == ""
    assert time.monotonic() - began < 180

"""The virtual boards, for the tests that need them; see `make test-board`."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from devices.cache import cache_directory
from devices.profile import DeviceProfile, load_profile
from devices.transports.ssh_link import close_links
from devices.virtual import plan
from devices.virtual.control import start_board, stop_board
from pipeline.executor import child_environment
from tests.conftest import ROOT

COUNT = 12
CACHE = cache_directory(os.environ)
FILES = {"litert": "model.tflite", "onnxruntime": "model.onnx", "openvino": "model.xml"}


@pytest.fixture(scope="session")
def boards() -> Iterator[None]:
    """All boards stand still in the end."""
    missing = [name for name, board in plan.BOARDS.items() if not plan.board_files(board, CACHE).directory.is_dir()]
    if missing:
        pytest.fail(f"not built: {', '.join(missing)}. Run `make test-board`, which builds them first")
    yield
    close_links()
    for board in plan.BOARDS.values():
        stop_board(plan.board_files(board, CACHE))


@pytest.fixture(scope="session")
def fresh_directory() -> str:
    """A directory on the boards that nothing has been installed in."""
    return f".edgeship-test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def profiles(boards: None, fresh_directory: str) -> Iterator[dict[str, DeviceProfile]]:
    found = {}
    for architecture in plan.BOARDS:
        profile = load_profile(f"virtual-{architecture}")
        transport = profile.transport.model_copy(update={"directory": fresh_directory})
        found[profile.name] = profile.model_copy(update={"transport": transport})
    yield found
    close_links()
    for board in plan.BOARDS.values():
        on_board(board, f"rm -rf {fresh_directory}")


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MobileNetV2 with random weights, its samples and its exports; see tests/integration/families.py."""
    directory = tmp_path_factory.mktemp("families")
    environment = {**child_environment("tensorflow"), "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "integration" / "families.py"
    done = subprocess.run(
        [sys.executable, str(script), str(directory), "mobilenet_v2"],
        check=False, env=environment, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    samples = np.load(directory / "mobilenet_v2" / "samples.npz")
    np.save(directory / "images.npy", samples["inputs"][:COUNT])
    np.save(directory / "labels.npy", samples["outputs"][:COUNT].argmax(1))
    return directory


def on_board(board: plan.VirtualBoard, command: str) -> str:
    """What a command on a board prints."""
    running = start_board(board, CACHE)
    login = plan.login_command(running.files, running.port)
    return subprocess.run([*login, command], check=True, capture_output=True, text=True, timeout=120).stdout

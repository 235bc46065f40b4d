"""The float file, the converters' defaults and ours of one network, and where each runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
from pipeline.int8_latency import make_files, random_network
from pipeline.targets import QUANTIZERS
from pipeline.targets.execution import execution

directory = Path(sys.argv[1])
source, calibration = random_network("mobilenet_v3_small", 64, directory)
found = {}
for target in QUANTIZERS:
    files = make_files(target, source, calibration, directory / target)
    found[target] = {name: dataclasses.asdict(execution(target, path)) for name, path in files.items()}
(directory / "found.json").write_text(json.dumps(found))
"""


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("files")
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory)], capture_output=True, text=True, timeout=850, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(Path(directory / "found.json").read_text())


def share(execution: dict[str, Any]) -> float:
    return float(execution["integer"] / execution["operations"])


@pytest.mark.parametrize("target", ["litert", "onnxruntime", "openvino"])
def test_ours_runs_in_integers(found: Any, target: str) -> None:
    files = found[target]
    assert share(files["float32"]) < 0.1
    [ours, *_] = [name for name in files if name not in {"float32", "default"}]
    assert share(files[ours]) > 0.6
    assert share(files[ours]) >= share(files["default"])


def test_delegate(found: Any) -> None:
    files = found["litert"]
    assert files["float32"]["outside"] <= 1  # the image's cast to float
    assert files["default"]["partitions"] > files["delegated"]["partitions"]
    assert files["default"]["outside"] >= 18  # as many hard-swishes as it has

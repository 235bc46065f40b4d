from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "models" / "recipes" / "fake.yaml"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deploy")


def edgeship(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


def deploy(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return edgeship(directory, "deploy", str(RECIPE), "--root", "root", *more)


def test_deploy_status_and_rollback(directory: Path) -> None:
    first = deploy(directory, "--json")
    assert first.returncode == 0, first.stderr
    deployed = json.loads(first.stdout)
    assert deployed["changed"] is True
    again = deploy(directory, "--json")
    assert json.loads(again.stdout)["changed"] is False
    home = directory / "root" / "fake"
    assert json.loads((home / "current" / "release.json").read_text()) == deployed["release"]
    assert deployed["release"]["classes"] == [str(label) for label in range(10)]
    assert set(deployed["release"]["made_from"]) >= {"data", "train", "calibrate"}

    other = deploy(directory, "--set", "quantization.seed=1", "--json")
    assert json.loads(other.stdout)["changed"] is True
    rows = json.loads(edgeship(directory, "status", "--root", "root", "--json").stdout)["releases"]
    assert rows[0]["previous_digest"] is not None
    back = edgeship(directory, "rollback", "fake", "--root", "root", "--json")
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["current"] == rows[0]["previous_digest"]
    assert json.loads((home / "current" / "release.json").read_text()) == deployed["release"]


def test_a_release_that_answers_differently_is_refused(directory: Path) -> None:
    deploy(directory)
    golden = directory / "root" / "fake" / "previous" / "golden_output_0.npy"
    golden.write_bytes(golden.read_bytes()[:-4] + b"\x00\x00\x7a\x44")
    refused = edgeship(directory, "rollback", "fake", "--root", "root")
    assert refused.returncode == 3
    assert "Traceback" not in refused.stderr


def test_devices_that_deploy_does_not_reach(directory: Path) -> None:
    refused = deploy(directory, "--device", "fake")
    assert refused.returncode == 2
    assert "transport local" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_nothing_selected_is_nothing_deployed(directory: Path) -> None:
    refused = deploy(directory, "--set", "gates.max_size_bytes=10", "--root", "other")
    assert refused.returncode == 1
    assert "nothing to deploy" in refused.stderr
    assert not (directory / "other").exists()

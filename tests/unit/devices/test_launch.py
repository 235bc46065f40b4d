"""`edgeship-board` on a board that is reached over SSH: the file that an agent's start leaves there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.board_program import put_program
from tests.releases import NAME, put_fake


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Of a board that lies in a directory with a space."""
    return put_program(tmp_path / "a board")


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, cwd=program.parent)


def test_it_runs_the_program(program: Path, tmp_path: Path) -> None:
    put_fake(tmp_path / "root", tmp_path)
    (tmp_path / "image.ppm").write_bytes(b"P6 1 1 255\nabc")
    done = run(program, "infer", str(tmp_path / "image.ppm"), "--root", str(tmp_path / "root"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == NAME
    assert run(program, "nothing").returncode == 2
    assert run(program, "infer", "image.ppm", "--root", "nowhere").returncode == 2


def test_its_unit_starts_what_came_last(program: Path, tmp_path: Path) -> None:
    unit = run(program, "unit", "--root", "/srv/edgeship").stdout
    (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert start.startswith(f'ExecStart="{program}" serve --root /srv/edgeship')
    assert "PYTHONPATH" not in unit
    for name in ("agents", "edgeship-board", "envs"):
        assert f'BindReadOnlyPaths="{program.parent / name}"' in unit.splitlines()

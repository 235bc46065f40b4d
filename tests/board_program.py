"""The program on a board as reaching it over SSH leaves it there."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from devices.board.storage import PROGRAM
from devices.board_program import agent_archive

_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from board.launch import *; write_program(*sys.argv[2:])"


def put_program(root: Path) -> Path:
    """Puts it into a courier's directory, which is made; returns the file that runs it."""
    agent, packages = root / "agents" / "a1", root / "envs" / "e1" / "site-packages"
    with zipfile.ZipFile(io.BytesIO(agent_archive())) as archive:
        archive.extractall(agent)
    packages.mkdir(parents=True)
    for _ in range(2):  # an agent's start finds it there already
        subprocess.run([sys.executable, "-c", _CODE, str(agent), str(root), str(packages)], check=True)
    return root / PROGRAM


if __name__ == "__main__":
    put_program(Path(sys.argv[1]))

"""Installers and hosts in processes of their own, which are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

INSTALLER = """
import os, signal, sys
from devices.board.release_install import Installer
from tests.faults.board import passes
from tests.faults.dying_watcher import DyingWatcher

def on_step(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

installer = Installer(sys.argv[1], who="victim", on_step=on_step, self_test=passes, start_watcher=DyingWatcher)
installer.rollback("net") if sys.argv[2] == "rollback" else installer.install(sys.argv[2])
"""

HOST = """
import os, signal, sys
from pathlib import Path
from devices.profile import load_profile
from devices.release import install

def on_step(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

install(load_profile("local"), Path(sys.argv[1]), Path(sys.argv[2]), on_step=on_step)
"""


def killed(code: str, *arguments: str, **variables: str) -> None:
    """Runs it until it ends by SIGKILL."""
    scratch = {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/", **scratch, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr

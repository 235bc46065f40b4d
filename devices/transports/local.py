"""This machine as a device."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from devices.profile import DeviceProfile
from devices.transports.process_agent import ProcessAgent

# Runtimes get their number of threads through their own options; these keep numpy and OpenMP from adding
# more.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


_PACKAGES_DIR = Path(__file__).resolve().parent.parent.parent
"""Where the package `devices` lies."""


class LocalDevice:
    """Files stay where they are, an agent is a child process.

    Args:
        profile: Gives the interpreter.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        self._profile = profile

    def put(self, local_path: str) -> str:
        """See `Transport`."""
        return str(Path(local_path).absolute())

    def get(self, device_path: str, local_path: str) -> None:
        """See `Transport`."""
        if Path(device_path).absolute() != Path(local_path).absolute():
            shutil.copyfile(device_path, local_path)

    def start_agent(self, module: str = "devices.board", *, releases_only: bool = False) -> ProcessAgent:
        """See `Transport`.

        Args:
            module: What runs in the process: the board's agent, or one of the host that does more.
            releases_only: See `Transport`; the module is the agent's then.
        """
        module = "devices.board.release_agent" if releases_only else module
        python = self._profile.python or sys.executable
        env = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1")}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_PACKAGES_DIR), env.get("PYTHONPATH"))))
        # Python puts the working directory in front of its search path: in the user's, any file could be a
        # module.
        return ProcessAgent([python, "-m", module], env=env, cwd=_PACKAGES_DIR, device=self._profile.name)

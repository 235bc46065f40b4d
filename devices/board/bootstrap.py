"""The first of Edgeship on a board: makes modules of the sources that come with the first request.

The host sends this file's source too, to a Python that runs `devices.transports.ssh_client.LOADER`. So it imports
nothing of ours, and what it makes is as good as a package on the disk.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Dict

MODULES = ("storage", "wheels", "interpreter", "courier")
"""What the courier is made of; each imports none that comes after it."""


def main(start: Dict[str, Any], rest: bytes) -> None:
    """Runs the courier until the host is gone.

    Args:
        start: The first request, with the sources by the names of `MODULES`.
        rest: What was read of standard input after it.
    """
    package = ModuleType("board")
    package.__path__ = []
    sys.modules["board"] = package
    for name, source in start["params"].pop("modules").items():
        module = ModuleType(f"board.{name}")
        module.__package__ = "board"
        sys.modules[module.__name__] = module
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)  # noqa: S102 (it is our own)
    sys.modules["board.courier"].main(start, rest)

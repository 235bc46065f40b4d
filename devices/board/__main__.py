"""`python -m board` on a board, `python -m devices.board` on the host.

Without a command it is the agent, which answers until standard input ends; with one it is `edgeship-board`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from typing import Any

from .agent import BoardAgent
from .jsonlines import Lifeline, serve
from .release_requests import release_handlers

COMMANDS = ("infer", "serve", "unit", "install", "status", "rollback", "recover", "trust", "-h", "--help")
"""Of `program`; named here, because the agent does not import that."""


def main(root: str = "") -> None:
    """Runs an agent to its end.

    Args:
        root: Of the file system that sensors and governors are in; tests put written trees there.
    """
    with contextlib.suppress(OSError, ValueError):
        # A runtime that crashes on a bad file would fill the board's storage with its memory.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    lifeline = Lifeline()

    def end(number: int, frame: Any) -> None:  # noqa: ARG001
        with contextlib.suppress(Exception):
            agent.close()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def stay() -> None:
        """An agent that sets the governor holds no model, so nothing keeps it from noticing that its time has come."""
        lifeline.let_go()
        signal.signal(signal.SIGTERM, end)

    agent = BoardAgent(root=root, on_governor=stay)
    serve({**agent.handlers(), **release_handlers()}, at_end=agent.close, lifeline=lifeline)


if __name__ == "__main__":
    # The agent that an SSH connection starts is given other arguments, see `launch`; none of them is a command.
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        from .program import main as run_program  # not for the agent, whose memory is measured

        sys.exit(run_program())
    main()

"""`python -m board` on a board, `python -m devices.board` on the host: answers until standard input ends."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import Any

from .agent import BoardAgent
from .jsonlines import Lifeline, serve


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
    serve(agent.handlers(), at_end=agent.close, lifeline=lifeline)


if __name__ == "__main__":
    main()

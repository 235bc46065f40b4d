"""`python -m board` on a board, `python -m devices.board` on the host: answers until standard input ends."""

from __future__ import annotations

import contextlib
import resource

from .agent import BoardAgent
from .jsonlines import serve

if __name__ == "__main__":
    with contextlib.suppress(OSError, ValueError):
        # A runtime that crashes on a bad file would fill the board's storage with its memory.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    serve(BoardAgent().handlers())

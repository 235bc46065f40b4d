"""The agent that knows releases and what the board is, and nothing of models: it needs neither numpy nor a runtime.

hello    -> protocol, python, pid
board    -> see `interpreter.describe_board`

and the requests of `release_requests`.
"""

from __future__ import annotations

import os
import platform
from typing import Any, Dict

from .interpreter import describe_board
from .jsonlines import Lifeline, serve
from .launch import PROTOCOL_VERSION
from .release_requests import release_handlers


def hello() -> Dict[str, Any]:
    """What every agent says first."""
    return {"protocol": PROTOCOL_VERSION, "python": platform.python_version(), "pid": os.getpid()}


def main() -> None:
    """Runs an agent to its end."""
    handlers = {"hello": lambda _params, _emit: hello(), "board": lambda _params, _emit: describe_board()}
    serve({**handlers, **release_handlers()}, lifeline=Lifeline())


if __name__ == "__main__":
    main()

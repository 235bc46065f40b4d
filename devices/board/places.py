"""Where releases lie on a board, and who is at work."""

from __future__ import annotations

import getpass
import os
import socket

ROOT_VARIABLE = "EDGESHIP_ROOT"
DEFAULT_ROOT = "~/.local/share/edgeship"


def default_root() -> str:
    """Where releases lie unless told otherwise."""
    return os.path.expanduser(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def who() -> str:
    """Who runs this process and where, for a history that people read."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"

"""Where releases lie on a board."""

from __future__ import annotations

import os

ROOT_VARIABLE = "EDGESHIP_ROOT"
DEFAULT_ROOT = "~/.local/share/edgeship"


def default_root() -> str:
    """Where releases lie unless told otherwise."""
    return os.path.expanduser(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)

"""Where this machine keeps what can be made or fetched again: wheels, virtual boards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def cache_directory(environment: Mapping[str, str]) -> Path:
    """EDGESHIP_CACHE, else the user's cache."""
    if chosen := environment.get("EDGESHIP_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "edgeship"

"""Finishes on the board what an interruption left: at boot, before the service starts, or by hand."""

from __future__ import annotations

import os
from typing import Any, Dict, List

from .release_disk import Disk
from .release_home import hold_home, read_state
from .release_watch import restarter


def recover_releases(root: str, *, restart: bool) -> List[Dict[str, Any]]:
    """Finishes or gives up every installation that was interrupted; see `Home.recover`.

    Args:
        root: Directory of all releases of this board.
        restart: Whether the services are running, so that they must hear of it. While the board boots they are not.

    Returns:
        For each name at which something was left: `name`, `held` (somebody is at work on it, so nothing was done) and
        `entry`, what was added to the history.

    Raises:
        OSError: The releases can't be written.
    """
    rows = []
    root = os.path.abspath(os.path.expanduser(root))
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        if read_state(os.path.join(root, name))["running"] is None:
            continue
        try:
            with hold_home(root, name, Disk(), wait=False) as home:
                entry = home.recover(restarter(home)) if restart else home.recover()
        except BlockingIOError:
            rows.append({"name": name, "held": True, "entry": None})
        else:
            if entry is not None:
                rows.append({"name": name, "held": False, "entry": entry})
    return rows

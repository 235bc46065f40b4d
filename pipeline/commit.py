"""The commit that a measurement belongs to."""

from __future__ import annotations

import subprocess


def commit_here() -> tuple[str | None, bool | None]:
    """The commit of the repository that the working directory is in, and whether it has changes; None without one."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20, check=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=60,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head.stdout.strip(), bool(state.stdout.strip())

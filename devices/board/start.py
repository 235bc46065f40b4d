"""`edgeship-board` as one file: what `python3 edgeship-board.pyz` runs, see `devices.board_program`.

The file lies in each release. It gets the packages that came in the same bundle, and what concerns releases works
without any package.
"""

from __future__ import annotations

import os
import sys

from . import environment, release_program

FAILED = 3


def main(archive: str) -> int:
    """Runs one command.

    Args:
        archive: The file itself, without links in its path: a switch must not change what is imported.

    Returns:
        The exit code.
    """
    environment.activate_beside(archive)
    if sys.argv[1:2] and sys.argv[1] in release_program.COMMANDS:
        return release_program.main()
    try:
        from .program import main as run_program
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        sys.stderr.write(
            f"edgeship-board: error: {sys.executable} has no numpy: install it with `{sys.executable} -m pip install "
            "numpy`, or install a bundle that brings it (`edgeship package --wheels`)\n"
        )
        return FAILED
    return run_program()


def lasting_path(archive: str) -> str:
    """The path by which the file of whatever release is in use is found: that of the link `current`."""
    release, name = os.path.split(archive)
    releases = os.path.dirname(release)
    lasting = os.path.join(os.path.dirname(releases), "current", name)
    return lasting if os.path.basename(releases) == "releases" and os.path.isfile(lasting) else archive

"""The package `devices.board` as one file: the agent that is sent to boards, and the program that lies in releases."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

import devices.board

PROGRAM = "edgeship-board.pyz"
"""The name of the program in a bundle."""

_AGENT = "import sys\n\nfrom board.launch import main\n\nmain(sys.argv[1:])\n"
_START = """\
import os
import sys

if sys.version_info < (3, 9):
    sys.exit("edgeship-board: error: this is Python %d.%d; expected 3.9 or later" % sys.version_info[:2])

# The file itself, not the link `current` that leads to it, which may lead elsewhere in a moment.
sys.path[0] = os.path.realpath(os.path.dirname(os.path.abspath(__file__)))

from board.start import main

sys.exit(main(sys.path[0]))
"""
_EARLIEST_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_UNIX = 3


@cache
def agent_archive() -> bytes:
    """A zip file that Python can run once it is unpacked, see `devices.board.launch`; the same bytes each time."""
    return _archive(_AGENT, zipfile.ZIP_DEFLATED)


@cache
def board_program() -> bytes:
    """`edgeship-board` as a zip file that Python runs as it is, see `devices.board.start`.

    Nothing in it is compressed, so its bytes depend on the sources alone.
    """
    return _archive(_START, zipfile.ZIP_STORED)


def _archive(main: str, compression: int) -> bytes:
    root = Path(devices.board.__file__).parent
    sources = {"__main__.py": main.encode()}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        sources[f"board/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in sources.items():
            member = zipfile.ZipInfo(name, _EARLIEST_DATE)
            member.create_system, member.external_attr = _UNIX, _MODE
            archive.writestr(member, content, compression)
    return stream.getvalue()

"""Reads the small text files in which the kernel tells of the board; what is not there is empty or None."""

from __future__ import annotations

import glob
import re
from typing import List, Optional


def read_text(path: str) -> str:
    """The content of a file; empty where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def write_text(path: str, text: str) -> None:
    """Writes a value to a file of the kernel.

    Raises:
        OSError: It takes none, or not this one, or not from this user.
    """
    with open(path, "w", encoding="ascii") as stream:
        stream.write(text)


def whole_number(path: str) -> Optional[int]:
    """The number that a file holds, which may be negative; None where it holds none."""
    text = read_text(path).strip()
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


def sorted_paths(pattern: str) -> List[str]:
    """The paths of a pattern, by the numbers in them: zone10 comes after zone9."""
    return sorted(glob.glob(pattern), key=lambda path: [int(part) for part in re.findall(r"\d+", path)])

"""Which artifacts living processes use, so that cleaning a store spares them.

A process notes the keys it takes in a file of its own under `roots/`, which it holds locked (flock). The kernel
drops the lock when the process ends, however it ends, so a file that can be locked by another is a dead process's.
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
import weakref
from pathlib import Path
from typing import IO

_SUFFIX = ".pins"


class Pins:
    """The keys that one opened store uses. They are let go when this object is, or with the process.

    Args:
        directory: Where the file lives; it is made at the first key.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stream: IO[str] | None = None
        self._keys: set[str] = set()

    def add(self, key: str) -> None:
        """Notes a key. A full disk or a file system without locks only loses the protection."""
        if key in self._keys:
            return
        with contextlib.suppress(OSError):
            if self._stream is None:
                self._stream = self._open()
            self._stream.write(f"{key}\n")
            self._stream.flush()
            self._keys.add(key)

    def _open(self) -> IO[str]:
        while True:
            path = self._directory / f"{uuid.uuid4().hex}{_SUFFIX}"
            stream = path.open("x", encoding="utf-8")
            finalizer = weakref.finalize(self, _let_go, stream, path)
            fcntl.flock(stream, fcntl.LOCK_EX)
            if path.exists():
                return stream
            finalizer()  # `pinned_keys` came between the two lines above and took it for a dead process's


def pinned_keys(directory: Path) -> set[str]:
    """Returns the keys that living processes use, and removes the files of dead ones."""
    keys: set[str] = set()
    for path in directory.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                keys.update(stream.read().split())
            else:
                path.unlink(missing_ok=True)
    return keys


def _let_go(stream: IO[str], path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        stream.close()

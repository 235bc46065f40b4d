"""Short texts that stand for the content of a file or a directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import DataError


def file_fingerprint(path: Path) -> str:
    """The SHA-256 of a file: exact, the same on every machine, about 0.1 s for 100 MB.

    Raises:
        DataError: If the file can't be read.
    """
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): check its permissions") from error


def listing_fingerprint(files: Iterable[tuple[str, int, int]]) -> str:
    """A digest over the relative path, the size in bytes and the modification time in ns of every file.

    It reads no file. A file that is replaced by one of the same size and gets its old time back is not
    noticed, and a copy with other times counts as another content.
    """
    digest = hashlib.sha256()
    for name, size_bytes, modified_ns in sorted(files):
        digest.update(f"{name}\0{size_bytes}\0{modified_ns}\n".encode())
    return f"listing:{digest.hexdigest()}"

"""Tar archives, read from front to back and never unpacked to disk.

A compressed archive can't be read at random: one pass lists it, a second one hands out the files.
"""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import zlib
from collections.abc import Container, Iterator
from pathlib import Path

from pipeline.errors import DataError
from pipeline.sources.base import Problem
from pipeline.sources.decode import MAX_FILE_SIZE_BYTES
from pipeline.sources.layout import Listing, is_hidden

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def list_archive(path: Path) -> Listing:
    """Lists an archive.

    Links, devices, absolute paths and paths with `..` are refused.

    Raises:
        DataError: If the archive is damaged or holds a file twice.
    """
    files: dict[str, None] = {}
    directories: dict[str, None] = {}
    refused: list[Problem] = []
    for member in _members(path):
        name = member_name(member.name)
        if not name or any(is_hidden(part) for part in name.split("/")):
            continue
        reason = _refusal(member)
        if reason:
            refused.append(Problem(member.name, reason))
        elif member.isdir():
            directories[name] = None
        elif name in files:
            raise DataError(f"{path} holds {name} twice: pack the archive again from a clean folder")
        else:
            files[name] = None
    return Listing(tuple(files), tuple(directories), tuple(refused))


def read_archive(path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes | Problem]]:
    """Hands out the bytes of the wanted files, in the order of the archive.

    Raises:
        DataError: If the archive is damaged.
    """
    with _tar_errors(path), _open(path) as archive:
        for member in archive:
            name = member_name(member.name)
            if name not in wanted or _refusal(member) or member.isdir():
                continue
            if member.size > MAX_FILE_SIZE_BYTES:
                yield (
                    name,
                    Problem(name, f"{member.size} bytes, more than the limit of {MAX_FILE_SIZE_BYTES}"),
                )
                continue
            file = archive.extractfile(member)
            yield name, file.read() if file else b""


def member_name(name: str) -> str:
    """A member's path without `.` and empty parts, as text that can be printed."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    return "/".join(parts).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _refusal(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link; pack the file itself"
    if not (member.isreg() or member.isdir()):
        return "neither a file nor a folder"
    if member.name.startswith("/"):
        return "an absolute path"
    if ".." in member.name.split("/"):
        return "a path with `..`"
    return ""


def _open(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "r:" if path.name.lower().endswith(".tar") else "r|*")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    with _tar_errors(path), _open(path) as archive:
        yield from archive


@contextlib.contextmanager
def _tar_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise DataError(
            f"{path} can't be read as an archive ({error}): expected an intact .tar, .tar.gz or .tar.xz file"
        ) from error

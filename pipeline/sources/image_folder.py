"""Image files in folders that name their classes, or a tar archive of such folders."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.errors import DataError
from pipeline.sources.archive import ARCHIVE_SUFFIXES, list_archive, member_name, read_archive
from pipeline.sources.base import Problem, Reading, Sample, SourceConfig
from pipeline.sources.decode import MAX_FILE_SIZE_BYTES, decode_image
from pipeline.sources.fingerprints import file_fingerprint, listing_fingerprint
from pipeline.sources.layout import Layout, Listing, Place, arrange, is_hidden

_MAX_DEPTH = 5
"""One more than any layout has, so that images which are too deep are found and a loop of links ends."""


class ImageFolderConfig(SourceConfig):
    """`split/class/image.jpg` or `class/image.jpg`, in a directory or a `.tar`, `.tar.gz`, `.tar.xz`.

    Splits are called `train`, `val`, `valid`, `validation` and `test`; images end in `.jpg`, `.jpeg` or
    `.png`, in any case. The classes are the class folders in sorted order. Hidden files are left out. Links
    are followed in a directory and refused in an archive. See `pipeline.sources.layout` and
    `pipeline.sources.splitting`.
    """

    has_files: ClassVar[bool] = True

    source: Literal["image_folder"]
    path: Annotated[str, Field(min_length=1)]

    def fingerprint(self) -> str:
        """The SHA-256 of an archive; for a directory a digest of names, sizes and modification times."""
        path = _existing(self.path)
        if not path.is_dir():
            return file_fingerprint(path)
        return listing_fingerprint(
            (name, status.st_size, status.st_mtime_ns)
            for name, entry in _walk(path)
            if not entry.is_dir() and (status := _status(entry))
        )

    def read(self) -> Reading:
        """Starts a pass over all samples."""
        path = _existing(self.path)
        if path.is_dir():
            entries = dict(_walk(path))
            listing = Listing(
                files=tuple(name for name, entry in entries.items() if not entry.is_dir()),
                directories=tuple(name for name, entry in entries.items() if entry.is_dir()),
            )
            layout = arrange(listing, root=str(path))
            files = _read_files({name: Path(entries[name]) for name in layout.places})
        else:
            layout = arrange(list_archive(path), root=str(path))
            files = read_archive(path, layout.places)
        return Reading(layout.classes, len(layout.places), _samples(layout, files), layout.ignored)


def _existing(path_text: str) -> Path:
    path = Path(path_text).expanduser()
    if path.is_dir() or (path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)):
        return path
    received = "a file that is no tar archive" if path.exists() else "nothing"
    raise DataError(
        f"{received} at {path}: expected a directory or an archive ({', '.join(ARCHIVE_SUFFIXES)}); correct "
        "`path` in the data section"
    )


def _walk(directory: Path, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(directory) as found:
            entries = [entry for entry in found if not is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"{directory} can't be listed ({error.strerror}): check its permissions") from error
    for entry in entries:
        name = member_name(prefix + entry.name)
        yield name, entry
        if depth < _MAX_DEPTH and entry.is_dir():
            yield from _walk(Path(entry), f"{name}/", depth + 1)


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


def _read_files(paths: dict[str, Path]) -> Iterator[tuple[str, bytes | Problem]]:
    for name in sorted(paths):
        path = paths[name]
        try:
            size_bytes = path.stat().st_size
            if size_bytes > MAX_FILE_SIZE_BYTES:
                yield name, Problem(name, f"{size_bytes} bytes, more than the limit of {MAX_FILE_SIZE_BYTES}")
                continue
            yield name, path.read_bytes()
        except OSError as error:
            yield name, Problem(name, error.strerror or str(error))


def _samples(layout: Layout, files: Iterator[tuple[str, bytes | Problem]]) -> Iterator[Sample | Problem]:
    for name, data in files:
        place: Place = layout.places[name]
        if isinstance(data, Problem):
            yield Problem(place.name, data.reason)
            continue
        yield Sample(
            name=place.name,
            split=place.split,
            label=place.label,
            digest=hashlib.sha256(data).hexdigest(),
            decode=functools.partial(decode_image, data),
            encoded=data,
        )

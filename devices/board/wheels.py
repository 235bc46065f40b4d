"""Wheels unpacked as pip would install them, on a board that has no pip."""

from __future__ import annotations

import os
import shutil
import zipfile
from typing import BinaryIO, Union

from .storage import READ_BYTES, Refused

Archive = Union[str, BinaryIO]
"""Of a zip file the path, or itself, opened."""


def unpack_plain(archive: Archive, target: str) -> None:
    """Unpacks a zip file as it is."""
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            _extract(source, member, os.path.join(target, _checked_name(member.filename, archive)))


def unpack_wheel(archive: Archive, target: str) -> None:
    """Unpacks a wheel: modules into `site-packages`, programs into `bin`, other data where they would be installed.

    The binary distribution format is that of PEP 427.
    """
    site_packages = os.path.join(target, "site-packages")
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            name = _checked_name(member.filename, archive)
            head, _, rest = name.partition("/")
            scheme, _, inner = rest.partition("/")
            place, executable = os.path.join(site_packages, name), False
            if head.endswith(".data") and inner:
                places = {"purelib": site_packages, "platlib": site_packages, "data": target}
                places.update(scripts=os.path.join(target, "bin"), headers=os.path.join(target, "include"))
                if scheme not in places:
                    raise Refused(f"{_called(archive)} is no wheel: it has data for {scheme!r}")
                place, executable = os.path.join(places[scheme], inner), scheme == "scripts"
            _extract(source, member, place, executable=executable)


def _checked_name(name: str, archive: Archive) -> str:
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise Refused(f"{_called(archive)} holds {name!r}, which leads out of its folder")
    return name


def _called(archive: Archive) -> str:
    return os.path.basename(archive) if isinstance(archive, str) else "a wheel"


def _extract(source: zipfile.ZipFile, member: zipfile.ZipInfo, place: str, *, executable: bool = False) -> None:
    if member.is_dir():
        os.makedirs(place, exist_ok=True)
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with source.open(member) as reading, open(place, "wb") as writing:
        shutil.copyfileobj(reading, writing, READ_BYTES)
    if executable or member.external_attr >> 16 & 0o111:
        os.chmod(place, 0o700)


def unpacked_size(archive: Archive) -> int:
    """Bytes of all files of an archive."""
    with zipfile.ZipFile(archive) as source:
        return sum(member.file_size for member in source.infolist())

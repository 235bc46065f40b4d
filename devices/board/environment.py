"""Packages that a bundle brings as wheels: unpacked once for each set of them, beside the releases that use it.

    <root>/.environments/<digest>/site-packages

The digest is that of the wheels, so releases with the same wheels share one. An environment appears by one rename and
goes with the last release that wants it. Nothing here needs a package: it is what brings them.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import site
import sys
import zipfile
from typing import Any, BinaryIO, Iterator, List, Mapping, Set

from .bundle import MANIFEST, Bundle, Member, blocks_of
from .release_errors import BadBundle, NoRoom
from .storage import Refused, free_bytes, sync_directory
from .wheels import unpack_wheel, unpacked_size

DIRECTORY = ".environments"

_LAYOUT = "1"
"""Of `wheels.unpack_wheel`; another one makes other environments."""
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What a manifest raises that is none."""
_RESERVE_BYTES = 4 * 2**20
_MOST_UNPACKED = 8 * 2**30


def packages_of(root: str, manifest: Mapping[str, Any]) -> str:
    """The directory that a release's packages are imported from; empty where its bundle brings none."""
    name = _digest(manifest)
    return os.path.join(root, DIRECTORY, name, "site-packages") if name else ""


def make(root: str, stream: BinaryIO, bundle: Bundle) -> None:
    """Unpacks the wheels of a bundle, where that was not done before; all or nothing.

    Raises:
        BadBundle: A wheel is damaged, or is none.
        NoRoom: They do not fit.
    """
    manifest = bundle.manifest
    if not manifest.get("wheels"):
        return
    target = os.path.join(root, DIRECTORY, _digest(manifest))
    with _held(root):
        if os.path.isdir(target):
            return
        members = [member for member in bundle.members if member.name in manifest["wheels"]]
        for member in members:
            for _ in blocks_of(stream, member, manifest["files"][member.name]):
                pass
        making = os.path.join(root, DIRECTORY, f".making-{os.getpid()}")
        try:
            _check_room(root, [_Part(stream, member) for member in members])
            for member in members:
                unpack_wheel(io.BufferedReader(_Part(stream, member)), making)
            os.makedirs(os.path.join(making, "site-packages"), exist_ok=True)
            os.sync()
            os.rename(making, target)
            sync_directory(os.path.dirname(target))
        except (Refused, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise BadBundle(f"a wheel of the bundle can't be unpacked: {error}; make the bundle anew") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)


def prune(root: str) -> None:
    """Removes environments that no release wants any more, and what an interruption left of one."""
    if not os.path.isdir(os.path.join(root, DIRECTORY)):
        return
    with _held(root):
        wanted = _wanted(root)
        for name in os.listdir(os.path.join(root, DIRECTORY)):
            if name != ".lock" and name not in wanted:
                shutil.rmtree(os.path.join(root, DIRECTORY, name), ignore_errors=True)
        if not wanted:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(root, DIRECTORY, ".lock"))
                os.rmdir(os.path.join(root, DIRECTORY))


def activate(packages: str) -> None:
    """Lets this process import from a directory of packages, before what the system has."""
    if packages and packages not in sys.path and os.path.isdir(packages):
        sys.path.insert(1, packages)
        site.addsitedir(packages)  # reads the .pth files


def activate_beside(program: str) -> None:
    """The same for a program that lies in a release: it gets what came in the same bundle."""
    release = os.path.dirname(program)
    root = os.path.dirname(os.path.dirname(os.path.dirname(release)))
    with contextlib.suppress(*_UNREADABLE), open(os.path.join(release, MANIFEST), encoding="utf-8") as stream:
        activate(packages_of(root, json.load(stream)))


class _Part(io.RawIOBase):
    """A file of a bundle as a file of its own, so that a wheel needs no copy beside what it becomes."""

    def __init__(self, stream: BinaryIO, member: Member) -> None:
        self._stream, self._member, self._offset = stream, member, 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read in any order."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._member.size}[whence]
        self._offset = max(0, begin + offset)
        return self._offset

    def tell(self) -> int:
        """The place it is at."""
        return self._offset

    def readinto(self, buffer: Any) -> int:
        """Reads on."""
        count = max(0, min(len(buffer), self._member.size - self._offset))
        self._stream.seek(self._member.offset + self._offset)
        data = self._stream.read(count)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def _digest(manifest: Mapping[str, Any]) -> str:
    wheels = sorted(manifest.get("wheels") or [])
    if not wheels:
        return ""
    lines = [_LAYOUT, *(f"{manifest['files'][name]}  {name}" for name in wheels)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _check_room(root: str, wheels: List[_Part]) -> None:
    size, free = sum(unpacked_size(io.BufferedReader(wheel)) for wheel in wheels), free_bytes(root)
    if size > _MOST_UNPACKED:
        raise BadBundle(f"the wheels of the bundle would unpack to {size / 2**30:.0f} GiB; allowed are 8")
    if size + _RESERVE_BYTES > free:
        raise NoRoom(
            f"the packages in the bundle take {size / 2**20:.1f} MiB and {_RESERVE_BYTES / 2**20:.0f} MiB must stay "
            f"free, but only {free / 2**20:.1f} MiB are"
        )


def _wanted(root: str) -> Set[str]:
    """Digests of the environments that releases name, also of those that are just being installed."""
    found = set()
    base = glob.escape(root)
    for pattern in (("*", "releases", "*"), ("*", "incoming"), (".dry-run-*",)):
        for path in glob.glob(os.path.join(base, *pattern, MANIFEST)):
            with contextlib.suppress(*_UNREADABLE), open(path, encoding="utf-8") as stream:
                found.add(_digest(json.load(stream)))
    return found - {""}


@contextlib.contextmanager
def _held(root: str) -> Iterator[None]:
    """Holds the environments of a root against other installers; the lock ends with the process."""
    fd = _locked(os.path.join(root, DIRECTORY))
    try:
        yield
    finally:
        os.close(fd)


def _locked(directory: str) -> int:
    """A descriptor that holds the lock of a directory, which whoever held it before may have removed."""
    path = os.path.join(directory, ".lock")
    while True:
        os.makedirs(directory, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return fd
            except FileNotFoundError:
                pass
            except OSError:
                os.close(fd)
                raise
            os.close(fd)

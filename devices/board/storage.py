"""The board's storage: files that become visible when they are whole, and the room for them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os

READ_BYTES = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls storage without room."""
PROGRAM = "edgeship-board"
"""The file of the courier's directory that runs `program` with the agent and the packages that came last."""


class Refused(Exception):
    """A request that can't be carried out."""


class Busy(Exception):
    """Another courier is at work on the same thing."""


class NoSpace(Exception):
    """The storage is full, or would be."""


class WrongDigest(Exception):
    """What arrived is not what was sent; it has been removed."""


class Incoming:
    """A file on its way, held by a lock so that no other courier writes to it.

    Args:
        path: Of what has arrived so far.
        size: Bytes of the whole file.

    Raises:
        Busy: Another courier receives it.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.target = ""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino != os.fstat(self._fd).st_ino:
                raise Busy(path)  # it was finished between the two lines above
        except OSError as error:
            os.close(self._fd)
            raise Busy(path) from error
        except Busy:
            os.close(self._fd)
            raise
        if os.fstat(self._fd).st_size > size:
            os.ftruncate(self._fd, 0)
        self._digest = hashlib.sha256()
        self.offset = 0
        while block := os.read(self._fd, READ_BYTES):
            self._digest.update(block)
            self.offset += len(block)

    def write(self, data: bytes) -> None:
        """Appends."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._digest.update(data)
        self.offset += len(data)

    def publish(self, sha256: str) -> None:
        """Compares the digest and moves the file to its place.

        Raises:
            WrongDigest: It differs.
        """
        if self._digest.hexdigest() != sha256:
            self.discard()
            raise WrongDigest(f"{os.path.basename(self.target)} arrived with SHA-256 {self._digest.hexdigest()}")
        os.fsync(self._fd)
        os.makedirs(os.path.dirname(self.target), exist_ok=True)
        os.replace(self.path, self.target)
        sync_directory(os.path.dirname(self.target))
        os.close(self._fd)

    def discard(self) -> None:
        """Removes what has arrived."""
        os.unlink(self.path)
        os.close(self._fd)


def free_bytes(path: str) -> int:
    """Bytes that this user may still write."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def sync_directory(path: str) -> None:
    """Makes a rename inside it last."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

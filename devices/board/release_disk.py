"""The operations on files that an installation is made of, one by one, so that a test can cut between any two."""

from __future__ import annotations

import errno
import os
import stat
from typing import Iterable

from .release_errors import Refusal
from .storage import sync_directory

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


class Disk:
    """Each method is one operation, or a sequence of its own operations; `record` sees each before it is done."""

    def record(self, operation: str, *arguments: object) -> None:
        """A test notes what is about to be done; here it is nothing."""

    def mkdir(self, path: str) -> None:
        """Makes a directory."""
        self.record("mkdir", path)
        os.mkdir(path, 0o755)

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Makes a file, whose content lasts when this returns; its name lasts after `sync_directory`."""
        self.record("create", path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            for block in blocks:
                self.record("append", path, block)
                view = memoryview(block)
                while view:
                    view = view[os.write(fd, view) :]
            self.record("sync", path)
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: str, target: str) -> None:
        """Moves; replaces a file or a link, but no directory with something in it."""
        self.record("rename", source, target)
        os.rename(source, target)

    def symlink(self, to: str, path: str) -> None:
        """Makes a link.

        Raises:
            Refusal: There are none on this storage.
        """
        self.record("symlink", to, path)
        try:
            os.symlink(to, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise Refusal(
                f"{os.path.dirname(path)} lies on a storage without symbolic links ({error.strerror}), as FAT and "
                "Android's shared storage are, and releases are switched by one: choose another place with --root"
            ) from error

    def unlink(self, path: str) -> None:
        """Removes a file or a link."""
        self.record("unlink", path)
        os.unlink(path)

    def remove(self, path: str) -> None:
        """Removes whatever is there, if anything is; links are not followed."""
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            self.unlink(path)
            return
        for name in sorted(os.listdir(path)):
            self.remove(os.path.join(path, name))
        self.record("rmdir", path)
        os.rmdir(path)

    def sync_directory(self, path: str) -> None:
        """Makes the names in a directory last."""
        self.record("sync_directory", path)
        sync_directory(path)


def replace_file(path: str, content: bytes) -> None:
    """Makes a file, or replaces it by one rename."""
    disk = Disk()
    disk.remove(path + ".new")
    disk.write(path + ".new", [content])
    disk.rename(path + ".new", path)
    disk.sync_directory(os.path.dirname(path))

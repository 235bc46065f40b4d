"""Operating-system errors about space, permission and address, turned into `StoreError`."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StoreError

_NO_SPACE = ("No space left on device", "Disk quota exceeded")


@contextlib.contextmanager
def store_errors(address: Path | str) -> Iterator[None]:
    """Turns operating-system errors about space, permission and address into `StoreError`."""
    try:
        yield
    except (TimeoutError, BrokenPipeError):  # a lock that is held; a reader of our output who left
        raise
    except OSError as error:
        raise store_error(error, address) from error


def store_error(error: OSError, address: Path | str) -> StoreError:
    """Returns the `StoreError` that says what an operating-system error means for the store."""
    where = error.filename or address
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreError(
            f"No space left on the device while writing {where}. Nothing was published. Free some space "
            f"(`edgeship store gc` removes what no run uses) or choose another store with --store."
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return StoreError(
            f"No permission to write {where} ({error.strerror}). The store at {address} must be writable: "
            f"mend its permissions or choose another one with --store or EDGESHIP_STORE."
        )
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return StoreError(
            f"{where} is a file, but the store at {address} needs a directory there. Choose another store."
        )
    return StoreError(f"The store at {address} can't be used: {error}.")


def store_trouble(error: BaseException, directory: Path) -> StoreError | None:
    """Returns the `StoreError` behind an error of a stage that wrote into a directory, None where it has another cause.

    Native writers (HDF5, SavedModel) report a full disk as an error of their own, told by its text.
    """
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
            return store_error(error, directory)
        elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(directory)
        if error.errno in {errno.EACCES, errno.EPERM} and not elsewhere:
            return store_error(error, directory)
    elif any(text in str(error) for text in _NO_SPACE):
        return store_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)), directory)
    return None

"""Sets the governor of the cores, and sees to it that the old one comes back, whoever is killed meanwhile.

Before the change a note is written: the old governors, and which start of the board they belong to. Whoever made the
change holds a lock on the note for as long as the process lives. An agent that starts and finds a note that nobody
holds puts the governors back in place of the one that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

from .errors import AgentError, BadInput
from .hardware import CPUS
from .kernel import read_text, sorted_paths, write_text

_NOTE = "governors.json"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

Old = List[Tuple[str, str]]
"""The file and the old governor of each core."""


def set_governor(governor: str, root: str = "", *, before: Optional[Callable[[Old], None]] = None) -> Old:
    """Sets the governor of all cores.

    Args:
        governor: Its name.
        root: Of the file system; tests put written trees there.
        before: Takes what will be returned, before anything is changed.

    Returns:
        The file and the old governor of each, for `restore_governors`.

    Raises:
        BadInput: There is none to set, or it is not one of those that the kernel offers.
        AgentError: The right is missing.
    """
    files = _files(root)
    if not files:
        raise BadInput(
            f"the governor can't be set to '{governor}': this kernel offers none ({CPUS}/cpu0/cpufreq is missing, as "
            "in virtual machines); measure without --governor"
        )
    offered = read_text(os.path.join(os.path.dirname(files[0]), "scaling_available_governors")).split()
    if offered and governor not in offered:
        raise BadInput(f"the governor can't be set to '{governor}'; this kernel offers: {', '.join(offered)}")
    old = [(path, read_text(path).strip()) for path in files]
    if before is not None:
        before(old)
    done: Old = []
    try:
        for path, name in old:
            write_text(path, governor)
            done.append((path, name))
    except OSError as error:
        restore_governors(done)
        raise AgentError(
            f"the governor can't be set to '{governor}': {path}: {error.strerror or error}. Only root may: set it by "
            f"hand (echo {governor} | sudo tee {CPUS}/cpu*/cpufreq/scaling_governor), or measure without --governor"
        ) from error
    return old


def restore_governors(old: Old) -> None:
    """Puts the governors back that `set_governor` has replaced.

    Raises:
        AgentError: One can't be put back.
    """
    failed = []
    for path, governor in old:
        try:
            write_text(path, governor)
        except OSError as error:
            failed.append(f"{path} to '{governor}' ({error.strerror or error})")
    if failed:
        raise AgentError(f"governors could not be put back; set them by hand: {', '.join(failed)}")


class GovernorKeeper:
    """The governor of a board while one process measures; all methods may be called from any thread.

    Args:
        directory: Of the note; made when it is needed.
        root: Of the file system.
    """

    def __init__(self, directory: str, root: str = "") -> None:
        self._directory, self._root = directory, root
        self._mutex = threading.RLock()  # a signal may come in the middle, and its handler restores
        self._old: Old = []
        self._note: Optional[int] = None

    def set(self, governor: str) -> None:
        """Sets it, with a note for those who come after us.

        Raises:
            BadInput: See `set_governor`.
            AgentError: See `set_governor`; or another process has set it, or the note can't be written.
        """
        with self._mutex:
            self._restore()
            try:
                set_governor(governor, self._root, before=lambda old: self._take(governor, old))
            except AgentError:
                self._old = []
                self._drop()
                raise

    def restore(self) -> None:
        """Puts the old ones back; nothing to do where none was set.

        Raises:
            AgentError: One can't be put back.
        """
        with self._mutex:
            self._restore()

    def mend(self) -> str:
        """Puts back what a process has left that was killed; a sentence about it, empty where there is nothing.

        A core whose governor is another one by now than the one that was set is left alone.
        """
        with self._mutex:
            try:
                self._note = _lock(self._path, create=False)
            except OSError:  # there is none, somebody holds it, or it is another user's
                return ""
            try:
                note = _parse(os.pread(self._note, 1 << 20, 0))
                return "" if note is None or note["boot_id"] != self._boot_id() else self._mend(note)
            finally:
                if self._note is not None:
                    self._drop()

    def _restore(self) -> None:
        old, self._old = self._old, []
        try:
            restore_governors(old)
        finally:
            self._drop()

    def _mend(self, note: Dict[str, Any]) -> str:
        known = _files(self._root)
        left = [
            (path, old) for path, old in note["old"] if path in known and old != note["set"] == read_text(path).strip()
        ]
        if not left:
            return ""
        was = f"a measurement that was cut off had set the governor '{note['set']}'"
        try:
            restore_governors(left)
        except AgentError as error:
            if self._note is not None:  # for whoever may
                os.close(self._note)
                self._note = None
            return f"{was}: {error}"
        return f"{was}; it is '{left[0][1]}' again, as before"

    @property
    def _path(self) -> str:
        return os.path.join(self._directory, _NOTE)

    def _take(self, governor: str, old: Old) -> None:
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            self._note = _lock(self._path, create=True)
            text = json.dumps({"boot_id": self._boot_id(), "set": governor, "old": old})
            os.ftruncate(self._note, 0)
            os.pwrite(self._note, text.encode(), 0)
            self._old = old
        except BlockingIOError as error:
            raise AgentError(
                "another process of Edgeship has set the governor of this device and will put it back at its end; "
                "wait for that"
            ) from error
        except OSError as error:
            raise AgentError(
                f"the governor is not set, because the note of the old one can't be written: {self._path}: "
                f"{error.strerror or error}"
            ) from error

    def _drop(self) -> None:
        """Removes the note where we hold it: emptied first, for whoever has opened it already."""
        note, self._note = self._note, None
        if note is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(note, 0)
                os.unlink(self._path)
            os.close(note)

    def _boot_id(self) -> str:
        return read_text(self._root + _BOOT_ID).strip()


def _files(root: str) -> List[str]:
    return sorted_paths(f"{root}{CPUS}/cpu[0-9]*/cpufreq/scaling_governor")


def _lock(path: str, *, create: bool) -> int:
    """The open note, locked.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It is not there, or not ours.
    """
    while True:
        note = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(note).st_nlink:
                return note
        except OSError:
            os.close(note)
            raise
        os.close(note)  # it was removed between the two lines above


def _parse(data: bytes) -> Optional[Dict[str, Any]]:
    """A note; None where its writer was killed before it was whole, and so before anything was changed."""
    try:
        note = json.loads(data)
        return {"boot_id": str(note["boot_id"]), "set": str(note["set"]),
                "old": [(str(path), str(old)) for path, old in note["old"]]}  # fmt: skip
    except (ValueError, LookupError, TypeError):
        return None

"""Releases of models on a board: each a directory named by its digest, with links that say which one is in use.

    <root>/<name>/releases/<digest>/    the files of a release and `release.json`, which states their digests
    <root>/<name>/current               link to the release in use
    <root>/<name>/previous              link to the one before
    <root>/<name>/state.json            what is being done, and what was: who, when, what, why it failed
    <root>/<name>/incoming/, discarded/ what an interrupted installation left; the next one removes it

A release appears under `releases/` by one rename, `current` moves by one rename. The links say what is in use, the
state file says what they are about to become. So whatever kills an installation, `current` names a whole release,
and the next one that looks finishes what was begun. Where a service is watched after the switch, the release before is
used again unless the state says that the watch was passed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional

from .bundle import MANIFEST, digest_of, kept_files, parse_manifest
from .release_disk import Disk
from .release_errors import BadBundle, Refusal
from .storage import READ_BYTES, sync_directory

STATE = "state.json"
_NUM_HISTORY = 100
_VERDICT = ("proven", "failed")

Restart = Callable[[Optional[str]], str]
"""Restarts the service for the release in use, None where there is none; returns what went wrong, or nothing."""


class Home:
    """The releases of one name; make one while `hold_home` holds them.

    Args:
        path: `<root>/<name>`.
        disk: Does what is to be done.
        lock_fd: Holds them, with every copy of it in another process.
    """

    def __init__(self, path: str, disk: Disk, lock_fd: int = -1) -> None:
        self.path, self.disk, self.lock_fd = path, disk, lock_fd
        self.root, self.name = os.path.split(path)

    def inside(self, *names: str) -> str:
        """A path in it."""
        return os.path.join(self.path, *names)

    @property
    def current(self) -> Optional[str]:
        """Digest of the release in use."""
        return linked(self.inside("current"))

    @property
    def previous(self) -> Optional[str]:
        """Digest of the release before it."""
        return linked(self.inside("previous"))

    def release(self, digest: str) -> str:
        """Directory of a release."""
        return self.inside("releases", digest)

    def switch(self, link: str, digest: str) -> None:
        """Points a link at a release by one rename."""
        temporary = self.inside(f".{link}.new")
        self.disk.remove(temporary)
        self.disk.symlink(os.path.join("releases", digest), temporary)
        self.disk.rename(temporary, self.inside(link))
        self.disk.sync_directory(self.path)

    def begin(self, task: Dict[str, Any]) -> None:
        """Notes what is about to be done, with `digest` and `from`."""
        self._write_state({**read_state(self.path), "running": task})

    def end(self, **outcome: Any) -> None:
        """Puts what was begun into the history, with its outcome."""
        state = read_state(self.path)
        entry = {**_without(state["running"] or {}, _VERDICT), **outcome}
        self._write_state({"running": None, "history": [*state["history"], entry][-_NUM_HISTORY:]})

    def prove(self) -> None:
        """Notes that the watch was passed: from now on the release stays, whatever happens."""
        self.begin({**(read_state(self.path)["running"] or {}), "proven": True})

    def recover(self, restart: Restart = lambda _: "") -> Optional[Dict[str, Any]]:
        """Finishes, or gives up, what an interruption left half done.

        A release whose watch was interrupted is not proven: the one before is used again. Going back stays done.

        Args:
            restart: Of the service, where what it uses may have changed.

        Returns:
            The entry of the history; None where nothing was left.
        """
        for name in ("incoming", "discarded", ".current.new", ".previous.new", f".{STATE}.new"):
            self.disk.remove(self.inside(name))
        task = read_state(self.path)["running"]
        if task is None:
            return None
        outcome: Dict[str, Any]
        failed, watched = task.get("failed"), task.get("watched") and not task.get("proven")
        if failed:
            return self.go_back(task, step=failed["step"], reason=failed["reason"], restart=restart)
        if not (task.get("switching") and self.current == task.get("digest")):
            outcome = {"result": "interrupted", "reason": "it was interrupted; the release in use was not changed"}
        elif watched and task.get("action") != "rollback":
            reason = "the watch of the service was interrupted, so nobody knows whether the service was well"
            return self.go_back(task, step="watch", reason=reason, restart=restart)
        else:
            problem = restart(self.current) if watched else ""
            self.point_previous_at(task.get("from"))
            outcome = {"result": "done", "reason": "interrupted after the switch and finished later"}
            if problem:
                outcome = {"result": "unhealthy", "step": "restart", "reason": problem}
        self.end(**outcome)
        return {**_without(task, _VERDICT), **outcome}

    def go_back(self, task: Dict[str, Any], *, step: str, reason: str, restart: Restart) -> Dict[str, Any]:
        """Uses the release again that was in use before a switch, or none where there was none.

        Args:
            task: What was begun, with `digest` and `from`.
            step: At which it failed.
            reason: Why.
            restart: Of the service.

        Returns:
            The entry of the history, whose `reason` says what is in use now.

        Raises:
            OSError: The link can't be changed.
        """
        digest, before = task.get("digest"), task.get("from")
        with contextlib.suppress(OSError):  # what counts is the link
            self.begin({**_without(task, _VERDICT), "failed": {"step": step, "reason": reason}})
        if self.current == digest and before is None:
            self.disk.unlink(self.inside("current"))
            self.disk.sync_directory(self.path)
        elif self.current == digest and before is not None and before != digest and is_whole(self.release(before)):
            try:
                self.switch("current", before)
            except OSError:
                if self.current != before:
                    raise
        problem = restart(self.current)
        outcome = {"result": "rolled back", "step": step}
        if self.current is None:
            told = "it was the first one, so none is in use now"
        elif self.current != digest:
            told = f"the release before, {self.current}, is in use again"
            told += f", but the service is not up with it: {problem}" if problem else ""
        else:
            outcome["result"] = "unhealthy"
            told = "there is no whole release to go back to, so it is in use still"
        outcome["reason"] = f"{reason}; {told}"[:2000]
        with contextlib.suppress(OSError):  # it is done; the state file lets the next one note it
            self.end(**outcome)
        return {**_without(task, _VERDICT), **outcome}

    def point_previous_at(self, digest: Optional[str]) -> None:
        """Says which release was in use before."""
        if digest is not None and digest not in (self.current, self.previous) and os.path.isdir(self.release(digest)):
            self.switch("previous", digest)

    def publish(self, incoming: str, digest: str) -> None:
        """Makes what has arrived, whole and synced, a release."""
        if not os.path.isdir(self.inside("releases")):
            self.disk.mkdir(self.inside("releases"))
            self.disk.sync_directory(self.path)
        self.discard(digest)
        self.disk.rename(incoming, self.release(digest))
        self.disk.sync_directory(self.inside("releases"))

    def discard(self, digest: str) -> None:
        """Removes a release, which is none any more at once."""
        if os.path.lexists(self.release(digest)):
            self.disk.remove(self.inside("discarded"))
            self.disk.rename(self.release(digest), self.inside("discarded"))
            self.disk.remove(self.inside("discarded"))

    def prune(self, keep: int) -> List[str]:
        """Removes the oldest releases beyond a number, never the one in use or the one before it."""
        used = {self.current, self.previous}
        age = {name: os.lstat(self.release(name)).st_mtime_ns for name in list_releases(self.path)}
        spare = sorted((name for name in age if name not in used), key=lambda name: (age[name], name))
        removed = spare[: max(0, len(age) - max(keep, 1))]
        for name in removed:
            self.discard(name)
        return removed

    def _write_state(self, state: Dict[str, Any]) -> None:
        temporary = self.inside(f".{STATE}.new")
        self.disk.remove(temporary)
        self.disk.write(temporary, [json.dumps(state, indent=1, sort_keys=True).encode() + b"\n"])
        self.disk.rename(temporary, self.inside(STATE))
        self.disk.sync_directory(self.path)


@contextlib.contextmanager
def hold_home(root: str, name: str, disk: Disk, *, wait: bool = True) -> Iterator[Home]:
    """Holds the releases of one name against everybody else; the lock ends with the process.

    Raises:
        BlockingIOError: Somebody else holds them, and one is not to wait.
    """
    path = os.path.join(root, name)
    if not os.path.isdir(path):
        os.makedirs(path, exist_ok=True)
        sync_directory(root)
    fd = os.open(os.path.join(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield Home(path, disk, fd)
    finally:
        os.close(fd)


def linked(link: str) -> Optional[str]:
    """The release that a link names."""
    return os.path.basename(os.readlink(link)) if os.path.islink(link) else None


def list_releases(home: str) -> List[str]:
    """Digests of all releases that are kept, sorted."""
    try:
        return sorted(os.listdir(os.path.join(home, "releases")))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_state(home: str) -> Dict[str, Any]:
    """`running` (None or what was begun) and `history`; a state that can't be read is as good as none."""
    empty: Dict[str, Any] = {"running": None, "history": []}
    try:
        with open(os.path.join(home, STATE), encoding="utf-8") as stream:
            state = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return empty
    if not isinstance(state, dict) or not isinstance(state.get("history"), list):
        return empty
    running = state.get("running")
    return {"running": running if isinstance(running, dict) else None, "history": state["history"]}


def read_release(directory: str) -> tuple[Dict[str, Any], bytes]:
    """Manifest of a release and its bytes, after the digests of all its files were compared.

    Raises:
        Refusal: It is damaged.
    """
    try:
        with open(os.path.join(directory, MANIFEST), "rb") as stream:
            text = stream.read()
        manifest = parse_manifest(text)
        for name, expected in kept_files(manifest).items():
            actual = _digest(os.path.join(directory, name))
            if actual != expected:
                raise Refusal(
                    f"{name} of the release in {directory} has SHA-256 {actual[:12]}…, not {expected[:12]}… as its "
                    "manifest states; deploy again"
                )
    except (OSError, BadBundle) as error:
        raise Refusal(f"{directory} holds no whole release: {error}; deploy again") from error
    return manifest, text


def is_whole(directory: str) -> bool:
    """Whether a release is all there, and is the one that its name says."""
    try:
        manifest, text = read_release(directory)
    except Refusal:
        return False
    # Before there were bundles, the digest was that of the manifest without its white space.
    compact = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return os.path.basename(directory) in (digest_of(text), digest_of(compact))


def status(root: str) -> List[Dict[str, Any]]:
    """What is installed, sorted by name; writes nothing.

    Returns:
        For each name: `name`, `current` (manifest of the release in use; None where there is none, or it is damaged),
        `current_digest`, `previous_digest`, `releases` (all digests), `held` (whether somebody is at work on it),
        `running` and `history`.
    """
    rows = []
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    for name in names:
        home = os.path.join(root, name)
        state = read_state(home)
        if not os.path.isdir(os.path.join(home, "releases")) and not state["history"]:
            continue
        current = linked(os.path.join(home, "current"))
        directory = os.path.join(home, "releases", str(current))
        rows.append(
            {
                "name": name,
                "current": _manifest_of(directory) if current and is_whole(directory) else None,
                "current_digest": current,
                "previous_digest": linked(os.path.join(home, "previous")),
                "releases": list_releases(home),
                "held": _is_held(home),
                **state,
            }
        )
    return rows


def now_text(seconds: Optional[float] = None) -> str:
    """A time, UTC, ISO 8601; None is now."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _is_held(home: str) -> bool:
    try:
        fd = os.open(os.path.join(home, ".lock"), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _without(task: Mapping[str, Any], keys: Iterable[str]) -> Dict[str, Any]:
    return {key: value for key, value in task.items() if key not in keys}


def _manifest_of(directory: str) -> Mapping[str, Any]:
    return read_release(directory)[0]


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()

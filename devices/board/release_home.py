"""Releases of models on a board: each a directory named by its digest, with links that say which one is in use.

    <root>/<name>/releases/<digest>/    the files of a release and `release.json`, which states their digests
    <root>/<name>/current               link to the release in use
    <root>/<name>/previous              link to the one before
    <root>/<name>/state.json            what is being done, and what was: who, when, what, why it failed
    <root>/<name>/incoming/, discarded/ what an interrupted installation left; the next one removes it

A release appears under `releases/` by one rename, `current` moves by one rename. The links say what is in use, the
state file says what they are about to become. So whatever kills an installation, `current` names a whole release,
and the next one that looks finishes what was begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from typing import Any, Dict, Iterator, List, Mapping, Optional

from .bundle import MANIFEST, digest_of, kept_files, parse_manifest
from .release_disk import Disk
from .release_errors import BadBundle, Refusal
from .storage import READ_BYTES, sync_directory

STATE = "state.json"
_NUM_HISTORY = 100


class Home:
    """The releases of one name; make one while `hold_home` holds them.

    Args:
        path: `<root>/<name>`.
        disk: Does what is to be done.
    """

    def __init__(self, path: str, disk: Disk) -> None:
        self.path, self.disk = path, disk

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
        entry = {**(state["running"] or {}), **outcome}
        self._write_state({"running": None, "history": [*state["history"], entry][-_NUM_HISTORY:]})

    def recover(self) -> None:
        """Finishes, or gives up, what an interruption left half done."""
        for name in ("incoming", "discarded", ".current.new", ".previous.new", f".{STATE}.new"):
            self.disk.remove(self.inside(name))
        task = read_state(self.path)["running"]
        if task is None:
            return
        if task.get("switching") and self.current == task.get("digest"):
            self.point_previous_at(task.get("from"))
            self.end(result="done", reason="interrupted after the switch and finished later")
        else:
            self.end(result="interrupted", reason="it was interrupted; the release in use was not changed")

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
def hold_home(root: str, name: str, disk: Disk) -> Iterator[Home]:
    """Holds the releases of one name against everybody else; the lock ends with the process."""
    path = os.path.join(root, name)
    if not os.path.isdir(path):
        os.makedirs(path, exist_ok=True)
        sync_directory(root)
    fd = os.open(os.path.join(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield Home(path, disk)
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
        `current_digest`, `previous_digest`, `releases` (all digests), `running` and `history`.
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
                **state,
            }
        )
    return rows


def now_text(seconds: Optional[float] = None) -> str:
    """A time, UTC, ISO 8601; None is now."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _manifest_of(directory: str) -> Mapping[str, Any]:
    return read_release(directory)[0]


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()

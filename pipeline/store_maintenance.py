"""Listing and cleaning a store.

A directory of links (`runs/<recipe>/`) registers the keys it uses. `collect` removes what no living directory of
links uses; it takes each key's lock first and asks who else uses it (`pipeline.store_pins`), so it never removes
what another process is at work on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import ArtifactStore, write_durably
from pipeline.manifest import Artifact
from pipeline.store_errors import store_errors
from pipeline.store_pins import pinned_keys

_UNGUARDED_AGE_S = 86400.0
"""Scratch directories of exports and temporary files have no key and so no lock; in a day any export is done."""
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Leftover:
    """Something `collect` removes: what it is, where it lies, how many bytes it takes."""

    kind: str
    path: Path
    size_bytes: int


def register_root(store: ArtifactStore, directory: Path, keys: Iterable[str]) -> None:
    """Says that a directory of links uses these keys."""
    name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:32]
    text = json.dumps({"directory": str(directory.resolve()), "keys": sorted(set(keys))}, indent=2)
    with store_errors(store.directory):
        write_durably(store.directory / "roots" / f"{name}.json", text)


def used_keys(store: ArtifactStore, *, forget: bool = False) -> set[str]:
    """Returns the keys that a living process uses, or a directory of links which still exists.

    Args:
        store: The store.
        forget: Whether to forget the directories which are gone.
    """
    used = pinned_keys(store.directory / "roots")
    for path in sorted((store.directory / "roots").glob("*.json")):
        try:
            root = json.loads(path.read_text(encoding="utf-8"))
            alive = Path(root["directory"]).is_dir()
            keys = {str(key) for key in root["keys"]}
        except (OSError, ValueError, KeyError, TypeError):
            alive, keys = False, set()
        if alive:
            used |= keys
        elif forget:
            path.unlink(missing_ok=True)
    return used


def size_of(directory: Path) -> int:
    """Returns the bytes of all files below a directory; what goes away meanwhile does not count."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total


def artifact_size(artifact: Artifact) -> int:
    """Returns the bytes of an artifact's files as its manifest states them."""
    return sum(record.size_bytes for record in artifact.manifest.files)


def collect(store: ArtifactStore, *, older_than_s: float, dry_run: bool) -> list[Leftover]:
    """Removes artifacts that no run uses, interrupted work and quarantine, all older than the given age.

    Returns:
        What was removed, or would be.
    """
    used = used_keys(store, forget=not dry_run)
    found = [
        Leftover(f"unused {directory.parent.name}", directory, size_of(directory))
        for directory in _older(store.directory / "artifacts", "*/*", older_than_s)
        if directory.name not in used
    ]
    for folder, kind in (("work", "interrupted work"), ("quarantine", "quarantine")):
        for directory in _older(store.directory / folder, "*", older_than_s):
            guarded = _KEY.match(directory.name) is not None
            if guarded or _age_s(directory) >= _UNGUARDED_AGE_S:
                found.append(Leftover(kind, directory, size_of(directory)))
    if dry_run:
        return found
    removed = [leftover for leftover in found if _remove(store, leftover)]
    for folder in ("checked", "roots"):
        for path in _older(store.directory / folder, "*.tmp", _UNGUARDED_AGE_S):
            path.unlink(missing_ok=True)
    return removed


def _older(directory: Path, pattern: str, age_s: float) -> list[Path]:
    return [path for path in sorted(directory.glob(pattern)) if _age_s(path) >= age_s]


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return -1.0  # another process took it away meanwhile


def _remove(store: ArtifactStore, leftover: Leftover) -> bool:
    name = leftover.path.name
    key = name[:32] if _KEY.match(name) else name
    lock = f"{key}.fetch" if name == f"{key}.fetch" else key
    with (
        contextlib.suppress(TimeoutError, FileNotFoundError),
        store.lock(lock, timeout_s=0),
    ):
        if leftover.path.parent.parent.name == "artifacts":
            if key in used_keys(store):  # since the first look
                return False
            for note in (store.directory / "checked").glob(f"{key}.*"):
                note.unlink(missing_ok=True)
        with store_errors(store.directory):
            _delete(store, leftover.path, key)
        return True
    return False


def _delete(store: ArtifactStore, directory: Path, key: str) -> None:
    doomed = store.directory / "work" / f"{key}.removed-{time.time_ns()}"
    try:
        directory.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)

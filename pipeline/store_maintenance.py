"""Listing and cleaning a store.

A directory of links (`runs/<recipe>/`) registers the keys it uses. `collect` removes what no living directory of
links uses; it takes each key's lock first, so it never removes what another process is at work on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import Artifact, ArtifactStore, store_errors, write_durably


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


def used_keys(store: ArtifactStore) -> set[str]:
    """Returns the keys that a directory of links uses which still exists, and forgets those which are gone."""
    used: set[str] = set()
    for path in sorted((store.directory / "roots").glob("*.json")):
        try:
            root = json.loads(path.read_text(encoding="utf-8"))
            alive = Path(root["directory"]).is_dir()
            keys = {str(key) for key in root["keys"]}
        except (OSError, ValueError, KeyError, TypeError):
            alive, keys = False, set()
        if alive:
            used |= keys
        else:
            path.unlink(missing_ok=True)
    return used


def size_of(directory: Path) -> int:
    """Returns the bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def artifact_size(artifact: Artifact) -> int:
    """Returns the bytes of an artifact's files as its manifest states them."""
    return sum(record.size_bytes for record in artifact.manifest.files)


def collect(store: ArtifactStore, *, older_than_s: float, dry_run: bool) -> list[Leftover]:
    """Removes artifacts that no run uses, interrupted work and quarantine, all older than the given age.

    Returns:
        What was removed, or would be.
    """
    used = used_keys(store)
    now = time.time()
    found: list[tuple[Leftover, str]] = []
    for directory in sorted((store.directory / "artifacts").glob("*/*")):
        if directory.name not in used and now - directory.stat().st_mtime >= older_than_s:
            kind = f"unused {directory.parent.name}"
            found.append((Leftover(kind, directory, size_of(directory)), directory.name))
    for folder, kind in (("work", "interrupted work"), ("quarantine", "quarantine")):
        for directory in sorted((store.directory / folder).glob("*")):
            if now - directory.stat().st_mtime >= older_than_s:
                found.append((Leftover(kind, directory, size_of(directory)), directory.name))
    if not dry_run:
        found = [(leftover, key) for leftover, key in found if _remove(store, leftover, key)]
    return [leftover for leftover, _ in found]


def _remove(store: ArtifactStore, leftover: Leftover, key: str) -> bool:
    key = key.split(".")[0].split("-")[0]
    with contextlib.suppress(TimeoutError), store_errors(store.directory), store.lock(key, timeout_s=0):
        doomed = store.directory / "work" / f"{key}.removed-{time.time_ns()}"
        leftover.path.rename(doomed)
        (store.directory / "checked" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(doomed, ignore_errors=True)
        return True
    return False

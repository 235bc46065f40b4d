"""Releases of models on a device: each a directory named by its digest, with links that say which one is in use.

    <root>/<name>/releases/<digest>/    the files of a release and `release.json`, which states their digests
    <root>/<name>/current               link to the release in use
    <root>/<name>/previous              link to the one before
    <root>/<name>/incoming/             what an interrupted installation left; the next one removes it

A release appears under `releases/` by one rename, after its digests were compared and its self-test passed.
`current` moves by one rename. Whatever kills an installation, `current` names a whole release that passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from devices.errors import DeviceError

RELEASE_FILE = "release.json"
DIGEST_LENGTH = 32

SelfTest = Callable[[Path, Mapping[str, Any]], None]
"""Takes a release's directory and its manifest; raises `DeviceError` where the release does not do what it should."""


@dataclass(frozen=True)
class ReleaseStatus:
    """What is installed under one name.

    Attributes:
        name: Of the model.
        current: Manifest of the release in use, None where there is none.
        current_digest: Its digest.
        previous_digest: Digest of the release before it.
        releases: Digests of all releases that are kept.
    """

    name: str
    current: dict[str, Any] | None
    current_digest: str | None
    previous_digest: str | None
    releases: tuple[str, ...]


def release_digest(manifest: Mapping[str, Any]) -> str:
    """Returns the digest that names a release: of its whole manifest, which states the digest of every file."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def install(root: Path, manifest: Mapping[str, Any], files: Mapping[str, Path], *, self_test: SelfTest) -> bool:
    """Installs a release and makes it the one in use.

    Args:
        root: Directory of all releases of a device.
        manifest: `name`, `files` (SHA-256 by name) and whatever else the release says of itself.
        files: Where each file comes from, by name.
        self_test: Run on the copied files before anything is switched.

    Returns:
        Whether anything changed: the release in use installed again changes nothing.

    Raises:
        DeviceError: A digest differs, the self-test failed, or the directory can't be written. The release that
            was in use before is in use still.
    """
    digest = release_digest(manifest)
    with _exclusive(root, str(manifest["name"])) as home:
        target = home / "releases" / digest
        if _linked(home / "current") == digest and _is_whole(target):
            return False
        if not _is_whole(target):
            incoming = home / "incoming"
            shutil.rmtree(incoming, ignore_errors=True)
            incoming.mkdir()
            for name, source in files.items():
                _copy_durably(source, incoming / name)
            _write_durably(incoming / RELEASE_FILE, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
            _check_digests(incoming, manifest)
            self_test(incoming, manifest)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            incoming.rename(target)
            _sync(target.parent)
        else:
            self_test(target, manifest)
        before = _linked(home / "current")
        if before is not None and before != digest:
            _switch(home / "previous", before)
        _switch(home / "current", digest)
    return True


def rollback(root: Path, name: str, *, self_test: SelfTest) -> str:
    """Makes the previous release the one in use again, and the one in use the previous one.

    Returns:
        The digest of the release now in use.

    Raises:
        DeviceError: There is no previous release, it is damaged, or its self-test failed; nothing changed then.
    """
    if not (root / name / "releases").is_dir():
        known = ", ".join(row.name for row in status(root)) or "nothing"
        raise DeviceError(f"{name} was never deployed to {root}; there is: {known}.")
    with _exclusive(root, name) as home:
        current, previous = _linked(home / "current"), _linked(home / "previous")
        if previous is None or not _is_whole(home / "releases" / previous):
            raise DeviceError(f"{name} has no previous release in {home} to go back to. Deploy one instead.")
        directory = home / "releases" / previous
        manifest = _read(directory)
        _check_digests(directory, manifest)
        self_test(directory, manifest)
        _switch(home / "current", previous)
        if current is not None:
            _switch(home / "previous", current)
    return previous


def status(root: Path) -> list[ReleaseStatus]:
    """Returns what is installed, sorted by name."""
    found = []
    for home in sorted(path for path in root.glob("*") if (path / "releases").is_dir()):
        current = _linked(home / "current")
        directory = home / "releases" / str(current)
        found.append(
            ReleaseStatus(
                name=home.name,
                current=_read(directory) if current and _is_whole(directory) else None,
                current_digest=current,
                previous_digest=_linked(home / "previous"),
                releases=tuple(sorted(path.name for path in (home / "releases").iterdir())),
            )
        )
    return found


@contextmanager
def _exclusive(root: Path, name: str) -> Iterator[Path]:
    """Holds the releases of one name; turns operating-system errors into `DeviceError`."""
    home = root / name
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            yield home
    except OSError as error:
        raise DeviceError(
            f"The releases in {home} can't be written: {error}. Free some space or mend its permissions; the "
            f"release that was in use is in use still."
        ) from error


def _linked(link: Path) -> str | None:
    return link.readlink().name if link.is_symlink() else None


def _switch(link: Path, digest: str) -> None:
    """Points a link at a release by one rename."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path("releases") / digest)
    temporary.replace(link)
    _sync(link.parent)


def _is_whole(directory: Path) -> bool:
    try:
        _check_digests(directory, _read(directory))
    except DeviceError:
        return False
    return True


def _read(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / RELEASE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeviceError(f"{directory} holds no release: {error}.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DeviceError(f"{directory / RELEASE_FILE} is no manifest of a release.")
    return manifest


def _check_digests(directory: Path, manifest: Mapping[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        try:
            with (directory / name).open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DeviceError(f"{name} is missing from the release in {directory}: {error}.") from error
        if actual != expected:
            raise DeviceError(
                f"{name} of the release in {directory} has SHA-256 {actual[:12]}…, not {expected[:12]}… as its "
                f"manifest states. Deploy again."
            )


def _copy_durably(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing)
        writing.flush()
        os.fsync(writing.fileno())


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

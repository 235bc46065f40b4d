"""The artifact store: immutable directories, each named by the key of what shaped it.

Layout of a store:

    artifacts/<stage>/<key>/    published artifacts: the files of the stage and `manifest.json`
    work/<key>/                 where a stage writes before it is published; kept when a run is killed
    locks/<key>.lock            held while a key is being made or removed
    checked/<key>.json          sizes and times of files whose digests were right when last read in full
    quarantine/<key>-<time>/    artifacts found changed, kept for a look
    roots/<digest>.json         which directories of links use which keys (`pipeline.store_maintenance`)
    roots/<id>.pins             which keys a living process uses (`pipeline.store_pins`)

A directory under `artifacts/` appears by one rename, so a reader never sees half of one, and a process killed at
any point leaves at most something under `work/`, which the next run of the same key takes over or throws away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import CorruptArtifactError, StoreError
from pipeline.manifest import MANIFEST, Artifact, FileRecord, Manifest, check_manifest, read_manifest, sha256_of
from pipeline.stages.base import RESUME
from pipeline.store_errors import store_error, store_errors
from pipeline.store_pins import Pins

_EXISTS = frozenset({errno.EEXIST, errno.ENOTEMPTY})


class ArtifactStore:
    """A store in a local directory.

    Args:
        directory: Where it lives; it is made when first used.

    Raises:
        StoreError: The directory can't be made or written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        with store_errors(self.directory):
            for name in ("artifacts", "work", "locks", "checked", "roots"):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
        if not os.access(self.directory / "artifacts", os.W_OK | os.X_OK):
            raise store_error(
                PermissionError(errno.EACCES, "Permission denied", str(self.directory / "artifacts")),
                self.directory,
            )
        self._pins = Pins(self.directory / "roots")

    def path_of(self, stage: str, key: str) -> Path:
        """Returns where the artifact lies once it is published."""
        return self.directory / "artifacts" / stage / key

    def get(self, stage: str, key: str) -> Artifact | None:
        """Returns a published artifact, None where there is none.

        Every file is compared with the manifest: by size and time where its digest was right at that size and
        time before, else by its digest.

        Raises:
            CorruptArtifactError: A file was changed behind the store's back. The artifact is moved into
                quarantine first, so that the next run makes it anew.
        """
        directory = self.path_of(stage, key)
        identity = _identity(directory)
        if identity is None:
            return None
        self._pins.add(key)
        try:
            artifact = Artifact(directory, read_manifest(directory))
            check_manifest(artifact.manifest, stage=stage, key=key)
            problem = self._problem(artifact, trust_times=True)
        except CorruptArtifactError as error:
            problem = error.message
        if not problem:
            return artifact
        if _identity(directory) != identity:  # removed by another process, and perhaps published anew, meanwhile
            return self.get(stage, key)
        raise self._quarantine(directory, problem)

    def verify(self, artifact: Artifact) -> None:
        """Reads every file in full and compares digests.

        Raises:
            CorruptArtifactError: A file differs; the artifact is in quarantine.
        """
        problem = self._problem(artifact, trust_times=False)
        if problem:
            raise self._quarantine(artifact.directory, problem)

    @contextlib.contextmanager
    def lock(self, key: str, *, timeout_s: float = -1) -> Iterator[None]:
        """Holds a key, so that only one process makes or removes its artifact. It ends with the process.

        Raises:
            TimeoutError: Another process still held it after `timeout_s`; a negative value waits for ever.
        """
        lock = FileLock(self.directory / "locks" / f"{key}.lock")
        try:
            with store_errors(self.directory):
                lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise TimeoutError(f"Another process holds {key}.") from error
        try:
            yield
        finally:
            lock.release()

    def workspace(self, key: str, *, resumable: bool) -> Path:
        """Returns the directory a stage writes into; call it while holding the key's lock.

        What a killed run left there is removed; of a resumable stage, what it needs to go on (`RESUME`) is kept.
        """
        work = self.directory / "work" / key
        spent = work.with_name(f"{work.name}{RESUME}")
        with store_errors(self.directory):
            work.mkdir(parents=True, exist_ok=True)
            if resumable and spent.exists() and not (work / RESUME).exists():
                spent.rename(work / RESUME)  # the kill came between the two renames of `publish`
            for path in work.iterdir():
                if not (resumable and path.name == RESUME):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            shutil.rmtree(spent, ignore_errors=True)
        return work

    def publish(self, work: Path, manifest: Manifest) -> Artifact:
        """Publishes a workspace by one rename and returns the artifact.

        Raises:
            StoreError: No space or no permission; nothing is published then.
        """
        self._pins.add(manifest.key)
        with store_errors(self.directory):
            files = _seal(work)
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            manifest = replace(manifest, files=files, created=created)
            manifest = replace(manifest, digest=manifest.computed_digest())
            write_durably(work / MANIFEST, manifest.to_json())
            (work / MANIFEST).chmod(0o444)
            _sync_directory(work)
            target = self.path_of(manifest.stage, manifest.key)
            target.parent.mkdir(parents=True, exist_ok=True)
            spent = work.with_name(f"{work.name}{RESUME}")
            if (work / RESUME).exists():
                (work / RESUME).rename(spent)
            try:
                work.rename(target)
            except OSError as error:
                there = self.get(manifest.stage, manifest.key) if error.errno in _EXISTS else None
                if there is None:
                    raise
                shutil.rmtree(work, ignore_errors=True)  # another process brought it from a shared store meanwhile
                return there
            _sync_directory(target.parent)
            shutil.rmtree(spent, ignore_errors=True)
            artifact = Artifact(target, manifest)
            self._remember(artifact)
        return artifact

    def artifacts(self) -> Iterator[Artifact]:
        """Yields every readable artifact, sorted by stage and key, without reading its files."""
        for directory in sorted((self.directory / "artifacts").glob("*/*")):
            with contextlib.suppress(CorruptArtifactError):
                yield Artifact(directory, read_manifest(directory))

    def _problem(self, artifact: Artifact, *, trust_times: bool) -> str:
        """Returns how the files differ from the manifest; nothing where they don't."""
        known = self._recall(artifact.manifest.key) if trust_times else {}
        differing: list[str] = []
        read_in_full = False
        for record in artifact.manifest.files:
            path = artifact.directory / record.path
            try:
                status = path.stat()
            except OSError:
                differing.append(f"{record.path} is missing")
                continue
            if status.st_size != record.size_bytes:
                differing.append(f"{record.path} has {status.st_size} bytes, not {record.size_bytes}")
            elif known.get(record.path) != [status.st_size, status.st_mtime_ns, status.st_ino]:
                read_in_full = True
                digest = sha256_of(path)
                if digest != record.sha256:
                    differing.append(f"{record.path} has SHA-256 {digest[:12]}…, not {record.sha256[:12]}…")
        if read_in_full and not differing:
            self._remember(artifact)
        return "; ".join(differing[:3])

    def _quarantine(self, directory: Path, reason: str) -> CorruptArtifactError:
        key = directory.name
        shelter = self.directory / "quarantine" / f"{key}-{time.time_ns()}"
        with store_errors(self.directory):
            shelter.parent.mkdir(exist_ok=True)
            (self.directory / "checked" / f"{key}.json").unlink(missing_ok=True)
            try:
                directory.rename(shelter)
            except FileNotFoundError:
                return CorruptArtifactError(
                    f"The artifact {directory.parent.name}/{key} was removed while it was in use. "
                    f"Run the same command again to make it anew."
                )
            os.utime(shelter)  # its age counts from now
        return CorruptArtifactError(
            f"The artifact {directory.parent.name}/{key} was changed after it was published: {reason}. "
            f"Expected the files that its manifest lists. It was moved to {shelter}; "
            f"run the same command again to make it anew."
        )

    def _remember(self, artifact: Artifact) -> None:
        """Notes that the digests are right; without the note, as on a full disk, the files are read once more."""
        path = self.directory / "checked" / f"{artifact.manifest.key}.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            try:
                seen = {}
                for record in artifact.manifest.files:
                    status = (artifact.directory / record.path).stat()
                    seen[record.path] = [status.st_size, status.st_mtime_ns, status.st_ino]
                temporary.write_text(json.dumps(seen), encoding="utf-8")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _recall(self, key: str) -> Mapping[str, list[int]]:
        try:
            seen = json.loads((self.directory / "checked" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return seen if isinstance(seen, dict) else {}


def write_durably(path: Path, text: str) -> None:
    """Writes a text file so that a power cut leaves the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _identity(directory: Path) -> tuple[int, int] | None:
    """Returns what tells a directory from another one of the same name; None where there is none."""
    if not directory.is_dir():
        return None
    try:
        status = directory.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _seal(work: Path) -> list[FileRecord]:
    """Makes all files read-only and durable and returns their records, sorted by path."""
    records = []
    for path in sorted(work.rglob("*")):
        if path.relative_to(work).parts[0] == RESUME:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StoreError(f"A stage left {path}, which is neither a file nor a directory.")
        if path.is_dir():
            _sync_directory(path)
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.chmod(0o444)
        records.append(
            FileRecord(path.relative_to(work).as_posix(), sha256_of(path), path.stat().st_size),
        )
    return [record for record in records if record.path != MANIFEST]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

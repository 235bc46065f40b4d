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
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import CorruptArtifactError, StoreError
from pipeline.keys import canonical_json
from pipeline.store_pins import Pins

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_EXISTS = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_NO_SPACE = ("No space left on device", "Disk quota exceeded")
RESUME = ".resume"
"""Directory of a workspace that holds what a resumable stage needs after a kill; it is not published."""


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: relative path, SHA-256 and size in bytes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` of an artifact holds.

    Attributes:
        stage: Name of the stage that made it.
        key: Its key (`pipeline.keys.artifact_key`).
        config: The stage's config.
        inputs: Keys of the artifacts it was made from, by role.
        code: Digest of the code that made it.
        tools: Versions of the distributions that made it.
        fingerprint: Digest of what was read from outside the store.
        files: Its files, sorted by path; the manifest itself is not among them.
        metrics: What the stage measured.
        wall_time_s: How long the stage took.
        created: When it was published, UTC, ISO 8601.
        digest: SHA-256 of all of the above, so that a changed manifest is told from the published one.
    """

    stage: str
    key: str
    config: dict[str, Any]
    inputs: dict[str, str]
    code: str
    tools: dict[str, str]
    fingerprint: str
    metrics: dict[str, Any]
    wall_time_s: float
    created: str = ""
    files: list[FileRecord] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION
    digest: str = ""

    def computed_digest(self) -> str:
        """Returns what `digest` must be."""
        fields = {name: value for name, value in asdict(self).items() if name != "digest"}
        return hashlib.sha256(canonical_json(json.loads(json.dumps(fields))).encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    directory: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Returns the path of one of its files."""
        return self.directory / name

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 by relative path."""
        return {record.path: record.sha256 for record in self.manifest.files}


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of an artifact.

    Raises:
        CorruptArtifactError: It is missing, is no JSON, or was written by another schema version.
    """
    path = directory / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.get("schema_version")
        if version != SCHEMA_VERSION:
            raise CorruptArtifactError(f"{path} has schema version {version}; this Edgeship reads {SCHEMA_VERSION}.")
        files = [FileRecord(**record) for record in fields.pop("files")]
        return Manifest(**fields, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptArtifactError(f"{path} is no manifest of an artifact: {error}.") from error


def check_manifest(manifest: Manifest, *, stage: str, key: str) -> None:
    """Checks that a manifest is the published one of an artifact.

    Raises:
        CorruptArtifactError: It belongs to another artifact, or was changed.
    """
    if (manifest.stage, manifest.key) != (stage, key):
        raise CorruptArtifactError(f"The manifest of {stage}/{key} names {manifest.stage}/{manifest.key}.")
    if manifest.digest != manifest.computed_digest():
        raise CorruptArtifactError(f"The manifest of {stage}/{key} differs from its own digest.")


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

"""A store that several machines share: a local store in front of any fsspec address.

An artifact is looked up here first, then there. What is made here is copied there, files first and the manifest
last, so that an artifact without a manifest is no artifact. Object stores have no rename; this needs none:

    <stage>/<key>/manifest.json
    <stage>/<key>/<SHA-256>        each file under its digest

Two machines that make the same artifact at once may write different bytes (times, for one). As each file has a name
of its own, whichever manifest comes last finds its files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import ArtifactStore
from pipeline.errors import CorruptArtifactError, StoreError
from pipeline.manifest import MANIFEST, Artifact, Manifest, check_manifest, read_manifest, sha256_of
from pipeline.store_errors import store_error


class SharedArtifactStore(ArtifactStore):
    """A local store whose artifacts also live at an fsspec address.

    Args:
        directory: The local store.
        address: Any fsspec address, such as `s3://bucket/edgeship` or `file:///srv/edgeship`.

    Raises:
        StoreError: The address has no protocol that fsspec knows here, or can't be reached.
    """

    def __init__(self, directory: Path, address: str) -> None:
        super().__init__(directory)
        import fsspec

        self.address = address
        try:
            self._filesystem, self._root = fsspec.core.url_to_fs(address)
            self._filesystem.makedirs(self._root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise StoreError(
                f"The shared store {address} can't be used: {error}. Expected an address that fsspec knows, "
                f"such as s3://bucket/path or file:///path, that can be written."
            ) from error

    def get(self, stage: str, key: str) -> Artifact | None:
        """Returns the artifact from here, else brings it from the shared address, else returns None."""
        found = super().get(stage, key)
        if found is not None:
            self._share(found)
            return found
        with self._remote_errors():
            if not self._filesystem.exists(self._remote(stage, key, MANIFEST)):
                return None
        with self.lock(f"{key}.fetch"):
            return super().get(stage, key) or self._bring(stage, key)

    def publish(self, work: Path, manifest: Manifest) -> Artifact:
        """Publishes here, then copies to the shared address."""
        artifact = super().publish(work, manifest)
        self._share(artifact)
        return artifact

    def _share(self, artifact: Artifact) -> None:
        """Copies an artifact to the shared address, unless it is there or this store once put it there."""
        stage, key = artifact.manifest.stage, artifact.manifest.key
        note = self._note_of(key)
        if note.exists():
            return
        with self._remote_errors():
            if not self._filesystem.exists(self._remote(stage, key, MANIFEST)):
                self._filesystem.makedirs(self._remote(stage, key), exist_ok=True)
                for record in artifact.manifest.files:
                    self._filesystem.put_file(str(artifact.file(record.path)), self._remote(stage, key, record.sha256))
                self._filesystem.pipe_file(self._remote(stage, key, MANIFEST), artifact.manifest.to_json().encode())
        with contextlib.suppress(OSError):
            note.touch()

    def _note_of(self, key: str) -> Path:
        address = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        return self.directory / "checked" / f"{key}.{address}.shared"

    def _bring(self, stage: str, key: str) -> Artifact:
        work = self.workspace(f"{key}.fetch", resumable=False)
        with self._remote_errors():
            self._filesystem.get_file(self._remote(stage, key, MANIFEST), str(work / MANIFEST))
            try:
                manifest = read_manifest(work)
                check_manifest(manifest, stage=stage, key=key)
                for record in manifest.files:
                    path = (work / record.path).resolve()
                    if work.resolve() not in path.parents or path == work.resolve() / MANIFEST:
                        raise CorruptArtifactError(f"The manifest of {stage}/{key} names the file {record.path}.")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._filesystem.get_file(self._remote(stage, key, record.sha256), str(path))
                    if sha256_of(path) != record.sha256:
                        raise CorruptArtifactError(
                            f"{record.path} of {stage}/{key} differs from the digest in its manifest."
                        )
            except (CorruptArtifactError, FileNotFoundError) as error:
                shutil.rmtree(work)
                raise CorruptArtifactError(
                    f"The shared store {self.address} holds a damaged artifact. {error} "
                    f"Remove {self._remote(stage, key)} there and run again to make it anew."
                ) from error
        artifact = super().publish(work, manifest)
        with contextlib.suppress(OSError):
            self._note_of(key).touch()
        return artifact

    def _remote(self, stage: str, key: str, name: str = "") -> str:
        return f"{self._root.rstrip('/')}/{stage}/{key}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _remote_errors(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise store_error(error, self.directory) from error
            raise self._failure(error) from error
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StoreError:
        return StoreError(
            f"The shared store {self.address} failed: {type(error).__name__}: {error}. "
            f"What was made so far is in {self.directory}; run again when it can be reached."
        )


def open_store(directory: Path, shared: str | None = None) -> ArtifactStore:
    """Opens the store in a directory, in front of a shared address where one is given."""
    return SharedArtifactStore(directory, shared) if shared else ArtifactStore(directory)

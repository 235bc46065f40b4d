"""A store that several machines share: a local store in front of any fsspec address.

An artifact is looked up here first, then there. What is made here is copied there, files first and the manifest
last, so that an artifact without a manifest is no artifact. Object stores have no rename; this needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts import MANIFEST, Artifact, ArtifactStore, Manifest, read_manifest, sha256_of
from pipeline.errors import CorruptArtifactError, StoreError


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
            return found
        with self._remote_errors():
            if not self._filesystem.exists(self._remote(stage, key, MANIFEST)):
                return None
        with self.lock(f"{key}.fetch"):
            return super().get(stage, key) or self._bring(stage, key)

    def publish(self, work: Path, manifest: Manifest) -> Artifact:
        """Publishes here, then copies to the shared address."""
        artifact = super().publish(work, manifest)
        with self._remote_errors():
            stage, key = artifact.manifest.stage, artifact.manifest.key
            for record in artifact.manifest.files:
                remote = self._remote(stage, key, record.path)
                self._filesystem.makedirs(remote.rpartition("/")[0], exist_ok=True)
                self._filesystem.put_file(str(artifact.file(record.path)), remote)
            text = json.dumps(dataclasses.asdict(artifact.manifest), indent=2, sort_keys=True) + "\n"
            self._filesystem.makedirs(self._remote(stage, key, ""), exist_ok=True)
            self._filesystem.pipe_file(self._remote(stage, key, MANIFEST), text.encode())
        return artifact

    def _bring(self, stage: str, key: str) -> Artifact:
        work = self.workspace(f"{key}.fetch", resumable=False)
        with self._remote_errors():
            self._filesystem.get_file(self._remote(stage, key, MANIFEST), str(work / MANIFEST))
            manifest = read_manifest(work)
            for record in manifest.files:
                path = (work / record.path).resolve()
                if not path.is_relative_to(work.resolve()):
                    raise StoreError(f"{self.address} holds a manifest that names {record.path}: refused.")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._filesystem.get_file(self._remote(stage, key, record.path), str(path))
                if sha256_of(path) != record.sha256:
                    shutil.rmtree(work)
                    raise CorruptArtifactError(
                        f"{record.path} of {stage}/{key} at {self.address} differs from the digest in its "
                        f"manifest. Remove {self._remote(stage, key, '')} there and run again to make it anew."
                    )
        return super().publish(work, manifest)

    def _remote(self, stage: str, key: str, name: str) -> str:
        return f"{self._root.rstrip('/')}/{stage}/{key}/{name}"

    @contextlib.contextmanager
    def _remote_errors(self) -> Any:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(
                f"The shared store {self.address} failed: {type(error).__name__}: {error}. "
                f"What was made so far is in {self.directory}; run again when it can be reached."
            ) from error


def open_store(directory: Path, shared: str | None = None) -> ArtifactStore:
    """Opens the store in a directory, in front of a shared address where one is given."""
    return SharedArtifactStore(directory, shared) if shared else ArtifactStore(directory)

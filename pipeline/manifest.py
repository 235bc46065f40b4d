"""What an artifact says of itself: `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import CorruptArtifactError
from pipeline.keys import canonical_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


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

"""Small bundles with a model for the fake runtime, whose golden values are right."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from devices.board.bundle import SCHEMA_VERSION, Bundle, read_bundle, write_bundle
from devices.board_program import board_program
from devices.bundle_signing import sign
from devices.compiled import CompiledManifest

SHAPE, CLASSES, SAMPLES = (4, 4, 3), 3, 4


@functools.cache
def release_files(seed: int) -> dict[str, bytes]:
    """The files of a release: a linear layer, golden samples and what it makes of them."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(int(np.prod(SHAPE)), CLASSES)).astype(np.float32)
    bias = random.normal(size=CLASSES).astype(np.float32)
    images = random.integers(0, 256, (SAMPLES, *SHAPE), np.uint8)
    logits = images.reshape(SAMPLES, -1).astype(np.float32) / np.float32(255) @ weights + bias
    model = io.BytesIO()
    np.savez(model, weights=weights, bias=bias, shape=np.array(SHAPE))
    return {
        "golden_input_0.npy": _npy(images),
        "golden_output_0.npy": _npy(logits.astype(np.float32)),
        "labels.txt": b"a\nb\nc\n",
        "model.fake": model.getvalue(),
    }


def manifest_of(files: Mapping[str, bytes], /, **changes: Any) -> dict[str, Any]:
    """What `release.json` says of these files."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": "net",
        "target": "fake",
        "precision": "float32",
        "model": "model.fake",
        "classes": ["a", "b", "c"],
        "golden_tolerance": 0.02,
        "inputs": [{"name": "image", "file": "golden_input_0.npy", "transform": None}],
        "outputs": [{"name": "logits", "file": "golden_output_0.npy"}],
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **changes,
    }


WHEEL = "tiny_packages-1.0-py3-none-any.whl"
PARTS: dict[str, Any] = {
    "program": "edgeship-board.pyz",
    "wheels": [WHEEL],
    "compiled": {"form": "fake", "model": "compiled.fake", "record": "compiled.json"},
}
"""What the manifest says of `part_files`."""


@functools.cache
def part_files(seed: int) -> dict[str, bytes]:
    """A program, a wheel and a compiled form for a release of `release_files`."""
    return {
        "edgeship-board.pyz": board_program(),
        WHEEL: wheel_bytes({"tiny_packages.py": f"SEED = {seed}\n"}),
        **compiled_files(release_files(seed)["model.fake"]),
    }


def small_parts(seed: int) -> dict[str, bytes]:
    """The same with a program of a few bytes, for tests that make many bundles."""
    return {**part_files(seed), "edgeship-board.pyz": b"program %d" % seed}


def compiled_files(model: bytes, compiled: bytes | None = None, **changes: Any) -> dict[str, bytes]:
    """The compiled form of a model for the fake runtime, which is the same file again, and `compiled.json`."""
    content = model if compiled is None else compiled
    manifest = CompiledManifest.model_validate(
        {
            "form": "fake",
            "runtime": "fake",
            "package": "fake",
            "version": "1",
            "device": "local",
            "made_on": "device",
            "processor": {"architecture": None, "cpu_features": None},
            "source": [_record("model.fake", model)],
            "files": [_record("compiled.fake", content)],
            "seconds": 0.5,
            **changes,
        }
    )
    return {"compiled.fake": content, "compiled.json": manifest.model_dump_json().encode()}


def wheel_bytes(modules: Mapping[str, str], name: str = "tiny_packages", version: str = "1.0") -> bytes:
    """A wheel of these modules."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for inner, text in {
            **modules,
            f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{name}-{version}.dist-info/RECORD": "",
        }.items():
            archive.writestr(zipfile.ZipInfo(inner), text)
    return stream.getvalue()


def make_bundle(
    path: Path,
    seed: int = 1,
    *,
    key: Path | None = None,
    files: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """Writes a bundle; `files` are added to those of `release_files`, `changes` to the manifest."""
    content = {**release_files(seed), **(files or {})}
    text = json.dumps(manifest_of(content, **changes), indent=2, sort_keys=True).encode()
    directory = path.parent / f".{path.name}.files"
    directory.mkdir(exist_ok=True, parents=True)
    for name, data in content.items():
        (directory / name).write_bytes(data)
    with path.open("wb") as stream:
        signature = None if key is None else sign(text, key)
        write_bundle(stream, text, signature, {name: str(directory / name) for name in content})
    return path


def opened(path: Path) -> Bundle:
    """What a bundle's head says."""
    with path.open("rb") as stream:
        return read_bundle(stream)


def make_key(path: Path) -> Path:
    """A key without a passphrase; the public half lies beside it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path


def signer_line(key: Path, name: str = "builder@example.org", options: str = "") -> str:
    """A line of an allowed-signers file."""
    public = key.with_name(f"{key.name}.pub").read_text().strip()
    return f"{name} {options} {public}\n" if options else f"{name} {public}\n"


def trust(root: Path, *, signers: str | None = None, revoked: Path | None = None, **settings: Any) -> Path:
    """Writes a board's settings; returns the root."""
    directory = root / ".board"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "settings.json").write_text(json.dumps(settings))
    if signers is not None:
        (directory / "allowed_signers").write_text(signers)
    if revoked is not None:
        (directory / "revoked_keys").write_bytes(revoked.read_bytes())
    return root


def _record(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()

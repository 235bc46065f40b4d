"""Releases for tests, installed as `deploy` installs them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from devices.board.bundle import digest_of, write_bundle
from devices.board.release_install import Installer
from tests.bundles import trust

NAME = "net"


def fake_model(path: Path, *, seed: int = 0, size: int = 8, classes: int = 4, behaviour: str = "ok") -> Path:
    """Writes a linear model of the model contract; see `devices.board.runners.fake`."""
    random = np.random.default_rng(seed)
    weights = random.normal(0, 0.2, (size * size * 3, classes)).astype(np.float32)
    bias = random.normal(0, 0.5, classes).astype(np.float32)
    shape = np.array([size, size, 3])
    with path.open("wb") as stream:
        np.savez(stream, weights=weights, bias=bias, shape=shape, behaviour=np.array(behaviour))
    return path


def image_manifest(
    model: Path, *, target: str = "fake", size: int = 8, classes: int = 4, **more: Any
) -> dict[str, Any]:
    """The manifest of a classifier of images."""
    return {
        "schema_version": 2,
        "name": NAME,
        "target": target,
        "precision": "float32",
        "model": model.name,
        "classes": [f"class {index}" for index in range(classes)],
        "preprocess": {"size": [size, size], "resize": "stretch"},
        "signature": {
            "source": "fake",
            "model": model.name,
            "inputs": [{"name": "image", "dtype": "uint8", "shape": [1, size, size, 3], "transform": None}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, classes], "kind": "logits"}],
            "metric": "top1",
        },
        "files": {model.name: hashlib.sha256(model.read_bytes()).hexdigest()},
        **more,
    }


def put(root: Path, manifest: dict[str, Any], *files: Path) -> str:
    """Installs a release whose self-test passes, and returns its digest."""
    trust(root, allow_unsigned=True, keep=100)
    with tempfile.TemporaryDirectory() as scratch:
        golden, bundle = Path(scratch) / "golden.npy", Path(scratch) / "bundle"
        np.save(golden, np.zeros(1, np.float32))
        paths = {path.name: str(path) for path in (*files, golden)}
        manifest = {
            "golden_tolerance": 0.02,
            "inputs": [{"name": "image", "file": golden.name, "transform": None}],
            "outputs": [{"name": "logits", "file": golden.name}],
            **manifest,
            "files": {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()},
        }
        text = json.dumps(manifest, sort_keys=True).encode()
        with bundle.open("wb") as stream:
            write_bundle(stream, text, None, paths)
        Installer(str(root), who="tester", self_test=lambda *_: {}).install(str(bundle))
    return digest_of(text)


def go_back(root: Path) -> None:
    """Makes the release before the one in use again."""
    Installer(str(root), who="tester", self_test=lambda *_: {}).rollback(NAME)


def put_fake(root: Path, scratch: Path, *, seed: int = 0, size: int = 8, **more: Any) -> str:
    """Installs a fake model; another seed is another release."""
    behaviour = more.pop("behaviour", "ok")
    model = fake_model(scratch / f"model-{seed}.fake", seed=seed, size=size, behaviour=behaviour)
    return put(root, image_manifest(model, size=size, **more), model)

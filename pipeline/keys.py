"""What an artifact's key is made of: config, inputs, code, tools.

The key function is pinned by a golden test: changing it makes every published artifact unreachable.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KEY_LENGTH = 32
OWN_PACKAGES = ("pipeline", "models", "devices")


def canonical_json(value: Any) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, no NaN, no characters above ASCII.

    Raises:
        ValueError: The value holds NaN or an infinity.
        TypeError: The value holds something JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def artifact_key(
    stage: str,
    config: Mapping[str, Any],
    *,
    inputs: Mapping[str, str],
    code: str,
    tools: Mapping[str, str],
    fingerprint: str = "",
) -> str:
    """Returns the key of an artifact: 128 bits of SHA-256 over everything that shapes its files.

    Args:
        stage: Name of the stage.
        config: The stage's config as JSON values; seeds are part of it.
        inputs: Key of each artifact it reads, by role.
        code: Digest of the source code the stage runs (`code_digest`).
        tools: Version of each distribution the stage runs (`tool_versions`).
        fingerprint: Digest of what the stage reads from outside the store, such as an image folder.
    """
    identity = {
        "schema": 1,
        "stage": stage,
        "config": dict(config),
        "inputs": dict(inputs),
        "code": code,
        "tools": dict(tools),
        "fingerprint": fingerprint,
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:KEY_LENGTH]


def tool_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Returns the installed version of each distribution; `"absent"` for one that is not installed."""
    return {name: _version(name) for name in sorted(set(distributions))}


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def code_digest(*roots: str) -> str:
    """Returns the SHA-256 over the source of modules and of all modules of ours that they import, directly or not.

    Imports are read from the source, at any depth of it, so nothing gets imported here.

    Args:
        roots: Names of modules; `devices.board.*` stands for every module below a package.
    """
    digest = hashlib.sha256()
    for name in sorted(modules_of(*roots)):
        source = _source(name)
        digest.update(name.encode() + b"\0" + (source.read_bytes() if source else b"") + b"\0")
    return digest.hexdigest()


def modules_of(*roots: str) -> set[str]:
    """Returns the names of the modules that `code_digest` covers."""
    seen: set[str] = set()
    waiting = [name for root in roots for name in _expand(root)]
    while waiting:
        name = waiting.pop()
        if name not in seen and _source(name) is not None:
            seen.add(name)
            waiting.extend(_own_imports(name))
            waiting.append(name.rpartition(".")[0] or name)  # importing a module runs its package first
    return seen


def _expand(root: str) -> list[str]:
    if not root.endswith(".*"):
        return [root]
    package = _source(root[:-2])
    if package is None:
        raise ValueError(f"There is no package {root[:-2]}.")
    below = (path.relative_to(package.parent).with_suffix("") for path in package.parent.rglob("*.py"))
    return [".".join((root[:-2], *(part for part in path.parts if part != "__init__"))) for path in below]


@functools.cache
def _source(module: str) -> Path | None:
    """Returns the file of one of our modules without importing it; None where there is no such module."""
    parts = module.split(".")
    spec = importlib.util.find_spec(parts[0])
    if spec is None or not spec.submodule_search_locations:
        return None
    base = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts[1:])
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _own_imports(module: str) -> frozenset[str]:
    source = _source(module)
    if source is None:
        return frozenset()
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                parent = ".".join([*base, parent]) if parent else ".".join(base)
            found.add(parent)
            found.update(f"{parent}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if name.split(".")[0] in OWN_PACKAGES)

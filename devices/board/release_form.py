"""Which form of a release's model is run: the compiled one where it fits this board, else the model itself.

A compiled form is bound to the version of the runtime that made it and to the processor it was made on (see
`docs/decisions/0016-compiling.md`). It only saves time, so nothing that is wrong with it is a reason not to install or
not to run a release: the model itself is run then, and the reason is told.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from .bundle_parts import FORM_NOTE
from .companions import companion_of
from .facts import installed_runtimes, parse_cpu_features
from .kernel import read_text
from .release_disk import Disk

PLAIN = "plain"


class Form(NamedTuple):
    """What is loaded.

    Attributes:
        name: `plain`, or the compiled form, such as `xnnpack_cache`.
        path: Of the file.
        sha256: Of that file.
        companion_sha256: Of the file that must lie beside it.
        reason: Why the compiled form is not taken; empty where it is, or where there is none.
    """

    name: str
    path: str
    sha256: str
    companion_sha256: Optional[str]
    reason: str = ""


def plain_form(directory: str, manifest: Mapping[str, Any], reason: str = "") -> Form:
    """The model itself."""
    return _form(PLAIN, directory, manifest, manifest["model"], reason)


def choose_form(directory: str, manifest: Mapping[str, Any]) -> Form:
    """The form that this board can run, by what its runtime and its processor are.

    Args:
        directory: Of the release.
        manifest: Of the release.
    """
    compiled = manifest.get("compiled")
    if not compiled:
        return plain_form(directory, manifest)
    name, record = compiled["form"], compiled["record"]
    try:
        reason = _noted(directory)
        if not reason:
            made = _read(os.path.join(directory, record))
            reason = "; ".join(compiled_misfits(made, own_facts())) or _damage(directory, manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{record} can't be used: {type(error).__name__}: {error}"
    if reason:
        return plain_form(directory, manifest, f"the form {name} is not used: {reason}")
    return _form(name, directory, manifest, compiled["model"])


def compiled_misfits(made: Mapping[str, Any], facts: Mapping[str, Any]) -> List[str]:
    """Why a device can't run a compiled file, as parts of a sentence; none where it can.

    Args:
        made: What `compiled.json` says, see `devices.compiled.CompiledManifest`.
        facts: The agent's answer to `facts`, or as much of it as `own_facts` gives.
    """
    processor, package, version = made["processor"], made["package"], made["version"]
    found: List[str] = []
    architecture = processor["architecture"]
    if made["form"] == "vela":
        kind = processor.get("accelerator") or "Ethos-U"
        return [f"it runs on an {kind} alone, through a delegate that no wheel of a runtime has"]
    if architecture is not None and facts.get("architecture") != architecture:
        found.append(f"it was made for {architecture}, and the device is {facts.get('architecture')}")
    elif processor["cpu_features"] is not None:
        found += _feature_misfits(processor["cpu_features"], facts.get("cpu_features") or ())
    installed = (facts.get("runtimes") or {}).get(package)
    if installed is None:
        found.append(f"it was made by {package} {version}, which the device does not have")
    elif installed["version"] != version:
        found.append(f"it was made by {package} {version}, and the device has {package} {installed['version']}")
    return found


def own_facts() -> Dict[str, Any]:
    """What compiled files are bound to, of this board."""
    return {
        "architecture": platform.machine(),
        "cpu_features": parse_cpu_features(read_text("/proc/cpuinfo")),
        "runtimes": {**installed_runtimes(), "fake": {"runtime": "fake", "version": "1"}},
    }


def note_failure(disk: Disk, directory: str, measured: Mapping[str, Any]) -> None:
    """Keeps in mind that a compiled form failed its self-test on this board, so that nobody loads it."""
    reason = measured.get("form_failed")
    path = os.path.join(directory, FORM_NOTE)
    if reason:
        disk.remove(path)
        disk.write(path, [json.dumps({"reason": reason}).encode() + b"\n"])
        disk.sync_directory(directory)


def form_in_use(row: Mapping[str, Any]) -> Dict[str, Any]:
    """What the self-test of the release in use ran, the last time that it came into use.

    Args:
        row: Of `release_home.status`.

    Returns:
        `form`, None where the release has no compiled form, and `form_reason`.
    """
    for entry in reversed(row["history"]):
        measured = entry.get("measured") if isinstance(entry, dict) else None
        if isinstance(measured, dict) and entry.get("digest") == row["current_digest"]:
            return {"form": measured.get("form"), "form_reason": measured.get("form_reason", "")}
    return {"form": None, "form_reason": ""}


def _noted(directory: str) -> str:
    try:
        return str(_read(os.path.join(directory, FORM_NOTE))["reason"])
    except FileNotFoundError:
        return ""


def _read(path: str) -> Dict[str, Any]:
    with open(path, encoding="utf-8") as stream:
        found: Dict[str, Any] = json.load(stream)
    return found


def _form(name: str, directory: str, manifest: Mapping[str, Any], model: str, reason: str = "") -> Form:
    companion = companion_of(model)
    return Form(
        name,
        os.path.join(directory, model),
        manifest["files"][model],
        None if companion is None else manifest["files"].get(companion),
        reason,
    )


def _damage(directory: str, manifest: Mapping[str, Any]) -> str:
    """A release is whole without its compiled form, so that one is looked at here."""
    name = manifest["compiled"]["model"]
    digest = hashlib.sha256()
    with open(os.path.join(directory, name), "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return "" if digest.hexdigest() == manifest["files"][name] else f"{name} was changed after it was installed"


def _feature_misfits(made: Sequence[str], features: Sequence[str]) -> List[str]:
    found = []
    lacking = [name for name in made if name not in features]
    added = [name for name in features if name not in made]
    if lacking:
        found.append(f"it was made for a processor with {', '.join(lacking)}, which the device's lacks")
    if added:
        found.append(
            f"it was made for a processor without {', '.join(added)}, which the device's has, and how a runtime "
            "lays out weights depends on that"
        )
    return found

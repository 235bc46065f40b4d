"""Parts that a bundle may have beside the model: its compiled form, wheels, the program; and what they require."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from devices.board.bundle import Bundle
from devices.board.requirement import LEAST_PYTHON, carried_versions, parse_requirement
from devices.carried_wheels import CarriedWheels
from devices.compiled import MANIFEST as COMPILED_MANIFEST
from devices.compiled import CompiledManifest
from devices.errors import BundleError
from devices.profile import DeviceProfile
from pipeline.errors import InputError
from pipeline.runner import RunResult
from pipeline.targets.base import file_digest

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,98}")


@dataclass(frozen=True)
class CompiledForm:
    """The compiled form of a model.

    Attributes:
        form: Its name.
        files: The compiled file and `compiled.json`.
    """

    form: str
    files: tuple[Path, Path]

    @property
    def stated(self) -> dict[str, str]:
        """What the manifest of a bundle says of it."""
        return {"form": self.form, "model": self.files[0].name, "record": self.files[1].name}


def compiled_form(result: RunResult, profile: DeviceProfile, label: str, model: Path) -> CompiledForm | None:
    """Returns the form of a model that the run compiled for the device; None where it compiled none.

    Vela's is left out: it runs on the NPU alone, through a delegate that no runtime here has.

    Args:
        result: Of a recipe with `compile.forms`.
        profile: The device.
        label: Of the artifact, such as `litert/int8`.
        model: Its file.
    """
    for name, artifact in sorted(result.artifacts.items()):
        if not name.startswith(f"compile/{profile.name}/{label}/"):
            continue
        made = artifact.manifest.metrics
        is_of_it = made["source"][0]["sha256"] == file_digest(model)
        beside = all(_is_same(model.with_name(file["name"]), file["sha256"]) for file in made["files"][1:])
        if made["form"] != "vela" and is_of_it and beside:
            return CompiledForm(made["form"], (artifact.file(made["model"]), artifact.file(COMPILED_MANIFEST)))
    return None


def requirement_of(profile: DeviceProfile, target: str, wheels: CarriedWheels | None) -> dict[str, Any]:
    """Returns what the manifest says that a board must have.

    Raises:
        InputError: A board could not judge the requirement of the profile.
    """
    runtime = profile.runtimes.get(target, "")
    if runtime:
        try:
            parse_requirement(runtime)
        except ValueError as error:
            raise InputError(f"The profile of {profile.name} can't be packaged for: {error}.") from error
    # Without wheels nothing in a bundle is native code, so only the kind of the C library tells another system.
    libc = {} if profile.libc is None else {"libc": profile.libc.partition(" ")[0]}
    return {
        "architecture": profile.architecture,
        "runtime": runtime,
        "python": LEAST_PYTHON,
        **(libc if wheels is None else wheels.requires),
    }


def check_names(wheels: CarriedWheels) -> None:
    """Refuses wheels whose names a bundle can't hold.

    Raises:
        InputError: There is such a wheel.
    """
    for path in wheels.paths:
        if not _FILE_NAME.fullmatch(path.name):
            raise InputError(
                f"The wheel {path.name} can't be put into a bundle: its name may have letters, digits, '.', '_', '-', "
                "99 in all. Take another version of it in the profile of the device."
            )


def check_parts(path: Path, bundle: Bundle) -> dict[str, Any]:
    """Looks into the parts of a bundle whose digests were compared already.

    Returns:
        `program` (its name, or None), `wheels` (name and version of each package), `compiled` (form, package and
        version, or None) and `requires`.

    Raises:
        BundleError: A part is not what the manifest says.
    """
    manifest = bundle.manifest
    try:
        with path.open("rb") as stream:

            def content(name: str) -> bytes:
                member = next(each for each in bundle.members if each.name == name)
                stream.seek(member.offset)
                return stream.read(member.size)

            program = manifest.get("program")
            if program is not None and not {"__main__.py", "board/start.py"} <= _names_in(content(program)):
                raise BundleError(f"{program} in {path} is not the board's program; make the bundle anew.")
            wheels = list(manifest.get("wheels", ()))
            for name in wheels:
                if not any(inner.endswith(".dist-info/METADATA") for inner in _names_in(content(name))):
                    raise BundleError(f"{name} in {path} is no wheel; make the bundle anew.")
            compiled = manifest.get("compiled")
            told = None if compiled is None else _check_compiled(path, manifest, content(compiled["record"]))
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror or error}.") from error
    return {
        "program": program,
        "wheels": carried_versions(wheels),
        "compiled": told,
        "requires": manifest.get("requires", {}),
    }


def parts_lines(parts: Mapping[str, Any]) -> list[str]:
    """Returns what is to be said of the parts of a bundle."""
    wheels = ", ".join(f"{name} {version}" for name, version in sorted(parts["wheels"].items()))
    compiled = parts["compiled"]
    requires = ", ".join(f"{key} {value}" for key, value in sorted(parts["requires"].items()) if value)
    return [
        f"  program: {parts['program'] or 'none'}",
        f"  wheels: {wheels or 'none'}",
        "  compiled form: "
        + ("none" if compiled is None else f"{compiled['form']}, by {compiled['package']} {compiled['version']}"),
        f"  requires: {requires or 'nothing'}",
    ]


def _check_compiled(path: Path, manifest: Mapping[str, Any], record: bytes) -> dict[str, str]:
    try:
        made = CompiledManifest.model_validate_json(record)
    except ValidationError as error:
        text = " ".join(str(error).split())[:300]
        raise BundleError(
            f"{manifest['compiled']['record']} in {path} is no manifest of a compiled file: {text}"
        ) from error
    files = manifest["files"]
    stated = (made.form, made.files[0].name)
    if stated != (manifest["compiled"]["form"], manifest["compiled"]["model"]):
        raise BundleError(f"{path} names another compiled form than its {manifest['compiled']['record']}.")
    of_model = made.source[0].sha256 == files[manifest["model"]]
    if not of_model or any(files.get(file.name) != file.sha256 for file in made.files):
        raise BundleError(f"The compiled form in {path} was made of another model, or is another file.")
    return {"form": made.form, "package": made.package, "version": made.version}


def _names_in(content: bytes) -> set[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return set()


def _is_same(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256

"""Compiled files: what `compiled.json` beside one says, and whether it fits a device.

A compiled file is bound to the runtime that made it and to the processor it was made on. A runtime that is given
another one refuses it at best; at worst it answers slowly, or wrongly. So the host compares what the manifest says with
what the board says of itself before anything is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, ValidationError

from devices.board.release_form import compiled_misfits
from devices.errors import CompiledMisfitError, ModelRejectedError
from devices.loading import Loading
from devices.profile_parts import Frozen

MANIFEST = "compiled.json"

Form = Literal["xnnpack_cache", "ort", "openvino_blob", "vela", "fake"]

RUNTIMES: dict[Form, str] = {
    "xnnpack_cache": "litert",
    "ort": "onnxruntime",
    "openvino_blob": "openvino",
    "vela": "litert",
    "fake": "fake",
}
"""By form, the runtime whose models it is made of."""


class CompiledFile(Frozen):
    """One file.

    Attributes:
        name: Without a directory.
        sha256: Of its bytes.
        size_bytes: Its size.
    """

    name: str
    sha256: str
    size_bytes: NonNegativeInt


class Processor(Frozen):
    """What a file was compiled for.

    Attributes:
        architecture: As `uname -m` prints it; None where the file runs on any.
        cpu_model: For people.
        cpu_features: Of `devices.board.facts.CPU_FEATURES`, those that the device must have, and no others: with more
            of them a runtime would lay out weights in another way. None where the file is not bound to them.
        accelerator: Another processor than the CPU that runs it, such as ethos-u65-256.
    """

    architecture: str | None
    cpu_model: str | None = None
    cpu_features: tuple[str, ...] | None
    accelerator: str | None = None


class CompiledManifest(Frozen):
    """What `compiled.json` holds.

    Attributes:
        form: What kind of file it is.
        runtime: A name of `devices.board.runners.RUNNERS`.
        package: The distribution that made it and that must run it.
        version: Of that package.
        device: The profile it was made for.
        made_on: Whether the device itself compiled it, or this machine.
        level: Of ONNX Runtime's optimizations; None for other forms.
        processor: What it was made for.
        source: The model's files; the one that is named in front.
        files: The compiled file in front, then what must lie beside it.
        num_threads: That it was made with.
        input_shapes: By name the shape of an input that the model leaves free.
        seconds: That compiling took, measured.
        parity: The compiled form beside the plain one, on the device; None where it can't run there.
        parity_reason: Why it is None.
        measured: What it saves; None where that was not measured.
        measured_reason: Why it is None.
        predicted: What a compiler says about a processor that it does not have; None where nothing is.
        notes: What a user should know.
    """

    schema_version: Literal[1] = 1
    form: Form
    runtime: str
    package: str
    version: str
    device: str
    made_on: Literal["device", "host"]
    level: str | None = None
    processor: Processor
    source: tuple[CompiledFile, ...]
    files: tuple[CompiledFile, ...]
    num_threads: int = 1
    input_shapes: dict[str, tuple[int, ...]] = Field(default={})
    seconds: float
    parity: dict[str, Any] | None = None
    parity_reason: str | None = None
    measured: Loading | None = None
    measured_reason: str | None = None
    predicted: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def misfits(self, facts: Mapping[str, Any]) -> list[str]:
        """Why a device can't run the file, as parts of a sentence; none where it can.

        Args:
            facts: The agent's answer to `facts`.
        """
        return compiled_misfits(self.model_dump(), facts)


def check_fits(manifest: CompiledManifest, facts: Mapping[str, Any], *, path: str, device: str) -> None:
    """Refuses a compiled file that a device can't run.

    Args:
        manifest: What is known of it.
        facts: The agent's answer to `facts`.
        path: Of the file, for the message.
        device: The name of the profile.

    Raises:
        CompiledMisfitError: It is of another version or another processor; nothing was sent.
    """
    reasons = manifest.misfits(facts)
    if not reasons:
        return
    name = manifest.source[0].name
    mend = (
        f"run it on the board with the LiteRT and the Ethos-U delegate of its system; here, measure {name} on the CPU"
        if manifest.form == "vela"
        else f"compile {name} again (edgeship compile {name} --device {device}), or run {name} itself"
    )
    raise CompiledMisfitError(
        f"{path} does not fit {device}, and was not sent there: {'; '.join(reasons)}. What to do: {mend}"
    )


def find_compiled(path: Path) -> tuple[Path, CompiledManifest] | None:
    """The compiled file that a path names, itself or by its directory, and its manifest. None where it names none.

    Raises:
        ModelRejectedError: The manifest can't be read, or a file is missing or is not the one that was compiled.
    """
    directory = path if path.is_dir() else path.parent
    place = directory / MANIFEST
    if not place.is_file():
        return None
    try:
        manifest = CompiledManifest.model_validate_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        text = " ".join(str(error).split())[:300]
        raise ModelRejectedError(
            f"{place} is no manifest of a compiled file: {text}; compile the model again"
        ) from error
    if not path.is_dir() and path.name != manifest.files[0].name:
        return None
    for record in manifest.files:
        file = directory / record.name
        if not file.is_file():
            raise ModelRejectedError(f"there is no {file}, which {place} names; compile the model again")
        if digest_of(file) != record.sha256:
            raise ModelRejectedError(
                f"{file} was changed after it was compiled: its SHA-256 is not the one of {place}; compile the model "
                "again"
            )
    return (directory / manifest.files[0].name).resolve(), manifest


def file_record(path: Path) -> CompiledFile:
    """Name, digest and size of a file."""
    return CompiledFile(name=path.name, sha256=digest_of(path), size_bytes=path.stat().st_size)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

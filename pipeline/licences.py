"""Whose work a bundle is: the licences of what is in it, and of what its model was made with and runs on."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from email.message import Message
from email.parser import BytesParser
from importlib import metadata
from pathlib import Path
from typing import Any

import devices
from pipeline.errors import InputError

LICENCE = "LICENSE"
"""The text of Edgeship's, in a bundle as in the source."""

_LONGEST_LICENCE = 80
_RUNTIMES = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}
_TEXTS = re.compile(r"(?i)(licen[cs]e|copying|notice|third.?party)")

_INSIDE = "`{program}` is Edgeship {version}, Apache-2.0; its text is in `{licence}`."
_WHEELS = "The wheels carry the texts of their licences themselves:"
_OUTSIDE = (
    "The packages that the model file was made with, and its runtime, as they state their licences themselves. They "
    "are in this bundle only where they are named above."
)
_UNKNOWN = (
    "Edgeship does not know the licences of the training data and of imported weights: whoever passes this bundle on "
    "must."
)


def licence_text() -> bytes:
    """Returns the text of Edgeship's licence.

    Raises:
        InputError: This installation lacks it.
    """
    beside = Path(devices.__file__).parents[1] / LICENCE
    if beside.is_file():
        return beside.read_bytes()
    for file in metadata.files("edgeship") or ():
        if file.name == LICENCE:
            return Path(str(file.locate())).read_bytes()
    raise InputError(f"Edgeship's {LICENCE} is missing, which belongs into each bundle. Install Edgeship again.")


def licences(target: str, lineage: Sequence[Mapping[str, Any]], *, program: str, wheels: Sequence[Path] = ()) -> str:
    """Returns the licences of what is in a bundle, of the packages that made its model and of the runtime, Markdown.

    Args:
        target: The runtime.
        lineage: See `pipeline.packaging.lineage_of`.
        program: Name of the program in the bundle.
        wheels: In the bundle.
    """
    versions: dict[str, str] = {}
    for each in lineage:
        versions |= each["tools"]
    runtime = _RUNTIMES.get(target)
    if runtime is not None:
        versions.setdefault(runtime, _version(runtime))
    rows = [f"| {name} | {version} | {licence_of(name)} |" for name, version in sorted(versions.items())]
    return "\n".join(
        [
            "# Licences",
            "",
            "## In this bundle",
            "",
            _INSIDE.format(program=program, version=_version("edgeship"), licence=LICENCE),
            *_wheel_lines(wheels),
            "",
            "## What it was made with and runs on",
            "",
            _OUTSIDE,
            "",
            "| package | version | licence |",
            "|---|---|---|",
            *rows,
            "",
            _UNKNOWN,
        ]
    ) + "\n"  # fmt: skip


def licence_of(distribution: str) -> str:
    """Returns the licence that an installed package states, in a few words."""
    try:
        facts = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return "not stated (the package is not installed here)"
    return _stated(facts)  # type: ignore[arg-type]


def _stated(facts: Message) -> str:
    expression = facts.get_all("License-Expression")
    if expression:
        return str(expression[0])
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in facts.get_all("Classifier") or []
        if text.startswith("License ::") and text != "License :: OSI Approved"
    ]
    if classifiers:
        return ", ".join(classifiers)
    told = "".join(map(str, facts.get_all("License") or [])).strip()
    return told if told and len(told) <= _LONGEST_LICENCE and "\n" not in told else "not stated"


def _wheel_lines(wheels: Sequence[Path]) -> list[str]:
    if not wheels:
        return []
    rows = [_wheel_row(path) for path in sorted(wheels, key=lambda path: path.name)]
    return ["", _WHEELS, "", "| wheel | licence | texts in it |", "|---|---|---|", *rows]


def _wheel_row(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        stated = next(name for name in names if name.count("/") == 1 and name.endswith(".dist-info/METADATA"))
        facts = BytesParser().parsebytes(archive.read(stated), headersonly=True)
    texts = sorted(name for name in names if _TEXTS.search(name.rpartition("/")[2]) and not name.endswith((".py", "/")))
    told = ", ".join(f"`{name}`" for name in texts) or "none"
    return f"| {path.name} | {_stated(facts)} | {told} |"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "-"

"""What a manifest says of a release's requirement, its program, the wheels it brings and its compiled form."""

from __future__ import annotations

import re
from typing import Any, Mapping

FORM_NOTE = "form.json"
"""Of a release on a board, see `release_form`; no file of a bundle may be called so."""

_FORMS = {
    "python": r">=3\.\d{1,3}",
    "abi": r"cp\d{1,4}t?",
    "libc": r"[a-z]{1,20}( \d{1,4}\.\d{1,4})?",
    "architecture": r".*",
    "runtime": r".*",
}


def requirement_problem(manifest: Mapping[str, Any]) -> str:
    """What is wrong with `requires`, "" where nothing is."""
    requires = manifest.get("requires", {})
    if not isinstance(requires, dict):
        return "requires is not what is known as a requirement"
    for key, form in _FORMS.items():
        told = requires.get(key)
        if told is not None and not (isinstance(told, str) and re.fullmatch(form, told)):
            return f"requires.{key} is {told!r:.60}"
    return ""


def parts_problem(manifest: Mapping[str, Any]) -> str:
    """What is wrong with the parts that a release may have and need not, "" where nothing is."""
    files, wheels, program = manifest["files"], manifest.get("wheels", []), manifest.get("program")
    if not isinstance(wheels, list) or not all(_is_file(each, files) and each.endswith(".whl") for each in wheels):
        return "wheels is no list of wheels that are there"
    if program is not None and not _is_file(program, files):
        return f"program is {program!r:.60}"
    needed = {manifest["model"], program, *(each["file"] for key in ("inputs", "outputs") for each in manifest[key])}
    if len(set(wheels)) != len(wheels) or needed & set(wheels):
        return "wheels names one twice, or a file that the release itself needs"
    compiled = manifest.get("compiled")
    return "" if compiled is None else _compiled_problem(compiled, files, {*needed, *wheels})


def _compiled_problem(compiled: Any, files: Mapping[str, str], others: set[Any]) -> str:
    if not isinstance(compiled, dict) or not isinstance(compiled.get("form"), str):
        return "compiled does not name its form"
    record, model = compiled.get("record"), compiled.get("model")
    if not _is_file(record, files) or not _is_file(model, files):
        return "compiled names a file that is not there"
    return "compiled names a file that is something else" if model in {*others, record} or record in others else ""


def _is_file(name: Any, files: Mapping[str, str]) -> bool:
    return isinstance(name, str) and name in files

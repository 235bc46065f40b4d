"""Which boards the runtimes have wheels for: read from the tags of the wheels themselves, in November 2026."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from devices.provision_android import android_hint

Version = tuple[int, ...]


@dataclass(frozen=True)
class Wheel:
    """One release for one architecture.

    Attributes:
        package: The distribution.
        version: Of the release.
        architecture: As `uname -m` prints it.
        first_python: The oldest CPython that has a wheel.
        last_python: The newest.
        glibc: The oldest C library that the wheel runs with (the manylinux tag).
    """

    package: str
    version: str
    architecture: str
    first_python: Version
    last_python: Version
    glibc: Version


WHEELS = (
    Wheel("ai-edge-litert", "2.3.0", "aarch64", (3, 10), (3, 14), (2, 27)),
    Wheel("ai-edge-litert", "2.3.0", "x86_64", (3, 10), (3, 14), (2, 27)),
    Wheel("onnxruntime", "1.31.0", "aarch64", (3, 11), (3, 14), (2, 28)),
    Wheel("onnxruntime", "1.31.0", "x86_64", (3, 11), (3, 14), (2, 28)),
    Wheel("onnxruntime", "1.23.2", "aarch64", (3, 10), (3, 13), (2, 27)),
    Wheel("onnxruntime", "1.23.2", "x86_64", (3, 10), (3, 13), (2, 27)),
    Wheel("openvino", "2026.4.0", "aarch64", (3, 10), (3, 14), (2, 35)),
    Wheel("openvino", "2026.4.0", "x86_64", (3, 10), (3, 14), (2, 28)),
    Wheel("pillow", "13.0.0", "aarch64", (3, 11), (3, 14), (2, 27)),
    Wheel("pillow", "13.0.0", "x86_64", (3, 11), (3, 14), (2, 27)),
    Wheel("pillow", "12.3.0", "aarch64", (3, 10), (3, 14), (2, 27)),
    Wheel("pillow", "12.3.0", "x86_64", (3, 10), (3, 14), (2, 27)),
    Wheel("pillow", "11.3.0", "aarch64", (3, 9), (3, 13), (2, 27)),
    Wheel("pillow", "11.3.0", "x86_64", (3, 9), (3, 13), (2, 27)),
    Wheel("tflite-runtime", "2.14.0", "aarch64", (3, 9), (3, 11), (2, 34)),
    Wheel("tflite-runtime", "2.14.0", "armv7l", (3, 9), (3, 11), (2, 34)),
    Wheel("tflite-runtime", "2.14.0", "x86_64", (3, 9), (3, 11), (2, 17)),
)


def parse_requirement(text: str) -> Requirement | None:
    """A requirement of a profile; None for the empty one of a runtime that comes with Edgeship, and for a bad one."""
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def satisfies(text: str, package: str, version: str) -> bool:
    """Whether a package in a version is what a requirement asks for."""
    requirement = parse_requirement(text)
    return (
        requirement is not None
        and canonicalize_name(requirement.name) == canonicalize_name(package)
        and requirement.specifier.contains(version, prereleases=True)
    )


def parse_version(text: str) -> Version:
    """The numbers at the beginning of a version: `3.11.2` and `3.11.2+` are both (3, 11, 2)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def why_no_wheel(text: str, *, architecture: str | None, python: str | None, libc: str | None) -> str | None:
    """Why no wheel that a requirement allows runs on a board; None where one does, or where nothing is known of it.

    Args:
        text: A requirement such as "onnxruntime>=1.31,<2".
        architecture: As `uname -m` prints it; None where it is not known, as below.
        python: Such as "3.11.2".
        libc: Such as "glibc 2.36"; "bionic" is Android's.
    """
    requirement = parse_requirement(text)
    if libc == "bionic" and requirement is not None:
        return f"{requirement.name} has no wheel for Android; {android_hint(text)}"
    known = [each for each in WHEELS if satisfies(text, each.package, each.version)]
    if not known:
        return None
    name = known[0].package
    wheels = [each for each in known if architecture in (None, each.architecture)]
    if not wheels:
        there = ", ".join(sorted({each.architecture for each in known}))
        return f"{name} has no wheel for {architecture} (only for {there})"
    version = None if python is None else parse_version(python)[:2]
    fitting = [each for each in wheels if version is None or each.first_python <= version <= each.last_python]
    if not fitting:
        first, last = min(each.first_python for each in wheels), max(each.last_python for each in wheels)
        return f"{name} has wheels for Python {_text(first)} to {_text(last)}, the board has {python}"
    needed = min(each.glibc for each in fitting)
    # A C library of another kind has no version here, and is older than any.
    if libc is not None and parse_version(libc.removeprefix("glibc "))[:2] < needed:
        return f"the wheel of {name} needs glibc {_text(needed)}, the board has {libc}"
    return None


def _text(version: Version) -> str:
    return ".".join(map(str, version))

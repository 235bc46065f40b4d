"""Where a phone's packages come from: Termux builds them for Android; the package index has none (November 2026)."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

TERMUX_PACKAGES = {
    "numpy": "python-numpy",
    "pillow": "python-pillow",
    "onnxruntime": "python-onnxruntime",
    "tflite-runtime": "python-tflite-runtime",
}
"""By distribution name, the package of Termux that brings it (github.com/termux/termux-packages, folder packages)."""


def termux_packages(requirements: Iterable[str]) -> list[str]:
    """The packages of Termux that bring what is required, as far as it has them; sorted."""
    return sorted({TERMUX_PACKAGES[name] for text in requirements if (name := _name(text)) in TERMUX_PACKAGES})


def android_hint(requirement: str) -> str:
    """What to do about a requirement that has no wheel for Android."""
    package = TERMUX_PACKAGES.get(_name(requirement) or "")
    if package is None:
        return f"Termux has no package of it either; take another runtime ({', '.join(sorted(_RUNTIMES))})"
    return f"in Termux on the phone: pkg install {package}"


_RUNTIMES = set(TERMUX_PACKAGES) - {"numpy", "pillow"}


def _name(text: str) -> str | None:
    try:
        return canonicalize_name(Requirement(text).name)
    except InvalidRequirement:  # of a runtime that comes with Edgeship
        return None

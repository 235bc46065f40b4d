"""What a release wants of a board, and whether it is there: architecture, Python, C library, the runtime's version.

A manifest states it under `requires`: `architecture` as `uname -m` prints it, `python` (">=3.9"), `libc` ("glibc" or
"glibc 2.28", the least version), `abi` of Python ("cp311", where the bundle brings wheels) and `runtime`, a
requirement such as "ai-edge-litert>=2.3,<3". Of those (PEP 508, PEP 440) the ones that a board can judge without a
package of its own are a name and clauses of `OPERATORS` with plain versions.
"""

from __future__ import annotations

import platform
import re
import sys
from importlib import util
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from .interpreter import c_library, describe_board, installed_version
from .release_errors import Unfit

LEAST_PYTHON = ">=3.9"
OPERATORS = (">=", "<", "==", "~=", "!=")

_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)((?:>=|<|==|~=|!=|,|[A-Za-z0-9.])*)")
_SPACES = re.compile(r" *(>=|<|==|~=|!=|,) *")
_VERSION = re.compile(r"(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.post(\d+))?(?:\.dev(\d+))?(\+[a-z0-9]+(?:\.[a-z0-9]+)*)?")
_WHEEL = re.compile(r"([^-]+)-([^-]+)(?:-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_PRE = {"a": 0, "b": 1, "rc": 2}
_TERMUX = {
    "numpy": "python-numpy",
    "onnxruntime": "python-onnxruntime",
    "tflite-runtime": "python-tflite-runtime",
}
_32_BIT = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}


class Version(NamedTuple):
    """A version in an order of its own (PEP 440), without what follows a `+`.

    Attributes:
        release: Without zeros at the end.
        pre: Of a first release candidate `(2, 1)`; after all of these where it is none.
        post: -1 where it is none.
        dev: Infinite where it is none.
    """

    release: Tuple[int, ...]
    pre: Tuple[int, int]
    post: int
    dev: float

    @property
    def is_early(self) -> bool:
        """Whether it comes before the release whose numbers it has."""
        return self.pre < (3, 0) or self.dev != float("inf")


class Requirement(NamedTuple):
    """A package and its versions.

    Attributes:
        name: Of the distribution.
        clauses: Each an operator and a version.
    """

    name: str
    clauses: Tuple[Tuple[str, str], ...]

    def allows(self, version: str) -> bool:
        """Whether all clauses allow a version, one before a release included.

        Raises:
            ValueError: It is no version.
        """
        return all(_holds(parse_version(version), operator, wanted) for operator, wanted in self.clauses)


def parse_requirement(text: str) -> Requirement:
    """Reads a requirement.

    Raises:
        ValueError: It is none, or one that a board can't judge.
    """
    match = _REQUIREMENT.fullmatch(_SPACES.sub(r"\1", text.strip()))
    if match is None:
        raise ValueError(_unreadable(text))
    clauses = []
    for clause in match[2].split(",") if match[2] else []:
        operator = next((each for each in OPERATORS if clause.startswith(each)), "")
        wanted = clause[len(operator) :]
        if not operator or "+" in wanted:
            raise ValueError(_unreadable(text))
        try:
            parse_version(wanted)
        except ValueError as error:
            raise ValueError(_unreadable(text)) from error
        if operator == "~=" and "." not in _numbers(wanted):
            raise ValueError(_unreadable(text))
        clauses.append((operator, wanted))
    return Requirement(match[1], tuple(clauses))


def parse_version(text: str) -> Version:
    """Reads a version.

    Raises:
        ValueError: It is none.
    """
    match = _VERSION.fullmatch(text)
    if match is None or any(len(number) > 9 for number in re.findall(r"\d+", text.partition("+")[0])):
        raise ValueError(f"{text!r:.60} is no version; expected one such as 2.3.0")
    numbers, kind, pre, post, dev, _ = match.groups()
    release = [int(number) for number in numbers.split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    before = (3, 0)
    if kind is not None:
        before = (_PRE[kind], int(pre))
    elif dev is not None and post is None:
        before = (-1, 0)
    return Version(
        tuple(release), before, -1 if post is None else int(post), float("inf") if dev is None else float(dev)
    )


def check_fit(manifest: Mapping[str, Any]) -> None:
    """Refuses a release that this board can't run.

    Raises:
        Unfit: It is for another kind of board, or a package is missing or of another version.
    """
    requires = manifest.get("requires") or {}
    _check_architecture(requires.get("architecture"))
    _check_python(requires.get("python"), requires.get("abi"))
    _check_libc(requires.get("libc"))
    carried = carried_versions(manifest.get("wheels") or [])
    if "numpy" not in carried and util.find_spec("numpy") is None:
        raise Unfit(f"this board's Python has no numpy: {_mend('numpy')}")
    _check_runtime(requires.get("runtime") or "", carried, strict=manifest.get("schema_version", 0) > 2)


def carried_versions(wheels: List[str]) -> Dict[str, str]:
    """The versions of the packages that wheels bring, by name."""
    found = {}
    for file in wheels:
        match = _WHEEL.fullmatch(file)
        if match is not None:
            found[_plain(match[1])] = match[2]
    return found


def _check_architecture(wanted: Optional[str]) -> None:
    told = platform.machine()
    if sys.maxsize < 2**32:  # a 32-bit system on a 64-bit kernel: what counts is what Python can load
        told = _32_BIT.get(told, told)
    if wanted is not None and wanted != told:
        raise Unfit(
            f"the bundle is for {wanted}, and this board is {told}: make one for this board with "
            "`edgeship package --device`"
        )


def _check_python(wanted: Optional[str], abi: Optional[str]) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    if wanted is not None and not parse_requirement("python" + wanted).allows(version):
        raise Unfit(f"this board has Python {version}, and the release wants {wanted}: run it with a newer Python")
    own = describe_board()["abi"]
    if abi is not None and abi != own:
        raise Unfit(
            f"the wheels in the bundle are for Python's ABI {abi}, and this is Python {version} ({own}): package it "
            "for a profile with this board's python_version, or leave --wheels out"
        )


def _check_libc(wanted: Optional[str]) -> None:
    """A C library that does not tell what it is, is left to the self-test."""
    kind, numbers = c_library()
    if wanted is None or kind == "unknown":
        return
    name, _, least = wanted.partition(" ")
    needed = [int(number) for number in least.split(".") if number.isdigit()]
    if kind != name or (numbers and numbers < needed):
        own = f"{kind} {'.'.join(map(str, numbers))}".strip()
        raise Unfit(
            f"the release wants the C library {wanted}, and this board has {own}: package it for a profile with "
            "this board's libc"
        )


def _check_runtime(text: str, carried: Mapping[str, str], *, strict: bool) -> None:
    if not text:
        return
    try:
        requirement = parse_requirement(text)
    except ValueError as error:
        if strict:
            raise Unfit(f"the release's requirement can't be judged: {error}") from error
        return  # before manifests were of the form 3, nobody had looked at it
    found = carried.get(_plain(requirement.name)) or installed_version(requirement.name)
    if found is None:
        raise Unfit(f"this board has no {requirement.name}, and the release wants {text}: {_mend(text)}")
    try:
        fits = requirement.allows(found)
    except ValueError:
        fits = False
    if not fits:
        raise Unfit(f"this board has {requirement.name} {found}, and the release wants {text}: {_mend(text)}")


def _mend(text: str) -> str:
    name = parse_requirement(text).name
    if hasattr(sys, "getandroidapilevel"):
        return f"in Termux: pkg install {_TERMUX.get(_plain(name), name)}"
    return f"{sys.executable} -m pip install '{text}', or take a bundle that brings it (`edgeship package --wheels`)"


def _holds(version: Version, operator: str, text: str) -> bool:
    wanted = parse_version(text)
    if operator == ">=":
        return version >= wanted
    if operator == "<":
        # What comes before the wanted version itself, a1 or dev1 of it, is not allowed by it.
        of_it = version.release == wanted.release and (wanted.post == -1 or version[:3] == wanted[:3])
        return version < wanted and not (of_it and version.is_early and not wanted.is_early)
    if operator == "~=":
        prefix = [int(number) for number in _numbers(text).split(".")][:-1]
        own = (*version.release, *(0 for _ in prefix))[: len(prefix)]
        return version >= wanted and list(own) == prefix
    return (version == wanted) == (operator == "==")


def _numbers(text: str) -> str:
    match = _VERSION.fullmatch(text)
    return "" if match is None else match[1]


def _plain(name: str) -> str:
    """A distribution's name as all its spellings are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _unreadable(text: str) -> str:
    return (
        f"{text!r:.120} is no requirement that a board can judge; expected a name and versions with "
        f"{', '.join(OPERATORS)}, such as 'ai-edge-litert>=2.3,<3'"
    )

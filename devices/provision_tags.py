"""Which wheels run on a board: its platform tags and its markers (PEP 508).

The tags are those of PEP 600 for glibc, of PEP 656 for musl, of PEP 738 for Android.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

# What platform.machine() says of a 64-bit kernel, and what a 32-bit Python on it is.
_32_BIT = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_ANDROID_NAMES = {"aarch64": "arm64_v8a", "armv7l": "armeabi_v7a", "i686": "x86", "x86_64": "x86_64"}
_LEAST_ANDROID_LEVEL = 21  # PEP 738
_LEAST_GLIBC_MINOR = {"x86_64": 5, "i686": 5}


@dataclass(frozen=True)
class BoardPython:
    """A board's Python and what decides which wheels it takes.

    Attributes:
        version: Such as `(3, 11, 2)`.
        abi: Such as "cp311".
        machine: As `uname -m` prints it.
        bits: Of a pointer: 32 also on a 64-bit kernel with a 32-bit system.
        libc: "glibc", "musl", "bionic" or "unknown".
        libc_version: Such as `(2, 36)`; of bionic the level of the system's interface, such as `(24,)`.
        markers: The environment markers.
    """

    version: tuple[int, ...]
    abi: str
    machine: str
    bits: int
    libc: str
    libc_version: tuple[int, ...]
    markers: Mapping[str, str]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> BoardPython:
        """Takes what `devices.board.interpreter.describe_board` tells."""
        return cls(
            version=tuple(facts["python"]),
            abi=facts["abi"],
            machine=facts["machine"],
            bits=facts["bits"],
            libc=facts["libc"],
            libc_version=tuple(facts["libc_version"]),
            markers=dict(facts["markers"]),
        )

    @property
    def architecture(self) -> str:
        """The architecture of Python, which is what wheels are made for."""
        if self.machine == "armv8l":
            return "armv7l"
        return _32_BIT.get(self.machine, self.machine) if self.bits == 32 else self.machine

    @cached_property
    def platforms(self) -> tuple[str, ...]:
        """Platform tags, the best first."""
        return platform_tags(self.architecture, self.libc, self.libc_version)

    @cached_property
    def tags(self) -> frozenset[Tag]:
        """All tags of wheels that run there."""
        short = self.version[:2]
        interpreter = f"cp{short[0]}{short[1]}"
        return frozenset(
            [*cpython_tags(short, [self.abi], self.platforms), *compatible_tags(short, interpreter, self.platforms)]
        )

    def takes(self, wheel_name: str) -> bool:
        """Whether a wheel of this file name runs there."""
        try:
            return not self.tags.isdisjoint(parse_wheel_filename(wheel_name)[3])
        except InvalidWheelFilename:
            return False

    def describe(self) -> str:
        """In words: "armv7l with Python 3.11.2 (cp311) and glibc 2.36"."""
        version, libc_version = (".".join(map(str, part)) for part in (self.version, self.libc_version))
        libc = f"{self.libc} {libc_version}".strip() if self.libc != "unknown" else "an unknown C library"
        return f"{self.architecture} with Python {version} ({self.abi}) and {libc}"


def platform_tags(architecture: str, libc: str, libc_version: tuple[int, ...]) -> tuple[str, ...]:
    """Platform tags of wheels for a Linux system, the best first; an unknown C library takes `linux_*` alone."""
    tags = []
    if libc == "glibc" and libc_version[:1] == (2,):
        for minor in range(libc_version[1], _LEAST_GLIBC_MINOR.get(architecture, 17) - 1, -1):
            tags.append(f"manylinux_2_{minor}_{architecture}")
            if minor in _OLD_NAMES:
                tags.append(f"{_OLD_NAMES[minor]}_{architecture}")
    elif libc == "musl" and libc_version[:1] == (1,):
        tags = [f"musllinux_1_{minor}_{architecture}" for minor in range(libc_version[1], -1, -1)]
    elif libc == "bionic" and libc_version and architecture in _ANDROID_NAMES:
        levels = range(libc_version[0], _LEAST_ANDROID_LEVEL - 1, -1)
        return tuple(f"android_{level}_{_ANDROID_NAMES[architecture]}" for level in levels)
    return (*tags, f"linux_{architecture}")

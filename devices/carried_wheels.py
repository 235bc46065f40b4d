"""The wheels that a bundle brings: all that a device needs to run its model, so that it needs no package index."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import parse_wheel_filename

from devices.cache import cache_directory
from devices.errors import DeviceError, ProfileError, WheelMissingError
from devices.profile import DeviceProfile
from devices.provision import Installed, find_wheels
from devices.provision_tags import BoardPython
from devices.release import ask_board, ask_installed

_OLD_GLIBC = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}
_NEW_GLIBC = re.compile(r"(?:manylinux|musllinux)_(\d+)_(\d+)_")


@dataclass(frozen=True)
class CarriedWheels:
    """What a bundle brings.

    Attributes:
        paths: Of the wheels, sorted by name.
        requires: What they want of the device: `abi` of its Python, and `libc` where one of them wants one.
        told: For which Python they were chosen, and who told that.
    """

    paths: tuple[Path, ...]
    requires: dict[str, str]
    told: str


def carried_wheels(profile: DeviceProfile, target: str, *, images: bool) -> CarriedWheels:
    """Finds the wheels of a runtime and of numpy for a device, with all that they depend on.

    The device is asked what its Python is; where it can't be reached, its profile tells. What the device has already is
    left out only where there is no wheel of it.

    Args:
        profile: The device.
        target: The runtime.
        images: Whether the model takes images: then Pillow comes along, which decodes them, where it has a wheel.

    Raises:
        ProfileError: The device can't be asked, and its profile does not tell.
        WheelMissingError: A package has no wheel for the device.
        DeviceError: The package index or the wheelhouse can't be reached.
    """
    board, told, reached = _board_python(profile)
    requirements = [*filter(None, [profile.runtimes.get(target, "")]), "numpy"]

    house = getattr(profile.transport, "wheelhouse", None)

    def find(wanted: Sequence[str], installed: Installed) -> tuple[Path, ...]:
        return find_wheels(
            board,
            wanted,
            installed=installed,
            wheelhouse=None if house is None else Path(house).expanduser().absolute(),
            cache=cache_directory(os.environ) / "wheels",
        )

    def find_all(wanted: Sequence[str]) -> tuple[Path, ...]:
        try:
            return find(wanted, dict.fromkeys)
        except WheelMissingError:
            if not reached:
                raise
            return find(wanted, lambda names: ask_installed(profile, names))

    try:
        paths = find_all([*requirements, "pillow"] if images else requirements)
    except WheelMissingError:
        if not images:
            raise
        paths = find_all(requirements)
        told += ", without Pillow, which has no wheel for it"
    libc = least_libc(board, [path.name for path in paths])
    return CarriedWheels(
        tuple(sorted(paths, key=lambda path: path.name)),
        {"abi": board.abi, **({} if libc is None else {"libc": libc})},
        told,
    )


def python_of_profile(profile: DeviceProfile) -> BoardPython:
    """What the profile of a device says of its Python.

    Raises:
        ProfileError: It does not say enough.
    """
    facts = ("architecture", "python_version", "libc")
    missing = [name for name in facts if getattr(profile, name) is None]
    if missing:
        raise ProfileError(
            f"which wheels {profile.name} takes is not known: its profile has no {', '.join(missing)}. State "
            f"{'it' if len(missing) == 1 else 'them'} there, or connect the device, which is asked then"
        )
    architecture, version, libc = str(profile.architecture), str(profile.python_version), str(profile.libc)
    name, _, libc_version = libc.partition(" ")
    numbers = tuple(int(part) for part in version.split("."))
    full = ".".join(map(str, (*numbers, 0)[:3]))
    return BoardPython(
        version=numbers,
        abi=f"cp{numbers[0]}{numbers[1]}",
        machine=architecture,
        bits=32 if architecture in ("armv6l", "armv7l", "armv8l", "i686") else 64,
        libc=name,
        libc_version=tuple(int(part) for part in libc_version.split(".")) if libc_version else (),
        markers={
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": architecture,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Android" if name == "bionic" else "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": ".".join(version.split(".")[:2]),
            "sys_platform": "android" if name == "bionic" else "linux",
        },
    )


def least_libc(board: BoardPython, names: Sequence[str]) -> str | None:
    """The oldest C library with which all wheels of these file names run, such as "glibc 2.28"; None where any will do.

    Args:
        board: The Python that they were chosen for.
        names: Of the wheels.
    """
    needed = [
        min(_libc_of(tag.platform, board) for tag in parse_wheel_filename(name)[3] if tag in board.tags)
        for name in names
    ]
    most = max(needed, default=())
    return f"{board.libc} {'.'.join(map(str, most))}" if most else None


def _libc_of(platform: str, board: BoardPython) -> tuple[int, ...]:
    match = _NEW_GLIBC.match(platform)
    if match:
        return int(match[1]), int(match[2])
    old = next((version for name, version in _OLD_GLIBC.items() if platform.startswith(name)), None)
    # One that was built on such a board names no version.
    return old if old is not None else () if platform == "any" else board.libc_version


def _board_python(profile: DeviceProfile) -> tuple[BoardPython, str, bool]:
    """The device's Python, who told it, and whether the device was reached."""
    try:
        board = BoardPython.from_facts(ask_board(profile))
    except ProfileError:
        raise
    except DeviceError as error:
        try:
            board = python_of_profile(profile)
        except ProfileError as lacking:
            raise ProfileError(f"{lacking.message} ({profile.name} can't be asked: {error.message})") from error
        return board, f"{board.describe()}, as its profile says ({profile.name} can't be asked: {error.message})", False
    return board, f"{board.describe()}, as {profile.name} says", True

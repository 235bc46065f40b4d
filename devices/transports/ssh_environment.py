"""The packages of a board: found on the host, sent once, unpacked into directories of their own.

The runtimes share one. Each further package has its own, so that one more does not send the others again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from devices.cache import cache_directory
from devices.errors import WheelMissingError
from devices.profile import DeviceProfile
from devices.provision import find_wheels
from devices.provision_tags import BoardPython
from devices.transports.client import Remote
from devices.transports.ssh_agent import unpack
from devices.transports.ssh_files import file_digest
from devices.transports.ssh_link import SshLink

_log = logging.getLogger(__name__)

_LAYOUT = "1"
"""Of `wheels.unpack_wheel`; another one makes other environments."""


def prepare_environment(link: SshLink, profile: DeviceProfile) -> str:
    """Sees to it that the board has numpy, and the runtimes and packages of its profile.

    Returns:
        The directories there that the agent imports them from, as in PATH; empty where the board's Python has them all.

    Raises:
        WheelMissingError: A package has no wheel for the board.
        DeviceError: It could not be fetched or sent.
    """
    folders = [_remembered(link, [*sorted(filter(None, profile.runtimes.values())), "numpy"])]
    folders += [_prepare_package(link, requirement) for requirement in sorted(set(profile.packages))]
    return ":".join(filter(None, folders))


def _prepare_package(link: SshLink, requirement: str) -> str:
    """The package in the version of this machine where there is a wheel of it, else in any that is required."""
    here = installed_here(requirement)
    if here is not None:
        with contextlib.suppress(WheelMissingError):
            return _remembered(link, [here])
    return _remembered(link, [requirement])


def installed_here(requirement: str) -> str | None:
    """A requirement of the version that this machine has; None where it has none, or one is required already."""
    try:
        wanted = Requirement(requirement)
        return None if wanted.specifier else f"{wanted.name}=={version(wanted.name)}"
    except (InvalidRequirement, PackageNotFoundError):
        return None


def _remembered(link: SshLink, requirements: list[str]) -> str:
    remembered = ("environment", *requirements)
    if remembered not in link.memory:
        link.memory[remembered] = _prepare(link, requirements, link.transport)
    return str(link.memory[remembered])


def _prepare(link: SshLink, requirements: list[str], transport: Remote) -> str:
    wheels = find_wheels(
        BoardPython.from_facts(link.board),
        requirements,
        installed=lambda names: link.request("installed", {"names": list(names)}),
        wheelhouse=None if transport.wheelhouse is None else Path(transport.wheelhouse).expanduser().absolute(),
        cache=cache_directory(os.environ) / "wheels",
    )
    if not wheels:
        return ""
    states = {path.name: file_digest(path) for path in wheels}
    lines = [_LAYOUT, *(f"{sha256}  {name}" for name, (_, sha256) in sorted(states.items()))]
    folder = f"envs/{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:32]}"
    found = link.request("find", {"folder": folder})["path"]
    if found is None:
        size_mb = sum(size for size, _ in states.values()) / 2**20
        _log.info("sending %d packages (%.1f MiB) to %s: %s", len(wheels), size_mb, link.place, ", ".join(states))
        found = unpack(link, folder, list(wheels), wheels=True)
    return f"{found}/site-packages"

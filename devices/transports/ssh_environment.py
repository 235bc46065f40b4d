"""The packages of a board's runtimes: found on the host, sent once, unpacked into a directory of their own."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from devices.cache import cache_directory
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
    """Sees to it that the board has numpy and the runtimes of its profile.

    Returns:
        The directory there that the agent imports them from; empty where the board's Python has them all.

    Raises:
        WheelMissingError: A package has no wheel for the board.
        DeviceError: It could not be fetched or sent.
    """
    requirements = [*sorted(filter(None, profile.runtimes.values())), "numpy"]
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

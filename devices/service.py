"""The service that uses a device's releases, set from the host; see `devices.board.release_service`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.board.release_service import service_from
from devices.profile import DeviceProfile
from devices.release import ask_device, check_reachable


def service_settings(profile: DeviceProfile, root: Path) -> dict[str, Any]:
    """What the device is told of its services: `all` (None or a service) and `models`, a service by name.

    Raises:
        DeviceError: The device can't be used.
    """
    return _ask(profile, root, None, {})


def set_service(profile: DeviceProfile, root: Path, name: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tells a device how the service that uses a model is restarted and how one sees that it is well.

    Args:
        profile: The device.
        root: Directory of all its releases.
        name: Of the model; None is all that have no settings of their own.
        changes: Fields of `devices.board.release_service.Service`; what is not given stays as it is.

    Returns:
        As `service_settings`.

    Raises:
        DeviceError: The service can't be like this on the device; nothing was changed.
    """
    return _ask(profile, root, name, {"set": dict(changes)})


def forget_service(profile: DeviceProfile, root: Path, name: str | None) -> dict[str, Any]:
    """Removes what was set for a model, or for all; returns what is left as `service_settings`."""
    return _ask(profile, root, name, {"off": True})


def service_lines(services: Mapping[str, Any]) -> list[str]:
    """The settings in words, one service a line."""
    sections = {"every model": services["all"], **services["models"]}
    lines = [f"{name}: {_words(section)}" for name, section in sections.items() if section is not None]
    return lines or ["no service is set, so releases are not watched after a switch"]


def _words(section: Mapping[str, Any]) -> str:
    service = service_from(dict(section))
    restart = f"restart by `{shlex.join(service.restart)}`, " if service.restart else ""
    seen = service.url or f"`{shlex.join(service.check)}`"
    return f"{restart}up within {service.come_up_s:g} s and watched for {service.watch_s:g} s at {seen}"


def _ask(profile: DeviceProfile, root: Path, name: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    check_reachable(profile)
    asked = {"root": str(root), "name": name, **params}
    told: dict[str, Any] = ask_device(profile, "service", asked, None, releases_only=True)["services"]
    return told

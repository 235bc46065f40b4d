"""Ways to a device, one file each."""

from __future__ import annotations

from collections.abc import Callable

from devices.profile import DeviceProfile
from devices.transports.adb_device import open_adb
from devices.transports.base import Agent, Transport
from devices.transports.fake import FakeDevice
from devices.transports.local import LocalDevice
from devices.transports.ssh import SshDevice
from devices.transports.virtual import open_virtual

TRANSPORTS: dict[str, Callable[[DeviceProfile], Transport]] = {
    "fake": FakeDevice,
    "local": LocalDevice,
    "ssh": SshDevice,
    "adb": open_adb,
    "virtual": open_virtual,
}
"""By the `kind` of a profile's transport: those of `devices.transport_config.TransportConfig`, each once."""


def open_transport(profile: DeviceProfile) -> Transport:
    """The way to the device of a profile."""
    return TRANSPORTS[profile.transport.kind](profile)


__all__ = ["TRANSPORTS", "Agent", "Transport", "open_transport"]

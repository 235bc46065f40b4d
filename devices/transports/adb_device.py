"""The way to a phone: adb leads to it, and from there on all is as over SSH."""

from __future__ import annotations

from devices.profile import DeviceProfile
from devices.transport_config import AdbTransport
from devices.transports.adb import find_phone
from devices.transports.adb_client import default_python
from devices.transports.ssh import SshDevice


def open_adb(profile: DeviceProfile) -> SshDevice:
    """Finds the phone of a profile and returns the way to it, which stays that phone's when others are plugged in.

    Raises:
        DeviceError: There is no adb, no phone, or one that can't be used yet.
    """
    transport = profile.transport
    if not isinstance(transport, AdbTransport):
        raise TypeError(f"device '{profile.name}' has the transport '{transport.kind}', expected 'adb'")
    changes = {
        "transport": transport.model_copy(update={"serial": find_phone(transport)}),
        "python": profile.python or default_python(transport),
    }
    return SshDevice(profile.model_copy(update=changes))

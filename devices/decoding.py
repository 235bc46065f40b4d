"""What a device needs to decode an image file."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath

from devices.profile import DeviceProfile

PILLOW = "pillow"

_BY_NUMPY = frozenset({".ppm", ".npy"})
"""Suffixes of what the agent reads without a package, see `devices.board.end_to_end.find_decoder`."""


def with_decoder(profile: DeviceProfile, image: PurePath) -> DeviceProfile:
    """The device with Pillow among its packages where it takes that to decode an image, else as it is."""
    if image.suffix in _BY_NUMPY or PILLOW in profile.packages:
        return profile
    return profile.model_copy(update={"packages": (*profile.packages, PILLOW)})


def decoder_difference(decoder: str) -> str | None:
    """Why a device's decoder may give other pixels than this machine's; None where it gives the same.

    Args:
        decoder: As the device calls it, such as "Pillow 9.4.0".
    """
    name, _, there = decoder.partition(" ")
    if name != "Pillow":
        return None
    try:
        here = version(PILLOW)
    except PackageNotFoundError:
        return None
    if there.split(".")[0] == here.split(".")[0]:
        return None
    return f"decoded by Pillow {there}, and this machine has {here}: pixels of a JPEG may differ in their last bits"

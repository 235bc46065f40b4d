"""Where a board is, in one text: `[user@]host[:port]`."""

from __future__ import annotations

import re
from typing import Any

from devices.errors import ProfileError


def host_variable(name: str) -> str:
    """The environment variable that says where a device is, such as EDGESHIP_HOST_RASPBERRY_PI_4."""
    return "EDGESHIP_HOST_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


def parse_address(text: str, *, by: str) -> dict[str, Any]:
    """The parts of an address, by their names in `devices.transport_config.SshTransport`.

    Args:
        text: `host`, `user@host`, `host:port`, `user@host:port`; an IPv6 address with a port stands in brackets.
        by: Who says it, for the message.

    Raises:
        ProfileError: It is no address.
    """
    ipv6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?"
    match = re.fullmatch(
        rf"(?:(?P<user>[^@\s-][^@\s]*)@)?(?:\[(?P<bracketed>{ipv6})\]|(?P<name>[^@\s:\[\]-][^@\s:\[\]]*)|(?P<ipv6>{ipv6}))"
        r"(?::(?P<port>\d{1,5}))?",
        text,
    )
    if match is None or not 1 <= int(match["port"] or 1) <= 65535:
        raise ProfileError(f"{by} is {text!r}; expected [user@]host[:port], such as pi@10.0.0.7 or pi@board.local:2222")
    parts = {"host": match["bracketed"] or match["name"] or match["ipv6"]}
    parts |= {"user": match["user"]} if match["user"] else {}
    return parts | ({"port": int(match["port"])} if match["port"] else {})


def host_hint(name: str, host: str) -> str:
    """What a user does whose board is not found where the profile has it.

    Args:
        name: Of the profile.
        host: Where the board was looked for.
    """
    return (
        f"'{host}' is where {name} was looked for. Say where yours is: {host_variable(name)}=user@address in the "
        f"environment, an alias `Host {name}` in ~/.ssh/config, or a profile of your own with three lines: "
        f"`extends: {name}`, `name: my-board`, `transport: {{host: address, user: me}}`, given by its path"
    )

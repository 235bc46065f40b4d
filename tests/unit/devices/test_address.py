from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from devices.address import host_hint, host_variable, parse_address
from devices.errors import ProfileError


class Address(NamedTuple):
    text: str
    parts: dict[str, Any]


ADDRESSES = [
    Address("board.local", {"host": "board.local"}),
    Address("10.0.0.7", {"host": "10.0.0.7"}),
    Address("pi@10.0.0.7", {"host": "10.0.0.7", "user": "pi"}),
    Address("board:2222", {"host": "board", "port": 2222}),
    Address("me@board:22", {"host": "board", "user": "me", "port": 22}),
    Address("fe80::1", {"host": "fe80::1"}),
    Address("::1", {"host": "::1"}),
    Address("fe80::1%eth0", {"host": "fe80::1%eth0"}),
    Address("pi@[fe80::1]:2222", {"host": "fe80::1", "user": "pi", "port": 2222}),
    Address("[::1]", {"host": "::1"}),
]


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: address.text)
def test_addresses(address: Address) -> None:
    assert parse_address(address.text, by="--host") == address.parts


@pytest.mark.parametrize(
    "text", ["", "@a", "a@", "-oProxyCommand=x", "a b", "a@b@c", "a:", "a:0", "a:65536", "a:b", "-a@b", "me@-b"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ProfileError, match=r"EDGESHIP_HOST_A is .*; expected \[user@\]host\[:port\]"):
        parse_address(text, by="EDGESHIP_HOST_A")


def test_variables() -> None:
    assert host_variable("raspberry-pi-4") == "EDGESHIP_HOST_RASPBERRY_PI_4"
    assert host_variable("my.board_2") == "EDGESHIP_HOST_MY_BOARD_2"


def test_the_hint_names_all_ways() -> None:
    hint = host_hint("rock-5b", "rock-5b")
    for part in (
        "EDGESHIP_HOST_ROCK_5B=",
        "`Host rock-5b` in ~/.ssh/config",
        "`extends: rock-5b`",
        "transport: {host:",
    ):
        assert part in hint

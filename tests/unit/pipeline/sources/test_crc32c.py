from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.crc32c import crc32c, masked_crc32c


def bitwise_crc32c(data: bytes) -> int:
    """The definition, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Vector:
    id: str
    data: bytes
    crc: int


# RFC 3720, appendix B.4; "123456789" is the check value of the catalogue of CRC algorithms.
VECTORS = [
    Vector("zeros", bytes(32), 0x8A9136AA),
    Vector("ones", b"\xff" * 32, 0x62A8AB43),
    Vector("rising", bytes(range(32)), 0x46DD794E),
    Vector("falling", bytes(range(31, -1, -1)), 0x113FDB5C),
    Vector("check", b"123456789", 0xE3069283),
    Vector("nothing", b"", 0),
]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case.id)
def test_published_values(case: Vector) -> None:
    assert crc32c(case.data) == case.crc


@given(st.integers(0, 5000), st.integers(0, 2**32 - 1))
def test_every_length_agrees_with_the_definition(length: int, seed: int) -> None:
    data = bytes((seed * (place + 1) >> 7) % 256 for place in range(length))

    assert crc32c(data) == bitwise_crc32c(data)


def test_many_blocks_agree_with_the_definition() -> None:
    data = bytes(place * 7919 % 251 for place in range(140_000))

    assert crc32c(data) == bitwise_crc32c(data)


def test_the_mask_is_that_of_a_file_of_tensorflow() -> None:
    written = bytes.fromhex("0500000000000000eab2043e68656c6c6fbb1f1c19")

    assert masked_crc32c(written[:8]) == int.from_bytes(written[8:12], "little")
    assert masked_crc32c(b"hello") == int.from_bytes(written[17:], "little")

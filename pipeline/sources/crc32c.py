"""The checksum that guards TFRecord files: CRC-32C (RFC 3720, appendix B.4), masked.

The checksum of a block is the exclusive or of what each byte adds at its place in the block, so NumPy looks whole
blocks up in one table, and Python only joins the blocks.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
"""0x1EDC6F41 with its bits in reverse order."""

_MASK = 0xA282EAD8
_BLOCK_SIZE_BYTES = 1024
_BLOCKS_AT_ONCE = 64
_SHORT_SIZE_BYTES = 64


def masked_crc32c(data: bytes) -> int:
    """The checksum as TFRecord files store it: turned right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes."""
    places, (first, second, third, fourth), last = _tables()
    whole = len(data) // _BLOCK_SIZE_BYTES * _BLOCK_SIZE_BYTES
    blocks = np.frombuffer(data, np.uint8, whole).reshape(-1, _BLOCK_SIZE_BYTES)
    offsets = np.arange(_BLOCK_SIZE_BYTES, dtype=np.int32) * 256
    crc = 0xFFFFFFFF
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        looked_up = places.take(blocks[start : start + _BLOCKS_AT_ONCE] + offsets)
        for added in np.bitwise_xor.reduce(looked_up, axis=1).tolist():
            crc = first[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ fourth[crc >> 24] ^ added
    rest = data[whole:]
    if len(rest) > _SHORT_SIZE_BYTES:
        rest = bytes(a ^ b for a, b in zip(rest[:4], crc.to_bytes(4, "little"), strict=True)) + rest[4:]
        indices = np.frombuffer(rest, np.uint8) + offsets[-len(rest) :]
        crc = int(np.bitwise_xor.reduce(places.take(indices)))
    else:
        for byte in rest:
            crc = last[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _tables() -> tuple[NDArray[np.uint32], list[list[int]], list[int]]:
    """What each byte adds at each place of a block; the first four places, which the register is added to; the last."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, last >> 1 ^ np.uint32(_POLYNOMIAL), last >> 1)
    places = np.empty((_BLOCK_SIZE_BYTES, 256), dtype=np.uint32)
    places[-1] = last
    for place in range(_BLOCK_SIZE_BYTES - 2, -1, -1):
        after = places[place + 1]
        places[place] = last[after & 255] ^ after >> 8
    return places.ravel(), places[:4].tolist(), last.tolist()

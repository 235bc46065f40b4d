"""Walks the wire format of protocol buffers without knowing the messages.

It tells an ONNX file from another one, and finds the files that hold its weights, at the cost of the fields that it
steps over. See "Encoding" in the Protocol Buffers documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64


class WireError(ValueError):
    """The bytes are no protocol buffer."""


class Field(NamedTuple):
    """One field: its number, its wire type, and where its content begins and ends."""

    number: int
    wire: int
    begin: int
    end: int


def fields(data: Any, begin: int, end: int) -> Iterator[Field]:
    """Yields the fields of one message.

    Args:
        data: What gives bytes by index: bytes or a memory map.
        begin: First byte of the message.
        end: Behind its last byte.

    Raises:
        WireError: A field is malformed or reaches beyond the message.
    """
    position = begin
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        start = position
        if wire == VARINT:
            _, position = _varint(data, position, end)
        elif wire == BYTES:
            length, start = _varint(data, position, end)
            position = start + length
        elif wire in {FIXED64, FIXED32}:
            position += 8 if wire == FIXED64 else 4
        else:
            raise WireError(f"byte {start} begins a field of the unknown type {wire}")
        if number == 0:
            raise WireError(f"byte {start} begins a field with the number 0")
        if position > end:
            raise WireError(f"field {number} reaches to byte {position}, but there are only {end}")
        yield Field(number, wire, start, position)


def messages(data: Any, begin: int, end: int, path: Mapping[int, Any], *, depth: int = 0) -> Iterator[tuple[int, int]]:
    """Yields where the messages lie that a tree of field numbers leads to.

    Args:
        data: As of `fields`.
        begin: First byte of the outer message.
        end: Behind its last byte.
        path: By field number, a function that gives the next such mapping, or None for a message to yield.
        depth: How deep the outer message lies.

    Raises:
        WireError: As of `fields`, or messages lie in each other without end.
    """
    if depth > _MAX_DEPTH:
        raise WireError(f"messages lie in each other more than {_MAX_DEPTH} times")
    for field in fields(data, begin, end):
        if field.wire != BYTES or field.number not in path:
            continue
        following = path[field.number]
        if following is None:
            yield field.begin, field.end
        else:
            yield from messages(data, field.begin, field.end, following(), depth=depth + 1)


def _varint(data: Any, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise WireError(f"the data ends at byte {end}, within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError(f"byte {position} belongs to a number of more than 10 bytes")

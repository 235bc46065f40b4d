from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.sources.decode import decode_image


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def palette_image(*, transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    return encode(image, "PNG", **({"transparency": b"\x00\xff"} if transparent else {}))


@dataclass(frozen=True)
class Pixel:
    id: str
    data: bytes
    mode: str
    first_pixel: tuple[int, int, int]
    tolerance: int = 0


PIXELS = [
    Pixel("rgb", encode(Image.new("RGB", (2, 1), (1, 2, 3)), "PNG"), "RGB", (1, 2, 3)),
    Pixel("greyscale_jpeg", encode(Image.new("L", (8, 8), 90), "JPEG"), "L", (90, 90, 90), tolerance=1),
    Pixel("one_bit", encode(Image.new("1", (2, 1), 1), "PNG"), "1", (255, 255, 255)),
    Pixel("grey_with_alpha", encode(Image.new("LA", (2, 1), (50, 255)), "PNG"), "LA", (50, 50, 50)),
    Pixel("transparent", encode(Image.new("RGBA", (2, 1), (9, 9, 9, 0)), "PNG"), "RGBA", (255, 255, 255)),
    Pixel("opaque", encode(Image.new("RGBA", (2, 1), (9, 8, 7, 255)), "PNG"), "RGBA", (9, 8, 7)),
    Pixel(
        "half_transparent",
        encode(Image.new("RGBA", (2, 1), (0, 0, 0, 128)), "PNG"),
        "RGBA",
        (127, 127, 127),
        tolerance=1,
    ),
    Pixel("palette", palette_image(transparent=False), "P", (10, 20, 30)),
    Pixel("palette_transparent", palette_image(transparent=True), "P", (255, 255, 255)),
    Pixel("grey_16_bit", png(1, 1, 16, 0, b"\x00\x12\xff"), "I;16", (0x12, 0x12, 0x12)),
    Pixel("rgb_16_bit", png(1, 1, 16, 2, b"\x00\x12\xff\x34\xff\x56\xff"), "RGB", (0x12, 0x34, 0x56)),
    Pixel(
        "cmyk_jpeg",
        encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        "CMYK",
        (255, 0, 0),
        tolerance=3,
    ),
]


@pytest.mark.parametrize("case", PIXELS, ids=lambda case: case.id)
def test_every_mode_becomes_rgb(case: Pixel) -> None:
    decoded = decode_image(case.data)

    assert decoded.mode == case.mode
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape[2] == 3
    difference = decoded.pixels[0, 0].astype(int) - np.array(case.first_pixel)
    assert np.abs(difference).max() <= case.tolerance


def quadrants(orientation: int | None) -> bytes:
    """Black, except for the upper left quarter of what is stored: 32 wide, 16 high."""
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    return encode(image, "JPEG", exif=exif)


@dataclass(frozen=True)
class Orientation:
    id: str
    value: int | None
    shape: tuple[int, int]
    white_quarter: tuple[int, int]
    """Row and column, 0 or 1."""


ORIENTATIONS = [
    Orientation("none", None, (16, 32), (0, 0)),
    Orientation("upright", 1, (16, 32), (0, 0)),
    Orientation("upside_down", 3, (16, 32), (1, 1)),
    Orientation("turn_clockwise", 6, (32, 16), (0, 1)),
    Orientation("turn_counterclockwise", 8, (32, 16), (1, 0)),
]


@pytest.mark.parametrize("case", ORIENTATIONS, ids=lambda case: case.id)
def test_the_orientation_of_a_camera_is_applied(case: Orientation) -> None:
    pixels = decode_image(quadrants(case.value)).pixels

    assert pixels.shape[:2] == case.shape
    height, width = case.shape
    quarters = pixels.mean(axis=2).reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == case.white_quarter
    assert quarters.max() > 200


def test_broken_exif_data_is_ignored() -> None:
    data = encode(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00")

    assert decode_image(data).pixels.shape == (8, 8, 3)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Broken:
    id: str
    data: bytes
    reason: str


BROKEN = [
    Broken("empty", b"", "the file is empty"),
    Broken("text", b"not an image", "not a JPEG or PNG"),
    Broken("another_format", encode(NOISE, "BMP"), "not a JPEG or PNG"),
    Broken("truncated_jpeg", encode(NOISE, "JPEG")[:-1000], "truncated"),
    Broken("truncated_png", encode(NOISE, "PNG")[:-1000], "truncated"),
    Broken("header_alone", encode(NOISE, "JPEG")[:20], ""),
    Broken("bomb", png(20_000, 20_000, 8, 0, b""), "more pixels than the limit"),
    Broken("smaller_bomb", png(10_000, 10_000, 8, 0, b""), "more pixels than the limit"),
    Broken("damaged_png", png(64, 64, 8, 2, b"\x09" * 10), ""),
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.id)
def test_what_cannot_be_decoded_is_an_error_with_a_reason(case: Broken) -> None:
    with pytest.raises(DataError) as caught:
        decode_image(case.data)

    assert case.reason in caught.value.message
    assert caught.value.message

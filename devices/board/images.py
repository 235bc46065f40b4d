"""From the bytes of an image to pixels, by the rules that the model was trained and judged with.

A binary PPM needs numpy alone. JPEG and PNG need Pillow: 16-bit channels keep their high byte, transparency is
composited on white, the orientation that a camera stored is applied, colour profiles are not.
"""

from __future__ import annotations

import importlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np

from .end_to_end import parse_ppm
from .errors import AgentError

Array = np.ndarray

MAX_PIXELS = 40_000_000

_FORMATS = ("JPEG", "PNG")
_BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Warning),
)
"""What Pillow's decoders raise for bytes they can't use; a warning where warnings are errors."""


class ImageRejected(AgentError):
    """The bytes are no image that can be used here; the message says what was expected."""


def read_image(path: str) -> Array[Any, Any]:
    """Decodes one file: .npy (uint8 `(height, width, 3)`), or what `decode_image` takes.

    Raises:
        ImageRejected: It can't be read or decoded.
        AgentError: It needs Pillow, which is not installed.
    """
    try:
        if path.endswith(".npy"):
            array: Array[Any, Any] = np.load(path, allow_pickle=False)
            return array
        with open(path, "rb") as stream:
            data = stream.read()
    except (OSError, ValueError, EOFError) as error:
        raise ImageRejected(f"{path} can't be read: {error}") from error
    try:
        return decode_image(data)
    except ImageRejected as error:
        raise ImageRejected(f"{path} can't be used: {error}") from error


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Array[Any, Any]:
    """Decodes a JPEG, a PNG or a binary PPM.

    Returns:
        uint8 `(height, width, 3)`, RGB.

    Raises:
        ImageRejected: The bytes are none of these, end too early, or hold more than `max_pixels`.
        AgentError: It needs Pillow, which is not installed.
    """
    if data[:2] == b"P6":
        try:
            return parse_ppm(data)
        except ValueError as error:
            raise ImageRejected(str(error)) from error
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        raise ImageRejected("the bytes are no JPEG, PNG or binary PPM")
    return _decode_with_pillow(data, max_pixels)


def _decode_with_pillow(data: bytes, max_pixels: int) -> Array[Any, Any]:
    try:
        pillow = importlib.import_module("PIL.Image")
        operations = importlib.import_module("PIL.ImageOps")
    except ImportError as error:
        raise AgentError(
            "JPEG and PNG need Pillow, which this device lacks: install it (on Debian: sudo apt install python3-pil), "
            "or give a binary PPM"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with pillow.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ImageRejected(f"the image has {width} x {height} pixels; expected {max_pixels} at most")
                image.load()
                return _to_rgb(pillow, _upright(operations, image))
        except (*_BROKEN, pillow.DecompressionBombError) as error:
            raise ImageRejected(f"the image can't be decoded: {error or type(error).__name__}") from error


def _upright(operations: Any, image: Any) -> Any:
    try:
        return operations.exif_transpose(image)
    except _BROKEN:
        return image


def _to_rgb(pillow: Any, image: Any) -> Array[Any, Any]:
    if image.mode.startswith("I"):
        high_byte = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(high_byte[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))

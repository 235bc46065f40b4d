"""From the bytes of an image file to RGB.

What is done with pixels that are not 8-bit RGB:

- greyscale is repeated over the three channels;
- 16-bit channels keep their high byte (`value >> 8`), for greyscale as for colour;
- transparency, also that of a palette, is composited on white, the colour such pictures are usually shown on;
- CMYK is converted by Pillow's plain formula; colour profiles are not applied;
- the orientation that a camera stored (EXIF tag 0x0112) is applied; broken EXIF data is ignored.

Only JPEG and PNG are decoded, whatever a file is called: fewer decoders see bytes that nobody vouches for.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError
from pipeline.sources.base import DecodedImage, Pixels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_FILE_SIZE_BYTES = 256 * 2**20

_FORMATS = ("JPEG", "PNG")
_BACKGROUND = (255, 255, 255, 255)
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise for bytes they can't use."""


def decode_image(data: bytes) -> DecodedImage:
    """Decodes one JPEG or PNG file.

    Raises:
        DataError: If the bytes are no JPEG or PNG, end too early, or describe a decompression bomb (more than
            `PIL.Image.MAX_IMAGE_PIXELS` pixels). The message is the reason alone; the caller knows the name.
    """
    if not data:
        raise DataError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.load()
                return DecodedImage(pixels=_to_rgb(_upright(image)), mode=image.mode)
        except UnidentifiedImageError as error:
            raise DataError("not a JPEG or PNG image") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DataError(f"more pixels than the limit of {Image.MAX_IMAGE_PIXELS}") from error
        except _DECODER_ERRORS as error:
            raise DataError(str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        return image


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        high_byte = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(high_byte[:, :, np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))

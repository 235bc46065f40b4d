"""Images that are held as arrays."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.base import DecodedImage


def array_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's dtype, shape and pixel bytes in C order."""
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def array_image(image: NDArray[np.uint8]) -> DecodedImage:
    """An image `(height, width)`, `(height, width, 1)` or `(height, width, 3)` as RGB."""
    if image.ndim == 3 and image.shape[2] == 3:
        return DecodedImage(pixels=image, mode="RGB")
    height, width = image.shape[:2]
    return DecodedImage(pixels=np.repeat(image.reshape(height, width, 1), 3, axis=2), mode="L")

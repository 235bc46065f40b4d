"""Images that are held as arrays."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.base import DecodedImage, Sample, Split


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one split.

    Args:
        name: Unique in the data set.
        split: None in a data set without splits.
        images: `(count, height, width)`, `(count, height, width, 1)` or `(count, height, width, 3)`, uint8.
        labels: `(count,)`.
    """

    name: str
    split: Split | None
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def array_samples(batch: Batch, names: Mapping[int, str]) -> Iterator[Sample]:
    """The samples of a batch, called by its name and their places; `names` are those of the classes."""
    width = len(str(len(batch.images)))
    for index, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
        yield Sample(
            name=f"{batch.name}/{index:0{width}d}",
            split=batch.split,
            label=names[int(label)],
            digest=array_digest(image),
            decode=functools.partial(array_image, image),
        )


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

"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import metadata
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.arrays import array_digest, array_image
from pipeline.sources.base import Problem, Reading, Sample, SourceConfig

_LARGEST_VALUE = 16


class DigitsConfig(SourceConfig):
    """1,797 greyscale images of 8x8 pixels in ten classes, without a download.

    The data set has no splits of its own, so all are drawn. Its values 0..16 become
    `floor(value * 255 / 16 + 0.5)`.

    E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
    (the test part).
    """

    tools: ClassVar[tuple[str, ...]] = ("scikit-learn",)

    source: Literal["digits"]

    def fingerprint(self) -> str:
        """The version of the package that carries the images."""
        return f"scikit-learn {metadata.version('scikit-learn')} digits"

    def read(self) -> Reading:
        """Starts a pass over all samples."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = scale_to_bytes(digits.images)
        return Reading(
            classes=tuple(str(name) for name in digits.target_names),
            num_images=len(images),
            items=_samples(images, digits.target),
        )


def scale_to_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """From whole numbers 0..16 to 0..255, halves rounded up."""
    whole = values.astype(np.int64)
    return ((whole * 255 * 2 + _LARGEST_VALUE) // (2 * _LARGEST_VALUE)).astype(np.uint8)


def _samples(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Iterator[Sample | Problem]:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield Sample(
            name=f"digits/{index:04d}",
            split=None,
            label=str(label),
            digest=array_digest(image),
            decode=functools.partial(array_image, image),
        )

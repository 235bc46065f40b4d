"""Applies drawn changes to one image with Pillow."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from pipeline.training.augmentation.draws import NOISE_PERIOD, Draws, Mixing, noise_table
from pipeline.training.augmentation.operations import FILL, OPERATIONS, WARPS

Pixels = npt.NDArray[np.uint8]

_noise = functools.cache(noise_table)


def change_colors(image: Image.Image, matrix: npt.NDArray[np.float32]) -> Image.Image:
    """Returns the image under a linear map (3, 4) of its colors."""
    return image.convert("RGB", tuple(matrix.ravel().tolist()))


def _solarize_add(image: Image.Image, addition: int) -> Image.Image:
    table = [min(255, level + addition) if level < 128 else level for level in range(256)]
    return image.point(table * 3)


_APPLIED: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "solarize_add": lambda image, addition: _solarize_add(image, int(addition)),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}


def apply_operation(image: Image.Image, number: int, argument: float, matrix: npt.NDArray[np.float32]) -> Image.Image:
    """Returns the image after one of RandAugment's operations.

    Args:
        image: RGB.
        number: Of `operations.OPERATIONS`.
        argument: Of `operations.arguments`.
        matrix: (6,), used by warps.
    """
    name = OPERATIONS[number]
    if name == "identity":
        return image
    if name in WARPS:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix.tolist(),
            resample=Image.Resampling.BILINEAR,
            fillcolor=(FILL, FILL, FILL),
        )
    return _APPLIED[name](image, argument)


def change_pixels(image: Image.Image, draws: Draws, index: int) -> Image.Image:
    """Returns the image after the change of its colors and RandAugment.

    Args:
        image: RGB.
        draws: Of the batch.
        index: The image's place in the batch.
    """
    if draws.color is not None:
        image = change_colors(image, draws.color[index])
    if draws.numbers is not None and draws.arguments is not None and draws.matrices is not None:
        steps = zip(draws.numbers[index].tolist(), draws.arguments[index].tolist(), draws.matrices[index], strict=True)
        for number, argument, matrix in steps:
            image = apply_operation(image, number, argument, matrix)
    return image


def erase(image: Pixels, box: npt.NDArray[np.int32], noise: int) -> None:
    """Fills a box of the image (height, width, 3) with noise, in place.

    Args:
        image: Is written to.
        box: (top, left, height, width).
        noise: Where in the noise the image begins.
    """
    top, left, tall, wide = box.tolist()
    if tall and wide:
        rows, columns = np.ogrid[top : top + tall, left : left + wide]
        first = (rows * image.shape[1] + columns) * 3 + noise
        image[top : top + tall, left : left + wide] = _noise()[(first[..., np.newaxis] + np.arange(3)) % NOISE_PERIOD]


def mix(images: Pixels, mixing: Mixing) -> None:
    """Mixes each image with its neighbor, in place.

    Args:
        images: (images, height, width, 3), an even number of images.
        mixing: How.
    """
    if mixing.weight != 1:
        weight = np.float32(mixing.weight)
        for index in range(0, len(images), 2):
            first, second = images[index].astype(np.float32), images[index + 1].astype(np.float32)
            change = (second - first) * (1 - weight)
            images[index] = first + change + np.float32(0.5)
            images[index + 1] = second - change + np.float32(0.5)
    top, left, tall, wide = mixing.box
    if tall and wide:
        part = images[:, top : top + tall, left : left + wide]
        part[0::2], part[1::2] = part[1::2].copy(), part[0::2].copy()

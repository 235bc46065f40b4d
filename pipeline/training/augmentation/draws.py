"""All random numbers of a batch, drawn on the host, so that the loader and the accelerator do the same with them.

The same numbers are drawn whatever the config says: switching one change off leaves the others as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.training.augmentation import operations
from pipeline.training.config import AugmentationConfig

ATTEMPTS = 10
"""How many boxes are drawn; the first that fits is taken (Szegedy et al. 2015 in the usual implementations)."""

NOISE_PERIOD = 1 << 16

_MAX_OPERATIONS = 4
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's conversion to grey

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Draws:
    """What is drawn for the images of a batch; all arrays have the images first.

    Attributes:
        crop: (images, ATTEMPTS, 4) in [0, 1): area, ratio, top and left of boxes to crop; None without a crop.
        shift: (images, 2) pixels down and right that the image's content moves up and left; None without.
        flip: (images,) whether the image is mirrored; None without.
        color: (images, 3, 4) the linear map of brightness, contrast and saturation; None without.
        numbers: (images, operations) RandAugment's operations; None without RandAugment.
        arguments: (images, operations) their arguments.
        matrices: (images, operations, 6) their warps.
        erase: (images, 4) top, left, height and width of what is erased; (0, 0, 0, 0) is nothing. None without.
        noise: (images,) where in the noise the filling begins.
    """

    crop: npt.NDArray[np.float64] | None = None
    shift: Integers | None = None
    flip: npt.NDArray[np.bool_] | None = None
    color: Floats | None = None
    numbers: Integers | None = None
    arguments: Floats | None = None
    matrices: Floats | None = None
    erase: Integers | None = None
    noise: Integers | None = None

    def of(self, images: slice) -> Draws:
        """Returns the draws of a part of the batch."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Draws(**{name: None if value is None else value[images] for name, value in values.items()})

    def accelerator_inputs(self) -> dict[str, npt.NDArray[Any]]:
        """Returns what `accelerator.transform` takes besides the images, which are cropped, shifted and mirrored."""
        names = ("color", "numbers", "arguments", "matrices", "erase", "noise")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed: every image with its neighbor, the second with the first, the fourth with the third.

    As the order of an epoch is random, its neighbor is a random partner. A pair never lies apart when the batch is
    cut in blocks of even length, so neither processes nor devices have to exchange images.

    Attributes:
        weight: Share of the image itself in each pixel (mixup).
        box: (top, left, height, width) taken from the neighbor (cutmix); (0, 0, 0, 0) is nothing.
        share: Share of the image's own label.
    """

    weight: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    share: float = 1.0

    def accelerator_inputs(self, count: int) -> dict[str, npt.NDArray[Any]]:
        """Returns what `accelerator.transform` takes, once for each of `count` images."""
        return {
            "mix_weight": np.full(count, self.weight, np.float32),
            "mix_box": np.tile(np.asarray(self.box, np.int32), (count, 1)),
        }


def draw_images(
    config: AugmentationConfig, count: int, size: tuple[int, int], *, strength: float, rng: np.random.Generator
) -> Draws:
    """Draws the changes of `count` images, all of which are (height, width) = `size` after the crop.

    Args:
        config: What is changed.
        count: Images.
        size: (height, width).
        strength: Scales RandAugment's magnitude, the range of colors and the probability of erasing.
        rng: Is advanced by as much whatever the config says.
    """
    height, width = size
    crop = rng.random((count, ATTEMPTS, 4))
    shift = rng.random((count, 2))
    flip = rng.random(count)
    color = 2 * rng.random((count, 3)) - 1
    choice = rng.random((count, _MAX_OPERATIONS))
    applied = rng.random((count, _MAX_OPERATIONS))
    signs = np.where(rng.random((count, _MAX_OPERATIONS)) < 0.5, -1.0, 1.0)
    spread = rng.standard_normal((count, _MAX_OPERATIONS))
    erased = rng.random(count)
    erasing = rng.random((count, ATTEMPTS, 4))
    noise = rng.integers(0, NOISE_PERIOD, count, dtype=np.int32)

    drawn: dict[str, Any] = {}
    if config.crop is not None:
        drawn["crop"] = crop
    if config.shift:
        reach = np.floor(config.shift * np.array([height, width]))
        drawn["shift"] = (np.floor(shift * (2 * reach + 1)) - reach).astype(np.int32)
    if config.flip:
        drawn["flip"] = flip < 0.5
    if config.brightness or config.contrast or config.saturation:
        ranges = strength * np.array([config.brightness, config.contrast, config.saturation])
        drawn["color"] = _color_maps(color * ranges)
    if config.rand_augment is not None:
        settings = config.rand_augment
        numbers = 1 + np.floor(choice * (len(operations.OPERATIONS) - 1)).astype(np.int32)
        numbers = np.where(applied < settings.probability, numbers, 0)[:, : settings.num_ops]
        levels = strength * settings.magnitude + spread * settings.magnitude_std
        levels = np.clip(levels, 0, max(10.0, settings.magnitude))[:, : settings.num_ops]
        values = operations.arguments(numbers, levels, signs[:, : settings.num_ops])
        drawn |= {"numbers": numbers, "arguments": values, "matrices": operations.matrices(numbers, values, size)}
    if config.erase:
        boxes = _erased_boxes(erasing, height, width)
        is_erased = np.less(erased, strength * config.erase).reshape(-1, 1)
        drawn["erase"] = np.where(is_erased, boxes, 0).astype(np.int32)
        drawn["noise"] = noise
    return Draws(**drawn)


def draw_mixing(
    config: AugmentationConfig, size: tuple[int, int], *, strength: float, rng: np.random.Generator
) -> Mixing:
    """Draws how a batch is mixed: by mixup or cutmix, with equal odds where both are given, or not at all.

    Args:
        config: Gives the alphas and the probability.
        size: (height, width) of the images.
        strength: Scales the alphas.
        rng: Is used for this batch alone.
    """
    height, width = size
    is_mixed, which, center_y, center_x = rng.random(4)
    if is_mixed >= config.mix_probability or strength == 0 or not (config.mixup or config.cutmix):
        return Mixing()
    takes_cutmix = config.cutmix > 0 and (which < 0.5 or not config.mixup)
    alpha = strength * (config.cutmix if takes_cutmix else config.mixup)
    share = float(rng.beta(alpha, alpha))
    if not takes_cutmix:
        return Mixing(weight=share, share=share)
    # Yun et al. 2019, equation 2: the box is cut off at the border, and the label follows what is left of it.
    side = math.sqrt(1 - share)
    top, bottom = _span(height, side, center_y)
    left, right = _span(width, side, center_x)
    box = (top, left, bottom - top, right - left)
    return Mixing(box=box, share=1 - box[2] * box[3] / (height * width))


def _span(length: int, share: float, center: float) -> tuple[int, int]:
    half, middle = int(length * share) / 2, int(length * center)
    return max(0, int(middle - half)), min(length, int(middle + half))


def _color_maps(changes: npt.NDArray[np.float64]) -> Floats:
    """Returns (images, 3, 4) maps of (red, green, blue, 1) for changes of brightness, contrast and saturation.

    Contrast is about the middle grey 127.5, brightness adds a share of 255, and saturation blends with the grey of
    the result, rounded once at the end.
    """
    offset, gain, saturation = 255 * changes[:, 0], 1 + changes[:, 1], 1 + changes[:, 2]
    blend = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * _LUMA
    maps = np.empty((len(changes), 3, 4))
    maps[:, :, :3] = gain[:, None, None] * blend
    maps[:, :, 3] = (127.5 * (1 - gain) + offset)[:, None]  # the rows of a blend sum up to one
    return maps.astype(np.float32)


def _erased_boxes(drawn: npt.NDArray[np.float64], height: int, width: int) -> Integers:
    """Returns (images, 4) boxes of Zhong et al. 2020, section 3: 2 to 40 % of the area, sides of 0.3 to 1 / 0.3."""
    area = (0.02 + drawn[..., 0] * (0.4 - 0.02)) * height * width
    ratio = np.exp((2 * drawn[..., 1] - 1) * math.log(1 / 0.3))
    tall, wide = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
    row, first = np.arange(len(drawn)), fits.argmax(axis=1)
    tall, wide = tall[row, first], wide[row, first]
    top = np.floor(drawn[row, first, 2] * (height - tall + 1))
    left = np.floor(drawn[row, first, 3] * (width - wide + 1))
    boxes = np.stack([top, left, tall, wide], axis=1)
    return np.where(np.any(fits, axis=1, keepdims=True), boxes, 0).astype(np.int32)


def crop_box(
    drawn: npt.NDArray[np.float64], image: tuple[int, int], *, min_area: float, max_ratio: float
) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of a random crop of an image: an area and a ratio of its sides.

    Where no attempt fits, it is the largest box in the middle whose ratio is allowed.

    Args:
        drawn: (ATTEMPTS, 4) in [0, 1).
        image: (height, width) of the image.
        min_area: Smallest share of the area; the largest is all of it.
        max_ratio: Largest ratio of the sides; it is drawn evenly on a log scale.
    """
    height, width = image
    log_ratio = math.log(max_ratio)
    for area, ratio, top, left in drawn.tolist():
        pixels = height * width * (min_area + area * (1 - min_area))
        aspect = math.exp((2 * ratio - 1) * log_ratio)
        wide, tall = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            x, y = int(left * (width - wide + 1)), int(top * (height - tall + 1))
            return x, y, x + wide, y + tall
    wide, tall = min(width, round(height * max_ratio)), min(height, round(width * max_ratio))
    x, y = (width - wide) // 2, (height - tall) // 2
    return x, y, x + wide, y + tall


def noise_table() -> npt.NDArray[np.uint8]:
    """Returns (NOISE_PERIOD,) even noise that erased boxes are filled from, the same in every process."""
    return np.random.default_rng(0).integers(0, 256, NOISE_PERIOD, dtype=np.uint8)

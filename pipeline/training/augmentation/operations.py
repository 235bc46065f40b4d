"""RandAugment's operations and what their magnitude means.

Sets of operations and scales differ between implementations. This is the set of Cubuk et al. 2020 (RandAugment,
section 3) without the identity, with solarize_add as in the authors' code, and with the "increasing" scale that timm
made common (`rand-m9-mstd0.5-inc1`): every operation changes an image the more, the larger the magnitude. An operation
is left out with a probability instead of drawing an identity. Of a level m (10 is the usual scale's end; beyond it
the values go on in a line):

| operation | argument |
|---|---|
| auto_contrast, equalize, invert | none |
| rotate | ± 3 m degrees about the center |
| posterize | 4 - floor(0.4 m) bits are kept, at least one (timm's go down to none, a black image) |
| solarize | pixels from 256 - floor(25.6 m) on are inverted |
| solarize_add | floor(11 m) is added to pixels below 128 |
| color, contrast, brightness, sharpness | blended with the degenerate image by a factor 1 ± 0.09 m, at least 0.1 |
| shear_x, shear_y | ± 0.03 m |
| translate_x, translate_y | ± 0.045 m of the side |

What a warp uncovers is filled with mean grey, as in the papers' code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

OPERATIONS = (
    "identity",
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""An operation's number is its place; 0 leaves the image as it is and is never drawn."""

NUMBERS: dict[str, int] = {name: number for number, name in enumerate(OPERATIONS)}

WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")

FILL = 128
"""Grey level of what a warp uncovers."""

_SIGNED_STEPS = {  # Argument at level 1, whose sign is drawn.
    "rotate": 3.0,
    "shear_x": 0.03,
    "shear_y": 0.03,
    "translate_x": 0.045,
    "translate_y": 0.045,
}


def arguments(
    numbers: npt.NDArray[np.int32], levels: npt.NDArray[np.float64], signs: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Returns the operations' arguments.

    Args:
        numbers: Of operations, any shape.
        levels: Magnitudes, of the same shape, from 0.
        signs: 1 or -1, of the same shape, for operations that go either way.

    Returns:
        float32 of the same shape: degrees, bits, a threshold, an addition, a factor, a shear or a share of the side;
        0 for an operation without an argument.
    """
    values = np.zeros(numbers.shape, np.float64)
    for name, step in _SIGNED_STEPS.items():
        values = np.where(numbers == NUMBERS[name], step * levels * signs, values)
    values = np.where(numbers == NUMBERS["posterize"], np.maximum(1, 4 - np.floor(0.4 * levels)), values)
    values = np.where(numbers == NUMBERS["solarize"], np.maximum(0, 256 - np.floor(25.6 * levels)), values)
    values = np.where(numbers == NUMBERS["solarize_add"], np.floor(11 * levels), values)
    factors = np.maximum(0.1, 1 + 0.09 * levels * signs)
    for name in ("color", "contrast", "brightness", "sharpness"):
        values = np.where(numbers == NUMBERS[name], factors, values)
    return values.astype(np.float32)


def matrices(
    numbers: npt.NDArray[np.int32], values: npt.NDArray[np.float32], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Returns the warps as affine maps from a place in the result to the place in the image it is taken from.

    Args:
        numbers: Of operations, any shape.
        values: Their arguments, of the same shape.
        size: (height, width) of the images.

    Returns:
        (*shape, 6) float32 (a, b, c, d, e, f) as `PIL.Image.transform` takes them: x' = a x + b y + c and
        y' = d x + e y + f, in pixels; the identity for an operation that is no warp.
    """
    height, width = size
    amount = values.astype(np.float64)

    def of(name: str) -> npt.NDArray[np.float64]:
        return np.where(numbers == NUMBERS[name], amount, 0.0)

    radians = np.deg2rad(of("rotate"))
    cosine, sine = np.cos(radians), np.sin(radians)
    across, down = sine + of("shear_x"), -sine + of("shear_y")
    # A rotation keeps the center where it is, a shear the first row or column.
    to_left = width / 2 * (1 - cosine) - height / 2 * sine
    to_top = height / 2 * (1 - cosine) + width / 2 * sine
    return np.stack(
        [
            cosine,
            across,
            to_left + of("translate_x") * width,
            down,
            cosine,
            to_top + of("translate_y") * height,
        ],
        axis=-1,
    ).astype(np.float32)

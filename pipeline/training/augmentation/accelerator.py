"""Applies drawn changes to a batch within the training step, with the results of Pillow.

Pure functions of the images and the draws in `keras.ops`, on whatever backend Keras runs. Shapes are static, and each
image is handled by itself (a batch may lie on several devices). A batch goes through all kinds of operations whatever
was drawn, because each of its images has another one: a warp, a look-up table and a blend, each of which leaves the
image as it is where its operation was not drawn.

Pixels are float32 that hold whole numbers. Pillow cuts off what is behind the point; here too, so both agree but for
rounding in the last bit, which is one level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.training.augmentation.draws import NOISE_PERIOD, noise_table
from pipeline.training.augmentation.operations import FILL, NUMBERS

Tensor = Any


def transform(inputs: Mapping[str, Tensor]) -> Tensor:
    """Changes a batch of images as drawn: colors, RandAugment, erasing, mixing.

    Args:
        inputs: "image" uint8 (batch, height, width, 3), and the draws of `Draws.accelerator_inputs` and
            `Mixing.accelerator_inputs`. For mixing, the batch is even.

    Returns:
        uint8 (batch, height, width, 3); the images themselves where nothing is drawn.
    """
    from keras import ops

    if len(inputs) == 1:
        return inputs["image"]
    images = ops.cast(inputs["image"], "float32")
    if "color" in inputs:
        images = change_colors(images, inputs["color"])
    if "numbers" in inputs:
        for slot in range(inputs["numbers"].shape[1]):
            images = apply_operations(
                images, inputs["numbers"][:, slot], inputs["arguments"][:, slot], inputs["matrices"][:, slot]
            )
    if "erase" in inputs:
        images = erase(images, inputs["erase"], inputs["noise"])
    if "mix_weight" in inputs:
        images = mix(images, inputs["mix_weight"], inputs["mix_box"])
    return ops.cast(images, "uint8")


def change_colors(images: Tensor, matrices: Tensor) -> Tensor:
    """Maps the colors of each image (batch, height, width, 3) by its matrix (batch, 3, 4)."""
    from keras import ops

    maps = matrices[:, None, None]
    # Written out, because a matrix product may be rounded to fewer bits on an accelerator.
    mapped = (
        maps[..., 0] * images[..., 0:1] + maps[..., 1] * images[..., 1:2] + maps[..., 2] * images[..., 2:3]
    ) + maps[..., 3]
    return ops.floor(ops.clip(mapped + 0.5, 0.0, 255.0))


def apply_operations(images: Tensor, numbers: Tensor, arguments: Tensor, matrices: Tensor) -> Tensor:
    """Applies one of RandAugment's operations to each image.

    Args:
        images: float32 (batch, height, width, 3), whole numbers.
        numbers: int32 (batch,) of `operations.OPERATIONS`.
        arguments: float32 (batch,).
        matrices: float32 (batch, 6).
    """
    from keras import ops

    def drawn(*names: str) -> Tensor:
        chosen = numbers == NUMBERS[names[0]]
        for name in names[1:]:
            chosen = ops.logical_or(chosen, numbers == NUMBERS[name])
        return chosen[:, None, None, None]

    warps = drawn("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    changed = ops.where(warps, warp(images, matrices), images)
    tables = look_up_tables(images, numbers, arguments)
    changed = ops.where(
        ops.logical_or(warps, drawn("identity", "color", "sharpness")), changed, look_up(images, tables)
    )
    factors = arguments[:, None, None, None]
    changed = ops.where(drawn("color"), blend(grey(images)[..., None], images, factors), changed)
    return ops.where(drawn("sharpness"), blend(smooth(images), images, factors), changed)


def blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """Returns first + factor (second - first) as pixels, beyond the two where the factor is greater than one."""
    from keras import ops

    return ops.floor(ops.clip(first + factor * (second - first), 0.0, 255.0))


def grey(images: Tensor) -> Tensor:
    """Returns (batch, height, width) luma of ITU-R BT.601 in Pillow's fixed point of 16 bits."""
    from keras import ops

    levels = ops.cast(images, "int32")
    total = levels[..., 0] * 19595 + levels[..., 1] * 38470 + levels[..., 2] * 7471 + 0x8000
    return ops.cast(ops.right_shift(total, 16), "float32")


def smooth(images: Tensor) -> Tensor:
    """Returns the images under the kernel of sharpness: 5 in the middle, 1 around, over 13; the border stays."""
    from keras import ops

    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = ops.floor((around + 4 * images[:, 1:-1, 1:-1]) / 13 + 0.5)
    middle = ops.concatenate([images[:, 1:-1, :1], inner, images[:, 1:-1, -1:]], axis=2)
    return ops.concatenate([images[:, :1], middle, images[:, -1:]], axis=1)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Samples the images (batch, height, width, 3) between pixels at places given by affine maps (batch, 6).

    What comes from outside of the image is grey.
    """
    from keras import ops

    height, width = images.shape[1:3]
    x = ops.arange(width, dtype="float32")[None, None, :] + 0.5
    y = ops.arange(height, dtype="float32")[None, :, None] + 0.5
    a, b, c, d, e, f = (matrices[:, place, None, None] for place in range(6))
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = ops.logical_and(
        ops.logical_and(from_x >= 0, from_x < width), ops.logical_and(from_y >= 0, from_y < height)
    )
    from_x, from_y = from_x - 0.5, from_y - 0.5
    left, top = ops.floor(from_x), ops.floor(from_y)
    share_x, share_y = (from_x - left)[..., None], (from_y - top)[..., None]
    # One number a pixel, so that three colors are gathered at once.
    levels = ops.cast(images, "int32")
    packed = levels[..., 0] + 256 * levels[..., 1] + 65536 * levels[..., 2]
    packed = ops.reshape(packed, (-1, height * width))
    columns = [ops.clip(ops.cast(left, "int32") + step, 0, width - 1) for step in (0, 1)]
    rows = [ops.clip(ops.cast(top, "int32") + step, 0, height - 1) * width for step in (0, 1)]

    def at(row: Tensor, column: Tensor) -> Tensor:
        places = ops.reshape(row + column, (-1, height * width))
        found = ops.reshape(ops.take_along_axis(packed, places, axis=1), (-1, height, width))
        colors = [ops.bitwise_and(ops.right_shift(found, bits), 255) for bits in (0, 8, 16)]
        return ops.cast(ops.stack(colors, axis=-1), "float32")

    def across(row: Tensor) -> Tensor:
        first = at(row, columns[0])
        return first + share_x * (at(row, columns[1]) - first)

    upper = across(rows[0])
    sampled = upper + share_y * (across(rows[1]) - upper)
    return ops.where(inside[..., None], ops.floor(sampled), float(FILL))


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replaces each level by what the image's table (batch, 3, 256) has for it."""
    from keras import ops

    height, width = images.shape[1:3]
    places = ops.cast(images, "int32") + ops.arange(0, 768, 256, dtype="int32")
    places = ops.reshape(places, (-1, height * width * 3))
    found = ops.take_along_axis(ops.reshape(tables, (-1, 768)), places, axis=1)
    return ops.reshape(found, (-1, height, width, 3))


def look_up_tables(images: Tensor, numbers: Tensor, arguments: Tensor) -> Tensor:
    """Returns (batch, 3, 256) what becomes of each level of each color; the identity for other operations."""
    from keras import ops

    levels = ops.arange(256, dtype="float32")[None, None]
    argument = arguments[:, None, None]
    mean = ops.floor(ops.mean(grey(images), axis=(1, 2)) + 0.5)[:, None, None]
    steps = 2.0 ** (8 - argument)
    tables = {
        "auto_contrast": _auto_contrast(images, levels),
        "equalize": _equalize(images),
        "invert": 255 - levels,
        "posterize": ops.floor(levels / steps) * steps,
        "solarize": ops.where(levels < argument, levels, 255 - levels),
        "solarize_add": ops.where(levels < 128, ops.minimum(levels + argument, 255.0), levels),
        "contrast": blend(mean, levels, argument),
        "brightness": blend(0.0 * levels, levels, argument),
    }
    chosen = levels + ops.zeros_like(tables["equalize"])
    for name, table in tables.items():
        chosen = ops.where((numbers == NUMBERS[name])[:, None, None], table, chosen)
    return chosen


def _auto_contrast(images: Tensor, levels: Tensor) -> Tensor:
    """Returns tables that stretch each color to the full range."""
    from keras import ops

    lowest = ops.min(images, axis=(1, 2))[..., None]
    spread = ops.max(images, axis=(1, 2))[..., None] - lowest
    stretched = (levels - lowest) * 255.0 / ops.maximum(spread, 1.0)
    return ops.where(spread > 0, ops.floor(ops.clip(stretched, 0.0, 255.0)), levels)


def _equalize(images: Tensor) -> Tensor:
    """Returns tables that even out the histogram of each color, as `PIL.ImageOps.equalize` does."""
    from keras import ops

    counts = _histograms(images)
    height, width = images.shape[1:3]
    brightest = ops.cast(ops.max(images, axis=(1, 2)), "int32")[..., None]
    last = ops.take_along_axis(counts, brightest, axis=2)
    step = ops.floor_divide(height * width - last, 255)
    before = ops.cumsum(counts, axis=2) - counts
    even = ops.floor_divide(ops.floor_divide(step, 2) + before, ops.maximum(step, 1))
    levels = ops.arange(256, dtype="int32")[None, None]
    return ops.cast(ops.where(step > 0, ops.minimum(even, 255), levels), "float32")


def _histograms(images: Tensor) -> Tensor:
    """Returns (batch, 3, 256) int32: how many pixels of each color have each level."""
    from keras import ops

    count = ops.shape(images)[0]
    bins = ops.cast(images, "int32") + ops.arange(0, 768, 256, dtype="int32")
    bins = bins + 768 * ops.arange(count, dtype="int32")[:, None, None, None]
    bins = ops.reshape(bins, (-1,))
    counts = ops.segment_sum(ops.ones_like(bins), bins, num_segments=768 * count)
    return ops.reshape(counts, (-1, 3, 256))


def erase(images: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
    """Fills a box (top, left, height, width) of each image with noise that begins at the given place."""
    from keras import ops

    height, width = images.shape[1:3]
    places = ops.reshape(ops.arange(height * width * 3, dtype="int32"), (1, height, width, 3))
    places = ops.bitwise_and(places + noise[:, None, None, None], NOISE_PERIOD - 1)
    filling = ops.take(ops.convert_to_tensor(noise_table().astype("float32")), places, axis=0)
    return ops.where(_inside(boxes, height, width), filling, images)


def mix(images: Tensor, weights: Tensor, boxes: Tensor) -> Tensor:
    """Mixes each image with its neighbor: by weight (batch,), and by boxes that are taken from it (batch, 4)."""
    from keras import ops

    height, width = images.shape[1:3]
    pairs = ops.reshape(images, (-1, 2, height, width, 3))
    neighbors = ops.reshape(ops.flip(pairs, axis=1), (-1, height, width, 3))
    share = (1 - weights)[:, None, None, None]
    mixed = ops.floor(images + share * (neighbors - images) + 0.5)
    return ops.where(_inside(boxes, height, width), neighbors, mixed)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Returns (batch, height, width, 1) whether a pixel lies in its image's box (top, left, height, width)."""
    from keras import ops

    rows = ops.arange(height, dtype="int32")[None, :, None, None]
    columns = ops.arange(width, dtype="int32")[None, None, :, None]
    top, left, tall, wide = (boxes[:, place, None, None, None] for place in range(4))
    vertical = ops.logical_and(rows >= top, rows < top + tall)
    return ops.logical_and(vertical, ops.logical_and(columns >= left, columns < left + wide))

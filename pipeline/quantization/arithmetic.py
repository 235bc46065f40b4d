"""Rounding to integers and back in numpy: weights by channel and symmetric, ranges with an exact zero. Loads no Keras.

`fake_quantization` does the same with tensors of a backend, with gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]
"""Lowest and highest value that a tensor takes."""

Float = npt.NDArray[np.floating[Any]]

SMALLEST_WEIGHT = 1e-30
"""A channel without a larger weight counts as one of zeros: its step would not be a normal float32."""

SMALLEST_STEP = 1e-8
"""The step of a tensor that is 0 everywhere, so that nothing is divided by 0."""


def channel_axes(kernel: Float, *, depthwise: bool) -> tuple[int, ...]:
    """The axes of a kernel over which one output channel spreads.

    Args:
        kernel: `(height, width, inputs, outputs)` or `(inputs, outputs)`; of a depthwise convolution
            `(height, width, inputs, multiplier)`.
        depthwise: Whether it is one of those.
    """
    return (0, 1) if depthwise else tuple(range(kernel.ndim - 1))


def largest_whole(bits: int) -> int:
    """The largest number of steps of a symmetric weight: 127 for 8 bits; -128 is not used."""
    return int(2 ** (bits - 1) - 1)


def weight_steps(kernel: Float, axes: tuple[int, ...], bits: int = 8) -> npt.NDArray[np.float32]:
    """The step of each output channel, by its largest weight: the one that every target takes.

    Returns:
        float32, with length 1 in `axes`; 1 / 127 for a channel of zeros.
    """
    peaks = np.abs(kernel).max(axis=axes, keepdims=True).astype(np.float32)
    return np.where(peaks > SMALLEST_WEIGHT, peaks, np.float32(1)).astype(np.float32) / np.float32(largest_whole(bits))


def whole_weights(kernel: Float, axes: tuple[int, ...], bits: int = 8) -> npt.NDArray[np.int32]:
    """The numbers of steps that weights are rounded to."""
    limit = largest_whole(bits)
    wholes = np.rint(kernel.astype(np.float64) / weight_steps(kernel, axes, bits))
    return np.clip(wholes, -limit, limit).astype(np.int32)


def round_weights(kernel: Float, axes: tuple[int, ...], bits: int = 8) -> npt.NDArray[np.float32]:
    """The weights after rounding, in their own unit. The largest of each channel stays as it is."""
    rounded = whole_weights(kernel, axes, bits) * weight_steps(kernel, axes, bits).astype(np.float64)
    return rounded.astype(np.float32)


def nudged(limits: Range, levels: int = 256) -> tuple[float, int]:
    """The step and the level of zero of a range.

    The range is first widened to hold 0, then moved by at most half a step so that 0 is one of its levels.

    Returns:
        The step, and the zero point in 0..levels - 1: level `i` stands for `(i - zero) * step`.

    Raises:
        ValueError: The range is no range.
    """
    low, high = limits
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"The range is {limits}, expected two finite numbers, the lower one first.")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    step = max((high - low) / (levels - 1), SMALLEST_STEP)
    return step, int(np.clip(np.rint(-low / step), 0, levels - 1))


def nudged_range(limits: Range, levels: int = 256) -> Range:
    """The range that a target makes of this one: its lowest and its highest level."""
    step, zero = nudged(limits, levels)
    return -zero * step, (levels - 1 - zero) * step


def round_values(values: Float, limits: Range, levels: int = 256) -> npt.NDArray[np.float32]:
    """Activations after rounding to the levels of a range; what is outside goes to its ends."""
    step, zero = nudged(limits, levels)
    wholes = np.clip(np.rint(values.astype(np.float64) / step) + zero, 0, levels - 1)
    return np.asarray((wholes - zero) * step, np.float32)

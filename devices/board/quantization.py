"""Integers that stand for real numbers: real value = scale * (integer - zero point).

A quantization is a dictionary of JSON values: `scale` and `zero_point`, lists of one number for the whole
tensor or of one for each index along `axis`, which is None for one number. See "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference" (Jacob et al., 2018), equation 1.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

Array = np.ndarray
Quantization = Mapping[str, Any]


def dequantize(integers: Array[Any, Any], quantization: Quantization) -> Array[Any, Any]:
    """The real values, float32, of the same shape.

    Raises:
        ValueError: There is not one scale for each index along the axis.
    """
    scale, zero_point = _along_axis(quantization, integers.shape)
    # In float64 the difference and the product are exact, so the result is rounded once.
    real: Array[Any, Any] = ((integers.astype(np.float64) - zero_point) * scale).astype(np.float32)
    return real


def quantize(values: Array[Any, Any], quantization: Quantization, dtype: str) -> Array[Any, Any]:
    """The integers nearest to real values, halves to the even one, clipped to the range of `dtype`.

    Raises:
        ValueError: A value is not a number, or there is not one scale for each index along the axis.
    """
    scale, zero_point = _along_axis(quantization, values.shape)
    return to_integers(np.rint(values.astype(np.float32) / scale.astype(np.float32)) + zero_point, dtype)


def to_integers(values: Array[Any, Any], dtype: str) -> Array[Any, Any]:
    """Values rounded half to even and clipped to the range of an integer type.

    Raises:
        ValueError: A value is not a number.
    """
    limits = np.iinfo(dtype)
    if values.dtype.kind == "f":
        if np.isnan(values).any():
            raise ValueError(f"a value is not a number (NaN), which {dtype} can't hold; clean the samples")
        low, high = float(limits.min), float(limits.max)
        if high > limits.max:  # float64 has no 2^63 - 1 and no 2^64 - 1
            high = float(np.nextafter(high, 0.0))
        rounded: Array[Any, Any] = np.clip(np.rint(values.astype(np.float64)), low, high).astype(dtype)
        return rounded
    if values.dtype.kind == "b":
        return values.astype(dtype)
    own = np.iinfo(values.dtype)
    clipped: Array[Any, Any] = np.clip(values, max(own.min, limits.min), min(own.max, limits.max)).astype(dtype)
    return clipped


def quantization_record(
    scale: Sequence[float], zero_point: Sequence[int], axis: Optional[int]
) -> Optional[Dict[str, Any]]:
    """The dictionary for what a runtime tells; None for no scales, and one zero point is every scale's."""
    scales, zero_points = [float(value) for value in scale], [int(value) for value in zero_point]
    if not scales:
        return None
    if len(zero_points) != len(scales):
        zero_points = (zero_points or [0])[:1] * len(scales)
    return {"scale": scales, "zero_point": zero_points, "axis": axis if len(scales) > 1 else None}


def _along_axis(quantization: Quantization, shape: Tuple[int, ...]) -> Tuple[Array[Any, Any], Array[Any, Any]]:
    """Scale and zero point as float64 arrays that broadcast over a tensor of that shape."""
    axis, count = quantization["axis"], len(quantization["scale"])
    broadcast: List[int] = []
    if axis is not None:
        if axis >= len(shape) or shape[axis] != count:
            raise ValueError(
                f"the tensor has the shape {shape}, but its quantization has {count} scales on axis {axis}"
            )
        broadcast = [1] * len(shape)
        broadcast[axis] = count
    scale = np.asarray(quantization["scale"], np.float64).reshape(broadcast)
    return scale, np.asarray(quantization["zero_point"], np.float64).reshape(broadcast)

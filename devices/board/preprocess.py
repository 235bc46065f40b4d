"""From a decoded image to the model's input: the only implementation, for training, evaluation and boards.

Everything is computed in whole numbers, so every machine gives the same bytes. Bilinear resizing is Pillow's:
a triangle filter as wide as the reduction (so it averages instead of skipping pixels) with weights of 22 bits
behind the binary point, first along each row and then along each column, with 8-bit pixels in between. Where
Pillow goes along the columns first, because that is cheaper for an image's proportions, the two differ by at
most one level.

`InputTransform` is what follows for a model that takes something else than these bytes: another layout, type or
range. It computes in float32, one operation at a time, so that it gives the same bits everywhere too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import numpy as np

from .quantization import Quantization, quantize, to_integers

RESIZES = ("stretch", "shorter_side")
CROPS = ("none", "center")
INTERPOLATIONS = ("bilinear", "nearest")
LAYOUTS = ("NHWC", "NCHW")
FLOAT_DTYPES = ("float16", "float32", "float64")
INTEGER_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

Numbers = Union[float, Tuple[float, ...]]

_MAX_SIZE = 8192
_WEIGHT_BITS = 22


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's input.

    Attributes:
        size: (height, width) of the result.
        resize: "stretch" takes the whole image to the size, whatever its proportions; "shorter_side" keeps
            the proportions and covers the size, so that the crop has nothing to fill.
        crop: "center" after "shorter_side", "none" after "stretch".
        interpolation: "bilinear", or "nearest" for the nearest pixel.
        crop_fraction: What share of the covering image's shorter side the crop takes; 0.875 is the usual 224
            of 256.

    Raises:
        ValueError: A value or a combination that can't be used.
    """

    size: Tuple[int, int]
    resize: str = "stretch"
    crop: str = "none"
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        size = self.size
        whole = isinstance(size, tuple) and len(size) == 2 and all(type(side) is int for side in size)
        if not whole or not all(1 <= side <= _MAX_SIZE for side in size):
            raise ValueError(f"size is {size!r}; expected (height, width), whole numbers from 1 to {_MAX_SIZE}")
        for name, known in (("resize", RESIZES), ("crop", CROPS), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of: {', '.join(known)}")
        fraction = self.crop_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0.1 <= fraction <= 1:
            raise ValueError(f"crop_fraction is {fraction!r}; expected a number from 0.1 to 1")
        if (self.resize == "shorter_side") != (self.crop == "center"):
            raise ValueError(
                f"resize '{self.resize}' with crop '{self.crop}' does not give an image of the size; "
                "expected 'stretch' with 'none', or 'shorter_side' with 'center'"
            )
        if self.crop == "none" and fraction != 1:
            raise ValueError(f"crop_fraction is {fraction!r} but crop is 'none'; set crop to 'center' or leave it out")

    def to_dict(self) -> Dict[str, Any]:
        """JSON values that `from_dict` takes back."""
        return {
            **dataclasses.asdict(self),
            "size": list(self.size),
            "crop_fraction": float(self.crop_fraction),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Preprocess:
        """The record of `to_dict`.

        Raises:
            ValueError: A key is unknown or missing, or a value can't be used.
        """
        known = [field.name for field in dataclasses.fields(Preprocess)]
        unknown = [str(key) for key in values if key not in known]
        if unknown or "size" not in values:
            problem = f"unknown: {', '.join(unknown)}" if unknown else "size is missing"
            raise ValueError(f"not a preprocess record ({problem}); its keys are: {', '.join(known)}")
        size = values["size"]
        return Preprocess(**{**values, "size": tuple(size) if isinstance(size, (list, tuple)) else size})


def preprocess(image: np.ndarray[Any, Any], record: Preprocess) -> np.ndarray[Any, Any]:
    """Resizes and crops one image.

    Args:
        image: uint8 `(height, width, 3)`, RGB.
        record: What to do.

    Returns:
        uint8 `(*record.size, 3)`, C-contiguous; a copy, never the image itself.

    Raises:
        ValueError: The image is not uint8 `(height, width, 3)`, or it is empty.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        received = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the image is {received}; expected uint8 (height, width, 3)")
    if 0 in image.shape:
        raise ValueError(f"the image is empty: its shape is {image.shape}")
    if image.shape[:2] == record.size and record.crop == "none":
        return np.array(image, order="C")  # the filters would give back the same bytes, only slower
    resized = _covering_size((image.shape[0], image.shape[1]), record)
    begin = [(whole - part) // 2 for whole, part in zip(resized, record.size)]
    resize = _bilinear if record.interpolation == "bilinear" else _nearest
    # Along the columns the pixels of a row lie apart; with width in front they lie together.
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))
    turned = resize(turned, resized[1], begin[1], record.size[1])
    turned = np.ascontiguousarray(turned.transpose(1, 0, 2))
    return resize(turned, resized[0], begin[0], record.size[0])


def _covering_size(image: Tuple[int, int], record: Preprocess) -> Tuple[int, int]:
    """(height, width) of the whole resized image, of which the crop is a part."""
    if record.resize == "stretch":
        return record.size
    height, width = (math.floor(side / record.crop_fraction + 0.5) for side in record.size)
    if height * image[1] >= width * image[0]:
        return height, max(width, _rounded(image[1] * height, image[0]))
    return max(height, _rounded(image[0] * width, image[1])), width


def _rounded(numerator: int, denominator: int) -> int:
    """The quotient rounded to the nearest whole number, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _nearest(image: np.ndarray[Any, Any], out_size: int, begin: int, count: int) -> np.ndarray[Any, Any]:
    """Rows `begin` to `begin + count` of the image resized to `out_size` rows, each the nearest row."""
    rows = np.arange(begin, begin + count, dtype=np.int64)
    picked: np.ndarray[Any, Any] = np.take(image, (2 * rows + 1) * image.shape[0] // (2 * out_size), axis=0)
    return picked


def _bilinear(image: np.ndarray[Any, Any], out_size: int, begin: int, count: int) -> np.ndarray[Any, Any]:
    """Rows `begin` to `begin + count` of the image resized to `out_size` rows with a triangle filter."""
    indices, weights = _taps(image.shape[0], out_size, begin, count)
    rows = image.reshape(image.shape[0], -1)
    total = np.full((count, rows.shape[1]), 1 << (_WEIGHT_BITS - 1), np.int32)
    product = np.empty_like(total)
    for tap in range(indices.shape[0]):
        np.multiply(np.take(rows, indices[tap], axis=0), weights[tap][:, np.newaxis], out=product)
        total += product
    total >>= _WEIGHT_BITS
    np.clip(total, 0, 255, out=total)
    return total.astype(np.uint8).reshape(count, *image.shape[1:])


@functools.lru_cache(maxsize=256)
def _taps(in_size: int, out_size: int, begin: int, count: int) -> Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which rows make a resized row, and with which weights.

    Positions are measured in units of 1 / (2 out_size) of a source row, where all of them are whole: source
    row j lies at (2 j + 1) out_size, resized row i at (2 i + 1) in_size, and the filter reaches 2 max(in,
    out) far.

    Returns:
        Indices and int32 weights, each `(taps, count)`; weights of one row sum up to about 2^22.
    """
    reach = 2 * max(in_size, out_size)
    centers = (2 * np.arange(begin, begin + count, dtype=np.int64) + 1) * in_size
    first = (centers - reach - out_size) // (2 * out_size) + 1
    candidates = first + np.arange(reach // out_size + 1, dtype=np.int64)[:, np.newaxis]
    shares = np.maximum(0, reach - np.abs((2 * candidates + 1) * out_size - centers))
    shares[(candidates < 0) | (candidates >= in_size)] = 0
    total = shares.sum(axis=0)
    weights = ((shares << (_WEIGHT_BITS + 1)) + total) // (2 * total)
    used = weights.any(axis=1)
    indices = np.clip(candidates, 0, in_size - 1)[used]
    return indices, weights[used].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class InputTransform:
    """How a stored sample becomes what a model's input takes.

    A stored value p becomes `p * scale + offset`, in float32 and for each channel of the last axis of the
    stored sample; then the axes are moved, then the value is cast.

    Attributes:
        layout: "NHWC" leaves the axes as they are stored, "NCHW" moves the last of three to the front.
        dtype: Of the model's input. An integer type takes values rounded half to even and clipped to its range.
            For an input that is quantized, a float type says that the values are real ones, which are then
            quantized as the input is; an integer type that they are the integers themselves.
        scale: One number, or one for each channel. `(p / 255 - mean) / std` is the scale 1 / (255 std) and the
            offset -mean / std.
        offset: The same.

    Raises:
        ValueError: A value that can't be used.
    """

    layout: str = "NHWC"
    dtype: str = "float32"
    scale: Numbers = 1.0
    offset: Numbers = 0.0

    def __post_init__(self) -> None:
        for name, known in (("layout", LAYOUTS), ("dtype", FLOAT_DTYPES + INTEGER_DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of: {', '.join(known)}")
        for name in ("scale", "offset"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(_is_float32(number) for number in numbers):
                raise ValueError(
                    f"{name} is {value!r}; expected a number, or a list of one for each channel, that float32 can hold"
                )

    def to_json(self) -> Dict[str, Any]:
        """JSON values that `from_json` takes back."""
        return {
            "layout": self.layout,
            "dtype": self.dtype,
            "scale": _json_numbers(self.scale),
            "offset": _json_numbers(self.offset),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> InputTransform:
        """The transform of `to_json`; a key that is left out has the value of the class.

        Raises:
            ValueError: A key is unknown, or a value can't be used.
        """
        known = [field.name for field in dataclasses.fields(InputTransform)]
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise ValueError(f"not a transform (unknown: {', '.join(unknown)}); its keys are: {', '.join(known)}")
        given: Dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return InputTransform(**given)

    def apply(
        self,
        sample: np.ndarray[Any, Any],
        quantization: Optional[Quantization] = None,
        *,
        quantized_dtype: Optional[str] = None,
    ) -> np.ndarray[Any, Any]:
        """Transforms one sample.

        Args:
            sample: Of any shape; of three dimensions `(height, width, channels)` for the layout NCHW. Whole
                numbers beyond 2^24 lose exactness in float32, unless scale is 1 and offset 0.
            quantization: Of the model's input, where it is quantized.
            quantized_dtype: The integer type of that input.

        Returns:
            `(1, *shape)`, C-contiguous, of `dtype`, or of `quantized_dtype` where real values were quantized.
            It may share memory with the sample where nothing had to be done.

        Raises:
            ValueError: The sample does not fit the transform, or holds a NaN that would become an integer.
        """
        values = self._scaled(sample)
        if self.layout == "NCHW":
            if values.ndim != 3:
                raise ValueError(
                    f"the sample has the shape {sample.shape}; the layout NCHW expects (height, width, channels): "
                    "take the layout NHWC, which leaves any shape as it is"
                )
            values = values.transpose(2, 0, 1)
        values = values[np.newaxis]
        if self.dtype in INTEGER_DTYPES:
            values = values if values.dtype == self.dtype else to_integers(values, self.dtype)
        elif quantization is not None:
            if quantized_dtype is None:
                raise ValueError("a quantization is given without quantized_dtype; pass the dtype of the input")
            values = quantize(values, quantization, quantized_dtype)
        else:
            with np.errstate(over="ignore"):  # what float16 can't hold becomes infinite, as in the network itself
                values = values.astype(self.dtype, copy=False)
        return np.ascontiguousarray(values)

    def _scaled(self, sample: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """`sample * scale + offset` in float32; the sample itself where that changes nothing."""
        if self.scale == 1 and self.offset == 0:
            return sample
        for name in ("scale", "offset"):
            value = getattr(self, name)
            if isinstance(value, tuple) and sample.shape[-1:] != (len(value),):
                raise ValueError(
                    f"{name} has {len(value)} numbers, but the sample has the shape {sample.shape}; "
                    "expected one number for each channel of its last axis"
                )
        scale, offset = np.asarray(self.scale, np.float32), np.asarray(self.offset, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # stored infinities and NaNs are passed on
            scaled: np.ndarray[Any, Any] = sample.astype(np.float32) * scale + offset
        return scaled


def _is_float32(number: Any) -> bool:
    """Whether it is a finite number that stays finite in float32."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return bool(abs(number) <= float(np.finfo(np.float32).max))


def _json_numbers(value: Numbers) -> Any:
    return [float(number) for number in value] if isinstance(value, tuple) else float(value)

"""The whole way of an image through the board: file, pixels, model's input, answer, probabilities."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any, Callable, Dict, List, Mapping, Sequence

import numpy as np

from .errors import BadInput
from .preprocess import InputTransform, Preprocess, preprocess
from .quantization import dequantize
from .runners import Runner
from .runners.contract import Feed

Array = np.ndarray

STAGES = ("decode", "preprocess", "infer", "softmax")

_MAX_PPM_HEAD_BYTES = 4096


class ImagePath:
    """One image file on its way through a model with one input.

    Args:
        path: A .ppm (binary, 8 bit) or .npy (uint8 `(height, width, 3)`) file, which numpy alone reads; any other
            format needs Pillow on the board.
        record: Of `preprocess.Preprocess.to_dict`.
        transform: Of `preprocess.InputTransform.to_json`.
        runner: With the model loaded.
        feeds: Its inputs.

    Raises:
        BadInput: The file can't be decoded, or does not fit the model.
    """

    def __init__(
        self,
        path: str,
        record: Mapping[str, Any],
        transform: Mapping[str, Any],
        runner: Runner,
        feeds: Sequence[Feed],
    ) -> None:
        description = runner.describe()
        if len(feeds) != 1:
            raise BadInput(f"the model takes {len(feeds)} inputs; an image can be measured for a model of one")
        self._runner, self._feed, self._path = runner, feeds[0], path
        self._input, self._output = description["inputs"][0], description["outputs"][0]
        self._decode, self.decoder = find_decoder(path)
        try:
            self._record = Preprocess.from_dict(record)
            self._transform = InputTransform.from_json(transform)
            made = self._prepared(self._decode(path))
        except Exception as error:  # broken files make decoders raise whatever there is
            raise BadInput(
                f"the image {os.path.basename(path)} can't be used: {error}. Expected a picture such as a PNG, a JPEG "
                "or a binary PPM of 8 bits"
            ) from error
        if made.shape != self._feed.shape or made.dtype != self._feed.dtype:
            raise BadInput(
                f"the image becomes {made.dtype.name} {made.shape}, but the model's input '{self._feed.name}' takes "
                f"{self._feed.dtype.name} {self._feed.shape}; give another layout"
            )

    def run(self, clock_ns: Callable[[], int]) -> List[int]:
        """Goes the whole way once; nanoseconds of each of `STAGES`."""
        begin = clock_ns()
        pixels = self._decode(self._path)
        decoded = clock_ns()
        prepared = self._prepared(pixels)
        ready = clock_ns()
        answer = self._runner.infer([prepared])[0]
        answered = clock_ns()
        self._probabilities(answer)
        done = clock_ns()
        return [decoded - begin, ready - decoded, answered - ready, done - answered]

    def _prepared(self, pixels: Array[Any, Any]) -> Array[Any, Any]:
        quantization = self._input["quantization"]
        return self._transform.apply(
            preprocess(pixels, self._record), quantization, quantized_dtype=self._feed.dtype.name
        )

    def _probabilities(self, answer: Array[Any, Any]) -> Array[Any, Any]:
        quantization = self._output["quantization"]
        logits = dequantize(answer, quantization) if quantization is not None and answer.dtype.kind in "iu" else answer
        shifted = np.exp(logits.astype(np.float32) - logits.max())
        result: Array[Any, Any] = shifted / shifted.sum()
        return result


def find_decoder(path: str) -> tuple[Callable[[str], Array[Any, Any]], str]:
    """What decodes a file, and what it is called.

    Raises:
        BadInput: Nothing on this board does.
    """
    if path.endswith(".npy"):
        return _decode_npy, "numpy (no decoding)"
    if path.endswith(".ppm"):
        return _decode_ppm, "numpy"
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise BadInput(
            f"{os.path.basename(path)} can't be decoded on this device, which has no Pillow: install it there (on "
            "Debian: sudo apt install python3-pil), or give a binary .ppm"
        ) from error

    def decode(path: str) -> Array[Any, Any]:
        with pillow.open(path) as image:
            return np.asarray(image.convert("RGB"))

    return decode, f"Pillow {pillow.__version__}"


def _decode_npy(path: str) -> Array[Any, Any]:
    array: Array[Any, Any] = np.load(path, allow_pickle=False)
    return array


def _decode_ppm(path: str) -> Array[Any, Any]:
    with open(path, "rb") as stream:
        return parse_ppm(stream.read())


def parse_ppm(data: bytes) -> Array[Any, Any]:
    """uint8 `(height, width, 3)` of a binary PPM file of 8 bits (Netpbm, "PPM format specification").

    Raises:
        ValueError: It is none, or is cut off.
    """
    space = rb"(?:\s|#[^\n]*\n)+"
    begin = data[:_MAX_PPM_HEAD_BYTES]  # a comment without end would be searched again and again
    match = re.match(rb"P6" + space + rb"(\d{1,9})" + space + rb"(\d{1,9})" + space + rb"255\s", begin)
    if match is None:
        raise ValueError("expected a binary PPM file (P6) of 8 bits")
    width, height = int(match.group(1)), int(match.group(2))
    expected = width * height * 3
    if len(data) - match.end() < expected:
        raise ValueError(f"the PPM file is cut off: {len(data) - match.end()} of {expected} bytes of pixels")
    return np.frombuffer(data, np.uint8, expected, match.end()).reshape(height, width, 3)


def stages_record(stages: Sequence[Sequence[int]], decoder: str) -> Dict[str, Any]:
    """What the agent answers: by stage the nanoseconds of each image, and the decoder."""
    return {"decoder": decoder, "stages_ns": {name: list(times) for name, times in zip(STAGES, zip(*stages))}}

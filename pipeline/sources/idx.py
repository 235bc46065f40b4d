"""The four files of Fashion-MNIST: arrays in the IDX format of MNIST, compressed with GZIP.

H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv 1708.07747, 2017.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.sources.arrays import Batch
from pipeline.sources.base import Split

IDX_FILES: dict[Split, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_UINT8 = 8
_MAX_SIZE_BYTES = 2**30


def read_idx_batches(directory: Path, num_classes: int) -> list[Batch]:
    """Both splits.

    Raises:
        DataError: A file is damaged, images and labels don't belong together, or a label is out of range.
    """
    batches: list[Batch] = []
    for split, (images_name, labels_name) in IDX_FILES.items():
        images, labels = _read_idx(directory / images_name, 3), _read_idx(directory / labels_name, 1)
        if len(images) != len(labels) or not len(images):
            raise DataError(
                f"{directory / images_name} has {len(images)} images and {labels_name} {len(labels)} labels: expected "
                "one label an image, and at least one; get the files again"
            )
        if labels.max() >= num_classes:
            raise DataError(f"{directory / labels_name} has the label {labels.max()}: expected 0 to {num_classes - 1}")
        batches.append(Batch(split, split, images, labels.astype(np.int64)))
    return batches


def _read_idx(path: Path, num_axes: int) -> NDArray[np.uint8]:
    """An array of bytes: two zeros, the type, the number of axes, their lengths (big-endian), the values."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(_MAX_SIZE_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}): get it again") from error
    header = 4 + 4 * num_axes
    if len(data) < header or data[:4] != bytes((0, 0, _UINT8, num_axes)):
        raise DataError(f"{path} is no IDX file of bytes with {num_axes} axes: get it again")
    shape = struct.unpack(f">{num_axes}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(f"{path} has {len(data) - header} values: expected {' x '.join(map(str, shape))}; get it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)

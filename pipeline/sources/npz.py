"""Arrays in a NumPy `.npz` file."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import DataError
from pipeline.sources.arrays import Batch, array_samples
from pipeline.sources.base import Problem, Reading, Sample, SourceConfig, Split
from pipeline.sources.fingerprints import file_fingerprint

_PREFIXES: dict[str, Split | None] = {
    "": None,
    "train_": "train",
    "val_": "validation",
    "valid_": "validation",
    "validation_": "validation",
    "test_": "test",
}


class NpzConfig(SourceConfig):
    """Arrays `images` and `labels`, or a pair for each split (`train_images` and `train_labels`, and so on).

    Images are uint8 `(count, height, width)`, `(count, height, width, 1)` or `(count, height, width, 3)`;
    labels are whole numbers `(count,)` or `(count, 1)`. The array `class_names` is optional; without it the
    classes are the numbers that occur, in their order. Splits may be called `train`, `val`, `valid`,
    `validation` and `test`. Pickled objects are refused. The images of one split are in memory at a time.
    """

    source: Literal["npz"]
    path: Annotated[str, Field(min_length=1)]

    def fingerprint(self) -> str:
        """The SHA-256 of the file."""
        return file_fingerprint(_existing_file(self.path))

    def read(self) -> Reading:
        """Starts a pass over all samples."""
        path = _existing_file(self.path)
        with _open(path) as arrays:
            parts = _parts(path, arrays.files)
            labels = {part.key: _labels(path, arrays, part) for part in parts}
            names = _class_names(path, arrays, labels)
        return Reading(
            classes=tuple(names.values()),
            num_images=sum(len(values) for values in labels.values()),
            items=_samples(path, parts, labels, names),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    split: Split | None
    key: str
    labels_key: str


def _existing_file(path_text: str) -> Path:
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise DataError(f"no file at {path}: expected a NumPy .npz file; correct `path` in the data section")
    return path


@contextlib.contextmanager
def _open(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with path.open("rb") as file:  # numpy.load leaves a file open that it opened and could not use
        try:
            arrays = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} can't be read as .npz ({error}): expected a file of numpy.savez") from error
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds one array alone: expected `images` and `labels` from numpy.savez")
        with arrays:
            yield arrays


def _array(path: Path, arrays: Mapping[str, Any], key: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = arrays[key]
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"the array `{key}` of {path} can't be read ({error}): expected a plain array without pickled objects"
        ) from error
    return array


def _parts(path: Path, keys: list[str]) -> list[_Part]:
    parts: list[_Part] = []
    for prefix, split in _PREFIXES.items():
        pair = (f"{prefix}images", f"{prefix}labels")
        present = [key for key in pair if key in keys]
        if len(present) == 1:
            missing = next(key for key in pair if key not in keys)
            raise DataError(f"{path} has `{present[0]}` but no `{missing}`: every split needs both")
        if present:
            parts.append(_Part(split, *pair))
    splits = [part.split for part in parts]
    if not parts:
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(keys)) or '(none)'}: expected `images` and `labels`, "
            "or `train_images`, `train_labels` and so on"
        )
    if len(set(splits)) < len(splits) or (None in splits and len(splits) > 1):
        raise DataError(
            f"{path} has {', '.join(part.key for part in parts)}: expected either `images` alone or one "
            "array of images a split"
        )
    return parts


def _labels(path: Path, arrays: Mapping[str, Any], part: _Part) -> NDArray[np.int64]:
    labels = _array(path, arrays, part.labels_key)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"`{part.labels_key}` of {path} is {labels.dtype} {labels.shape}: expected whole numbers "
            "(count,) or (count, 1)"
        )
    if not labels.size:
        raise DataError(f"`{part.labels_key}` of {path} is empty: expected images; leave the split out, or fill it")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        raise DataError(
            f"`{part.labels_key}` of {path} has labels from {labels.min()} to {labels.max()}: expected 0 and up"
        )
    return labels.astype(np.int64)


def _class_names(path: Path, arrays: Mapping[str, Any], labels: Mapping[str, NDArray[np.int64]]) -> dict[int, str]:
    used = sorted({int(label) for values in labels.values() for label in np.unique(values)})
    if "class_names" not in arrays:
        return {label: str(label) for label in used}
    array = _array(path, arrays, "class_names")
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(f"`class_names` of {path} is {array.dtype} {array.shape}: expected text (classes,)")
    names = [str(name) for name in array]
    if len(set(names)) < len(names):
        raise DataError(f"`class_names` of {path} repeats a name: expected each class once")
    if used and used[-1] >= len(names):
        raise DataError(f"{path} has the label {used[-1]} but only {len(names)} `class_names`")
    return dict(enumerate(names))


def _images(path: Path, part: _Part, num_labels: int) -> NDArray[np.uint8]:
    with _open(path) as arrays:
        images = _array(path, arrays, part.key)
    shape_is_right = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not shape_is_right or 0 in images.shape[1:]:
        raise DataError(
            f"`{part.key}` of {path} is {images.dtype} {images.shape}: expected uint8 "
            "(count, height, width), (count, height, width, 1) or (count, height, width, 3)"
        )
    if len(images) != num_labels:
        raise DataError(
            f"`{part.key}` of {path} has {len(images)} images but `{part.labels_key}` has {num_labels} "
            "labels: expected one label an image"
        )
    return images


def _samples(
    path: Path,
    parts: list[_Part],
    labels: Mapping[str, NDArray[np.int64]],
    names: Mapping[int, str],
) -> Iterator[Sample | Problem]:
    for part in parts:
        images = _images(path, part, len(labels[part.key]))
        yield from array_samples(Batch(part.key, part.split, images, labels[part.key]), names)

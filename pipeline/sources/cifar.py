"""The archives of CIFAR-10 and CIFAR-100 as their authors publish them: pickled arrays, read without their code.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.sources.archive import read_archive
from pipeline.sources.arrays import Batch
from pipeline.sources.base import Problem, Split

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True, slots=True)
class CifarFormat:
    """Which files an archive holds, and what the entries are called.

    Args:
        folder: That holds the files.
        batches: Files of each split.
        label_key: The entry of a batch with the labels.
        names_file: The file with the names of the classes.
        names_key: Their entry.
    """

    folder: str
    batches: dict[Split, tuple[str, ...]]
    label_key: bytes
    names_file: str
    names_key: bytes


CIFAR10 = CifarFormat(
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    label_key=b"labels",
    names_file="batches.meta",
    names_key=b"label_names",
)
CIFAR100 = CifarFormat(
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    label_key=b"fine_labels",
    names_file="meta",
    names_key=b"fine_label_names",
)


def read_cifar(path: Path, form: CifarFormat) -> tuple[tuple[str, ...], list[Batch]]:
    """The names of the classes and the batches of an archive.

    Raises:
        DataError: The archive is damaged, lacks a file, or holds something else than arrays and labels.
    """
    files = {name: split for split, names in form.batches.items() for name in names}
    found = _read_files(path, form, (*files, form.names_file))
    names = _names(path, form, _unpickle(path, form.names_file, found.pop(form.names_file)))
    batches = [
        _batch(path, form, name, split, _unpickle(path, name, found.pop(name)), len(names))
        for name, split in files.items()
    ]
    return names, batches


def _read_files(path: Path, form: CifarFormat, names: Sequence[str]) -> dict[str, bytes]:
    wanted = {f"{form.folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    for member, data in read_archive(path, wanted):
        if isinstance(data, Problem):
            raise DataError(f"{path} has {member}, which can't be read ({data.reason}): get the archive again")
        found[wanted[member]] = data
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)} in {form.folder}: expected the archive of the Python version"
        )
    return found


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays, bytes, numbers, text, lists and mappings, and calls nothing else that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get(f"{module}.{name}")
        if allowed is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")
        return allowed


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """How pickles of old protocols hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding}")
    return text.encode("latin1")


_ALLOWED: dict[str, Any] = {
    "_codecs.encode": _latin1_bytes,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    # Before NumPy 2 the module had another name.
    "numpy.core.multiarray._reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    "numpy._core.multiarray._reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
}


def _unpickle(path: Path, name: str, data: bytes) -> dict[bytes, Any]:
    try:
        found = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise errors of many kinds
        raise DataError(f"{path}: {name} is no pickle of arrays ({error}): get the archive again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: {name} holds {type(found).__name__}: expected a mapping; get the archive again")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}


def _names(path: Path, form: CifarFormat, meta: dict[bytes, Any]) -> tuple[str, ...]:
    names = meta.get(form.names_key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{path}: {form.names_file} has no list {form.names_key.decode()}: get the archive again")
    return tuple(name.decode(errors="backslashreplace") if isinstance(name, bytes) else name for name in names)


def _batch(path: Path, form: CifarFormat, name: str, split: Split, batch: dict[bytes, Any], num_classes: int) -> Batch:
    data, labels = batch.get(b"data"), batch.get(form.label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (_PIXELS,) or not len(data):
        received = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: the data of {name} are {received}: expected uint8 (count, {_PIXELS})")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: {name} has no list of {len(data)} whole numbers as {form.label_key.decode()}")
    if min(labels) < 0 or max(labels) >= num_classes:
        raise DataError(
            f"{path}: {name} has labels from {min(labels)} to {max(labels)}: expected 0 to {num_classes - 1}"
        )
    images = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return Batch(name, split, images, np.array(labels, dtype=np.int64))

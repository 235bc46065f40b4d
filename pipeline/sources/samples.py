"""Samples that are no labelled images: what a model of one's own is fed with.

`arrays` are recorded, one array for each input of the model; `random` are drawn, for a model that is only to be
converted, compared and measured.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipeline.errors import DataError
from pipeline.sources.fingerprints import file_fingerprint
from pipeline.stages.base import FrozenConfig

LABELS, TARGETS = "labels", "targets"
"""Arrays that are no input: whole numbers for `top1` and `auc`, values for `mse`."""

SampleSplit = Literal["train", "test"]


class ArraysConfig(FrozenConfig):
    """Arrays in a NumPy `.npz` file, one for each input of the model under the input's name.

    Each is `(count, ...)`, a row a sample without the batch; a model with one input may call it `inputs`. `labels`
    `(count,)` or `targets` `(count, ...)` are what a metric compares with. Integer precisions take their ranges from
    the training split; the rest is what models are compared and judged on.

    Attributes:
        path: The `.npz` file.
        test_fraction: Share of the samples that is kept for comparing and judging.
        seed: Of the draw.
    """

    source: Literal["arrays"]
    path: Annotated[str, Field(min_length=1)]
    test_fraction: float = Field(default=0.5, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the file.

        Raises:
            DataError: There is none.
        """
        return file_fingerprint(self._file())

    def read(self) -> dict[str, npt.NDArray[Any]]:
        """Returns all arrays by name, checked to hold the same number of samples.

        Raises:
            DataError: The file can't be used.
        """
        path = self._file()
        with _open(path) as archive:
            arrays = {name: _array(path, archive, name) for name in archive.files}
        inputs = [name for name in arrays if name not in (LABELS, TARGETS)]
        if not inputs:
            raise DataError(
                f"{path} has the arrays {', '.join(arrays) or '(none)'}: expected one for each input of the model"
            )
        counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len(set(counts.values())) != 1:
            described = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"the arrays of {path} have different numbers of samples ({described}): expected the same")
        if next(iter(counts.values())) < 2:
            raise DataError(f"{path} has {next(iter(counts.values()))} samples: expected at least 2")
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise DataError(f"`{name}` of {path} is {array.dtype}: expected numbers")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"`{name}` of {path} holds values that are NaN or infinite: remove those samples")
        labels = arrays.get(LABELS)
        if labels is not None and (labels.dtype.kind not in "iub" or labels.ndim != 1):
            raise DataError(f"`labels` of {path} is {labels.dtype} {labels.shape}: expected whole numbers (count,)")
        return arrays

    def split(self, count: int) -> dict[SampleSplit, npt.NDArray[np.int64]]:
        """Returns the rows of each split, in their order; both have at least one."""
        num_test = min(max(1, round(count * self.test_fraction)), count - 1)
        order = np.random.Generator(np.random.PCG64(self.seed)).permutation(count)
        return {"test": np.sort(order[:num_test]), "train": np.sort(order[num_test:])}

    def _file(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise DataError(f"no file at {path}: expected a NumPy .npz file; correct `path` in the data section")
        return path


class RandomConfig(FrozenConfig):
    """Random samples of the shapes and types of the model's inputs; nothing is quantized or judged with them.

    Attributes:
        count: How many.
        seed: Of the draw.
        low: Smallest value, of inputs whose values are stored as floats.
        high: Largest value of these.
    """

    source: Literal["random"] = "random"
    count: int = Field(default=32, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**31)
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"high is {self.high:g}, but low is {self.low:g}: make high the larger one")
        return self

    def draw(self, shape: tuple[int, ...], dtype: str, *, index: int) -> npt.NDArray[Any]:
        """Returns samples for one input.

        Args:
            shape: Of one sample, without the batch.
            dtype: Of the input.
            index: Of the input, so that two inputs differ.

        Raises:
            DataError: There are no random values of this type.
        """
        generator = np.random.Generator(np.random.PCG64([self.seed, index]))
        kind = np.dtype(dtype)
        if kind.kind == "f":
            return generator.uniform(self.low, self.high, (self.count, *shape)).astype(kind)
        if kind.kind in "iu" and kind.itemsize == 1:
            limits = np.iinfo(kind)
            return generator.integers(limits.min, limits.max, (self.count, *shape), kind, endpoint=True)
        if kind.kind in "iub":  # indices and masks: what a model does with large ones is its own affair
            return generator.integers(0, 2, (self.count, *shape)).astype(kind)
        raise DataError(f"there are no random samples of {dtype}: give samples with data: {{source: arrays}}")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with path.open("rb") as file:
        try:
            arrays = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} can't be read as .npz ({error}): expected a file of numpy.savez") from error
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds one array alone: expected named arrays from numpy.savez")
        with arrays:
            yield arrays


def _array(path: Path, arrays: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = arrays[key]
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"the array `{key}` of {path} can't be read ({error}): expected a plain array without pickled objects"
        ) from error
    return array

"""A model in an artifact, on its way to the targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.signature import Signature

Sample = dict[str, npt.NDArray[Any]]
"""One array `(1, ...)` for each input, by name, of exactly the input's type and shape."""


@dataclass(frozen=True)
class ModelSource:
    """A model that targets convert from.

    Attributes:
        directory: The artifact that holds it.
        signature: What it takes and gives; the exported files have the same inputs and outputs under the same names.
    """

    directory: Path
    signature: Signature

    @property
    def path(self) -> Path:
        """The SavedModel directory, or the model file.

        Raises:
            StageError: The artifact does not hold it.
        """
        path = self.directory / self.signature.model
        if not path.exists():
            raise StageError(f"{self.directory} holds no {self.signature.model}, which its signature names.")
        return path


@dataclass(frozen=True)
class Calibration:
    """What integer precisions take their ranges from.

    Attributes:
        signature: Of the model that is calibrated.
        samples: By input name, stored samples `(count, ...)`, the same count for all; not yet transformed.
        reduce_range: Whether weights keep to 7 bits, for x86 processors without VNNI, whose 16-bit sums of
            8-bit products saturate (ONNX Runtime documentation, "Quantize ONNX models", reduce_range).
    """

    signature: Signature
    samples: Mapping[str, npt.NDArray[Any]]
    reduce_range: bool = False

    def __len__(self) -> int:
        return min((len(rows) for rows in self.samples.values()), default=0)

    def __iter__(self) -> Iterator[Sample]:
        """Yields what the model is fed with, sample by sample."""
        for index in range(len(self)):
            yield {tensor.name: prepared(self.samples[tensor.name][index], tensor) for tensor in self.signature.inputs}


def prepared(row: npt.NDArray[Any], tensor: Any) -> npt.NDArray[Any]:
    """Returns one stored sample as the input `(1, ...)` that the model takes.

    Args:
        row: As stored, without the batch.
        tensor: The `InputTensor`.
    """
    transform = tensor.board_transform()
    if transform is None:
        # A copy: rows of a memory-mapped file can't be written to, which OpenVINO's shared tensors insist on.
        return np.array(row[None], order="C")
    result: npt.NDArray[Any] = transform.apply(row)
    return result

"""Where the data stage keeps images until all are known and the splits can be decided.

Both spools are one file on disk, so that memory holds a few images at a time, however many there are.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from devices.board.preprocess import Preprocess, preprocess
from pipeline.errors import DataError
from pipeline.sources.base import DecodedImage, Pixels, Sample
from pipeline.sources.decode import decode_image

_CHUNK_SIZE_BYTES = 8 * 2**20

Rows = NDArray[np.int64]


class Spool(Protocol):
    """Takes images in the order of the source and gives them back preprocessed, in any order."""

    def add(self, sample: Sample, image: DecodedImage) -> None:
        """Appends an image."""
        ...

    def decoded(self, rows: Rows) -> Iterator[Pixels]:
        """The images of some rows, preprocessed, in pieces (n, height, width, 3)."""
        ...

    def close(self) -> None:
        """Removes the file."""
        ...


class _SpoolFile:
    def __init__(self, path: Path, record: Preprocess) -> None:
        self._path = path
        self._record = record
        self._file: BinaryIO = path.open("w+b")

    def close(self) -> None:
        """Removes the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _images_a_piece(self) -> int:
        height, width = self._record.size
        return max(1, _CHUNK_SIZE_BYTES // (height * width * 3))

    def _read(self, size: int, offset: int) -> bytes:
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) < size:
            raise DataError(f"{self._path} lost its end while it was used: run again")
        return data


class DecodedSpool(_SpoolFile):
    """Keeps images preprocessed.

    Args:
        path: Of the file to write.
        record: How images are preprocessed.
    """

    def add(self, sample: Sample, image: DecodedImage) -> None:
        """Appends an image."""
        del sample
        self._file.write(np.ascontiguousarray(preprocess(image.pixels, self._record)).data)

    def decoded(self, rows: Rows) -> Iterator[Pixels]:
        """The images of some rows, in pieces (n, height, width, 3)."""
        self._file.flush()
        height, width = self._record.size
        size = height * width * 3
        for start in range(0, len(rows), self._images_a_piece):
            piece = rows[start : start + self._images_a_piece]
            data = b"".join(self._read(size, int(row) * size) for row in piece)
            yield np.frombuffer(data, np.uint8).reshape(len(piece), height, width, 3)


class EncodedSpool(_SpoolFile):
    """Keeps the images' files, and decodes them again where that is asked for.

    Args:
        path: Of the file to write.
        record: How images are preprocessed.
    """

    def __init__(self, path: Path, record: Preprocess) -> None:
        super().__init__(path, record)
        self._ends = array("q", [0])

    def add(self, sample: Sample, image: DecodedImage) -> None:
        """Appends an image's file."""
        del image
        if sample.encoded is None:
            raise DataError(f"{sample.name} is an array and no image file: set `cache: decoded` in the data section")
        self._file.write(sample.encoded)
        self._ends.append(self._ends[-1] + len(sample.encoded))

    def sizes(self, rows: Rows) -> Sequence[int]:
        """The sizes of some rows' files in bytes."""
        return [self._ends[row + 1] - self._ends[row] for row in rows.tolist()]

    def files(self, rows: Rows) -> Iterator[bytes]:
        """The files of some rows."""
        self._file.flush()
        for row in rows.tolist():
            start = self._ends[row]
            yield self._read(self._ends[row + 1] - start, start)

    def decoded(self, rows: Rows) -> Iterator[Pixels]:
        """The images of some rows, in pieces (n, height, width, 3)."""
        images = (preprocess(decode_image(data).pixels, self._record) for data in self.files(rows))
        while piece := list(itertools.islice(images, self._images_a_piece)):
            yield np.stack(piece)


def write_images(path: Path, spool: Spool, rows: Rows, size: tuple[int, int]) -> None:
    """Writes the preprocessed images of some rows as one `.npy` file (count, height, width, 3), front to back.

    A memory-mapped file would end the process with SIGBUS on a full disk; this raises OSError.
    """
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in spool.decoded(rows):
            file.write(np.ascontiguousarray(piece).data)

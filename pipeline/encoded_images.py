"""Image files in sharded ArrayRecord files, any of them by its row."""

from __future__ import annotations

import bisect
import errno
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import CorruptArtifactError

SHARD_SIZE_BYTES = 256 * 2**20
_WRITER_OPTIONS = "group_size:1,uncompressed"
"""A record a chunk, so that reading one reads no other; JPEG and PNG files don't get smaller."""

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_SIZE_BYTES = 32 * 2**10


def shard_lengths(sizes: Iterable[int], shard_size_bytes: int = SHARD_SIZE_BYTES) -> list[int]:
    """How many files go into each shard.

    Args:
        sizes: Of the files in bytes, in their order.
        shard_size_bytes: What a shard holds, unless a single file is larger.
    """
    lengths: list[int] = []
    filled = shard_size_bytes
    for size in sizes:
        if not lengths or filled + size > shard_size_bytes:
            lengths.append(0)
            filled = 0
        lengths[-1] += 1
        filled += size
    return lengths


def shard_name(stem: str, index: int, count: int) -> str:
    """Such as `train_images-00000-of-00012.array_record`."""
    return f"{stem}-{index:05d}-of-{count:05d}.array_record"


def write_encoded_images(directory: Path, stem: str, files: Iterator[bytes], lengths: Sequence[int]) -> None:
    """Writes files into shards.

    Args:
        directory: Where to.
        stem: What the shards' names begin with.
        files: The bytes of each, in the order of the rows.
        lengths: How many go into each shard.

    Raises:
        RuntimeError: The disk is full, or can't be written; the text says which.
        OSError: A shard is not whole, and its library did not say so.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    for index, length in enumerate(lengths):
        path = directory / shard_name(stem, index, len(lengths))
        writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        try:
            for data in itertools.islice(files, length):
                writer.write(data)
        finally:
            writer.close()
        if not _is_whole(path, length):
            raise OSError(errno.EIO, f"{path} was written with fewer than its {length} files")


def _is_whole(path: Path, length: int) -> bool:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), options=_READER_OPTIONS)
    return bool(reader.ok() and reader.num_records() == length)


class EncodedImages:
    """Random access to the files in the shards; picklable, and opened anew in the process and thread that reads.

    Args:
        directory: Where the shards lie.
        stem: What their names begin with.
        lengths: How many files are in each.
    """

    def __init__(self, directory: Path, stem: str, lengths: Sequence[int]) -> None:
        self._paths = [directory / shard_name(stem, index, len(lengths)) for index in range(len(lengths))]
        self._ends = list(itertools.accumulate(lengths))
        self._readers: list[Any] = [None] * len(lengths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> bytes:
        """Returns the bytes of one file.

        Raises:
            IndexError: There is no such row.
            CorruptArtifactError: The shard is damaged.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        shard = bisect.bisect_right(self._ends, row)
        place = row - (self._ends[shard - 1] if shard else 0)
        try:
            data: bytes = self._reader(shard).read([place])[0]
        except (RuntimeError, IndexError) as error:
            raise CorruptArtifactError(
                f"{self._paths[shard]} is damaged ({error}): remove the data artifact with `edgeship store gc` or by "
                "hand, and run again"
            ) from error
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": [None] * len(self._readers), "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _reader(self, shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        if self._readers[shard] is None:
            with self._lock:
                if self._readers[shard] is None:
                    path = str(self._paths[shard])
                    self._readers[shard] = ArrayRecordReader(
                        path, options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_SIZE_BYTES
                    )
        return self._readers[shard]

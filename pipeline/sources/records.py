"""The records of a TFRecord or ArrayRecord file, front to back."""

from __future__ import annotations

import contextlib
import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from pipeline.errors import DataError
from pipeline.sources.crc32c import masked_crc32c
from pipeline.sources.decode import MAX_FILE_SIZE_BYTES

RecordReader = Callable[..., Iterator[bytes]]
"""Takes a path and `check=`, whether checksums are compared, and gives the records."""

_MAX_RECORD_SIZE_BYTES = MAX_FILE_SIZE_BYTES + 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_REMEDY = "copy or write the shard again"


def read_tfrecord(path: Path, *, check: bool = True) -> Iterator[bytes]:
    """The records of a TFRecord file, plain or compressed with GZIP.

    A record is its length (8 bytes, little-endian), the masked CRC-32C of these, its bytes and their masked CRC-32C.

    Args:
        path: The file.
        check: Whether the checksums of the bytes are compared; those of the lengths always are.

    Raises:
        DataError: The file is damaged, or ends too early.
    """
    with _read_errors(path), _open_tfrecord(path) as file:
        index = 0
        while header := file.read(_HEADER.size):
            where = f"{path} is damaged at record {index}"
            if len(header) < _HEADER.size:
                raise DataError(f"{where} (it ends in the record's length): {_REMEDY}")
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                raise DataError(f"{where} (the checksum of its length is wrong, or it is no TFRecord file): {_REMEDY}")
            if length > _MAX_RECORD_SIZE_BYTES:
                raise DataError(
                    f"{path} has a record of {length} bytes (number {index}), more than the limit of "
                    f"{_MAX_RECORD_SIZE_BYTES}: expected one image a record"
                )
            body = file.read(length + _FOOTER.size)
            if len(body) < length + _FOOTER.size:
                raise DataError(f"{where} (it ends {length + _FOOTER.size - len(body)} bytes too early): {_REMEDY}")
            record = body[:length]
            if check and masked_crc32c(record) != _FOOTER.unpack(body[length:])[0]:
                raise DataError(f"{where} (its checksum is wrong): {_REMEDY}")
            yield record
            index += 1


def read_array_record(path: Path, *, check: bool = True) -> Iterator[bytes]:
    """The records of an ArrayRecord file. Its library compares checksums, whatever `check` is.

    Raises:
        DataError: The file is damaged, or no ArrayRecord file.
    """
    del check
    from array_record.python.array_record_module import ArrayRecordReader

    _existing_file(path)
    # By default each of several threads reads 16 MiB ahead.
    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:4M,max_parallelism:1")
    index = 0
    try:
        if not reader.ok():
            reader.read()  # an empty reader that failed says why when it is read
            raise DataError(f"{path} can't be read as an ArrayRecord file: {_REMEDY}")
        for index in range(reader.num_records()):  # noqa: B007 (the message names it)
            yield reader.read()
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("; ")[0]
        raise DataError(f"{path} is damaged at record {index} ({reason}): {_REMEDY}") from error
    finally:
        with contextlib.suppress(RuntimeError):
            reader.close()


def _open_tfrecord(path: Path) -> IO[bytes]:
    """Opens a file; the checksum of the first length tells plain records from GZIP, whose magic may be a length."""
    file = path.open("rb")
    start = file.read(_HEADER.size)
    file.seek(0)
    is_plain = len(start) == _HEADER.size and masked_crc32c(start[:8]) == _HEADER.unpack(start)[1]
    if is_plain or not start.startswith(_GZIP_MAGIC):
        return file
    file.close()
    return cast("IO[bytes]", gzip.open(path, "rb"))


def _existing_file(path: Path) -> None:
    with _read_errors(path), path.open("rb"):
        pass


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): {_REMEDY}") from error
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}): check its permissions") from error

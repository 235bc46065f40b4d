"""Writes labelled images as TFRecord and ArrayRecord shards, for tests and for measuring by hand."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.sources.crc32c import masked_crc32c
from pipeline.sources.examples import _example_class


def imagenet_example(
    data: bytes, label: int | None, *, filename: str = "", text: str = "", keys: Sequence[str] = ()
) -> bytes:
    """A serialized `tf.train.Example`; `keys` are the names of the image and the label in place of ImageNet's."""
    image_key, label_key = keys or ("image/encoded", "image/class/label")
    example: Any = _example_class()()
    feature = example.features.feature
    feature[image_key].bytes_list.value.append(data)
    if label is not None:
        feature[label_key].int64_list.value.append(label)
    if filename:
        feature["image/filename"].bytes_list.value.append(filename.encode())
    if text:
        feature["image/class/text"].bytes_list.value.append(text.encode())
    return bytes(example.SerializeToString())


def framed(record: bytes) -> bytes:
    """A record as TFRecord files hold it."""
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked_crc32c(length)) + record + struct.pack("<I", masked_crc32c(record))


def write_tfrecord(path: Path, records: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        for record in records:
            file.write(framed(record))


def write_array_record(path: Path, records: Iterable[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_shards(root: Path, split: str, records: Sequence[bytes], *, count: int = 2, kind: str = "tfrecord") -> None:
    """Deals records out to shards called as ImageNet's; `kind` is tfrecord, tfrecord.gz or array_record."""
    for index in range(count):
        path = root / f"{split}-{index:05d}-of-{count:05d}.{kind}"
        write = write_array_record if kind == "array_record" else write_tfrecord
        write(path, records[index::count])


def shards_of_folder(folder: Path, root: Path, *, count: int = 2, kind: str = "tfrecord") -> None:
    """Writes `split/class/image` as shards whose records have the paths as file names and the classes as texts."""
    classes = sorted({path.parent.name for path in folder.glob("*/*/*")})
    for split_folder in sorted(folder.iterdir()):
        files = sorted(split_folder.glob("*/*"))
        records = [
            imagenet_example(
                path.read_bytes(),
                classes.index(path.parent.name) + 1,
                filename=path.relative_to(folder).as_posix(),
                text=path.parent.name,
            )
            for path in files
        ]
        write_shards(root, split_folder.name, records[::-1], count=count, kind=kind)

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from pipeline.errors import DataError
from pipeline.sources import DataConfig, Reading, Sample
from pipeline.stages.data import DataStage

TENSORFLOW_SHARD = (
    "5c00000000000000c9cdf98f0a5a0a130a03626f78120c120a0a080000003f0000803f0a180a0966696c655f6e616d65120b"
    "0a090a07612f372e6a70670a190a05696d61676512100a0e0a0c6e6f7420616e20696d6167650a0e0a056c6162656c12051a"
    "030a010703e9b063"
)
KINDS = ["tfrecord", "tfrecord.gz", "array_record"]


def read(path: Path, kind: str, **fields: Any) -> Reading:
    section = {"source": kind.removesuffix(".gz"), "path": str(path), "size": [8, 8]} | fields
    reading: Reading = TypeAdapter(DataConfig).validate_json(json.dumps(section), strict=True).read()
    return reading


def samples(reading: Reading) -> list[Sample]:
    return [item for item in reading.items if isinstance(item, Sample)]


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 255 - value, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_records_become_samples(kind: str, record_shards: ModuleType, tmp_path: Path) -> None:
    example = record_shards.imagenet_example
    files = [png(value) for value in range(5)]
    train = [example(data, 3 - i % 2, filename=f"{i}.png", text="ab"[i % 2]) for i, data in enumerate(files[:4])]
    record_shards.write_shards(tmp_path, "train", train, kind=kind)
    record_shards.write_shards(tmp_path, "validation", [example(files[4], 2, text="b")], count=1, kind=kind)

    reading = read(tmp_path, kind)
    found = samples(reading)

    assert reading.classes == ("b", "a")
    assert reading.num_images == 5
    assert [(sample.name, sample.split, sample.label) for sample in found] == [
        ("0.png", "train", "a"),
        ("2.png", "train", "a"),
        ("1.png", "train", "b"),
        ("3.png", "train", "b"),
        (f"validation-00000-of-00001.{kind}/000000", "validation", "b"),
    ]
    assert [sample.encoded for sample in found] == [files[i] for i in (0, 2, 1, 3, 4)]
    assert found[4].digest == hashlib.sha256(files[4]).hexdigest()
    assert found[1].decode().pixels[0, 0].tolist() == [2, 253, 7]


def test_shards_of_tensorflow_are_read(tmp_path: Path) -> None:
    """A plain shard, as TensorFlow's own writer made it: one record with the features of TensorFlow Datasets."""
    written = bytes.fromhex(TENSORFLOW_SHARD)
    (tmp_path / "train-00000-of-00001").write_bytes(written)

    (found,) = samples(read(tmp_path, "tfrecord"))

    assert (found.label, found.encoded, found.name) == ("7", b"not an image", "a/7.jpg")


def test_classes_are_numbers_or_the_lines_of_a_file(record_shards: ModuleType, tmp_path: Path) -> None:
    records = [record_shards.imagenet_example(png(i), label) for i, label in enumerate((10, 9, 2, 1))]
    record_shards.write_shards(tmp_path, "train", records)
    labels = tmp_path / "names.txt"
    labels.write_text("".join(f"class {number}\n" for number in range(1, 11)))

    assert read(tmp_path, "tfrecord").classes == ("1", "2", "9", "10")
    assert [sample.label for sample in samples(read(tmp_path, "tfrecord"))] == ["10", "2", "9", "1"]
    named = read(tmp_path, "tfrecord", labels=str(labels))
    assert named.classes == tuple(f"class {number}" for number in range(1, 11))
    assert [sample.label for sample in samples(named)] == ["class 10", "class 2", "class 9", "class 1"]


def test_labels_count_from_where_the_recipe_says(record_shards: ModuleType, tmp_path: Path) -> None:
    records = [record_shards.imagenet_example(png(i), i % 2) for i in range(4)]
    record_shards.write_shards(tmp_path, "train", records)
    (tmp_path / "names.txt").write_text("cat\ndog")

    with pytest.raises(DataError, match=r"has the label 0: expected 1 and up; .* set `first_label: 0`"):
        read(tmp_path, "tfrecord")
    reading = read(tmp_path, "tfrecord", first_label=0, labels=str(tmp_path / "names.txt"))
    assert [sample.label for sample in samples(reading)] == ["cat", "cat", "dog", "dog"]


def test_names_of_classes_and_images_that_repeat_get_numbers(record_shards: ModuleType, tmp_path: Path) -> None:
    example = record_shards.imagenet_example
    records = [example(png(i), 1 + i % 3, text=("crane", "crane", "ox")[i % 3], filename="same.png") for i in range(3)]
    record_shards.write_shards(tmp_path, "train", records, count=1)

    reading = read(tmp_path, "tfrecord")

    assert reading.classes == ("crane (1)", "crane (2)", "ox")
    assert [sample.name for sample in samples(reading)] == [
        "same.png",
        "train-00000-of-00001.tfrecord/000001",
        "train-00000-of-00001.tfrecord/000002",
    ]


def test_a_changed_shard_and_changed_names_change_the_fingerprint(record_shards: ModuleType, tmp_path: Path) -> None:
    def fingerprint(**fields: Any) -> str:
        section = {"source": "tfrecord", "path": str(tmp_path), "size": [8, 8]} | fields
        return str(TypeAdapter(DataConfig).validate_python(section).fingerprint())

    labels = tmp_path / "names.txt"
    labels.write_text("a\nb")
    record_shards.write_shards(tmp_path, "train", [record_shards.imagenet_example(png(1), 1)], count=1)
    plain, named = fingerprint(), fingerprint(labels=str(labels))
    assert fingerprint() == plain
    labels.write_text("a\nc")
    assert fingerprint(labels=str(labels)) not in (plain, named)
    record_shards.write_shards(tmp_path, "train", [record_shards.imagenet_example(png(1), 12, text="x")], count=1)
    assert fingerprint() != plain


@dataclass(frozen=True)
class Wrong:
    id: str
    records: Callable[[Any], list[bytes]]
    message: str
    fields: dict[str, Any]


WRONG = [
    Wrong(
        "no_label",
        lambda m: [m.imagenet_example(png(0), None)],
        "it has the features image/encoded: expected image/encoded and image/class/label or image and label",
        {},
    ),
    Wrong(
        "other_features",
        lambda m: [m.imagenet_example(png(0), 1, keys=("x", "y"))],
        "it has the features x, y: expected",
        {},
    ),
    Wrong(
        "two_layouts",
        lambda m: [m.imagenet_example(png(0), 1), m.imagenet_example(png(0), 1, keys=("image", "label"))],
        "some records are in the layout",
        {},
    ),
    Wrong("no_example", lambda _: [b"\xff\xff\xff"], "record 0 of", {}),
    Wrong("negative", lambda m: [m.imagenet_example(png(0), -1)], "has the label -1: expected 1 and up", {}),
    Wrong("empty_split", lambda _: [], "the train split has no record (train-00000-of-00001.", {}),
    Wrong(
        "two_texts",
        lambda m: [m.imagenet_example(png(0), 1, text="a"), m.imagenet_example(png(1), 1, text="b")],
        "calls the label 1 'b', and an earlier record 'a'",
        {},
    ),
    Wrong("no_names", lambda m: [m.imagenet_example(png(0), 1)], "can't be read", {"labels": "/nonexistent/names.txt"}),
]


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_records_that_do_not_fit_are_an_error(
    case: Wrong, kind: str, record_shards: ModuleType, tmp_path: Path
) -> None:
    record_shards.write_shards(tmp_path, "train", case.records(record_shards), count=1, kind=kind)

    with pytest.raises(DataError) as caught:
        read(tmp_path, kind, **case.fields)

    assert case.message in caught.value.message


def test_a_label_beyond_the_names_is_an_error(record_shards: ModuleType, tmp_path: Path) -> None:
    record_shards.write_shards(tmp_path, "train", [record_shards.imagenet_example(png(0), 3)], count=1)
    (tmp_path / "names.txt").write_text("a\nb\n")

    with pytest.raises(DataError, match=r"record 0 of .* has the label 3: expected 1 to 2, for 2 classes"):
        read(tmp_path, "tfrecord", labels=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("a\n\nb\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        read(tmp_path, "tfrecord", labels=str(tmp_path / "names.txt"))


def damaged(data: bytes, how: str) -> bytes:
    if how == "cut":
        return data[: len(data) * 2 // 3 - 7]
    if how == "cut_in_header":
        return data[:5]
    if how == "text":
        return b"this is text and not a record at all" * 3000
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["cut", "cut_in_header", "text", "flipped"])
def test_damaged_shards_are_an_error(kind: str, how: str, record_shards: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = [record_shards.imagenet_example(random.bytes(20_000), 1 + i % 2) for i in range(12)]
    record_shards.write_shards(tmp_path, "train", records, count=1, kind=kind)
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(damaged(shard.read_bytes(), how))

    with pytest.raises(DataError, match=r"train-00000-of-00001.* is damaged.*copy or write the shard again"):
        read(tmp_path, kind)


def test_a_checksum_alone_gives_a_damaged_record_away(record_shards: ModuleType, tmp_path: Path) -> None:
    whole = record_shards.framed(record_shards.imagenet_example(png(0), 1))
    for place, message in ((3, "checksum of its length"), (20, "its checksum is wrong"), (-1, "its checksum is wrong")):
        data = bytearray(whole * 2)
        data[len(whole) + place if place > 0 else place] ^= 1
        (tmp_path / "train.tfrecord").write_bytes(data)

        with pytest.raises(DataError, match=f"is damaged at record 1 .*{message}"):
            read(tmp_path, "tfrecord")


def test_one_class_is_an_error_of_the_stage(record_shards: ModuleType, tmp_path: Path) -> None:
    records = [record_shards.imagenet_example(png(value), 1, text="cat") for value in range(9)]
    record_shards.write_shards(tmp_path / "shards", "train", records)
    source = {"source": "tfrecord", "path": str(tmp_path / "shards"), "size": [8, 8]}
    stage = DataStage.model_validate_json(json.dumps({"source": source}), strict=True)
    (tmp_path / "out").mkdir()

    with pytest.raises(DataError, match=r"one class only \(cat\)"):
        stage.run({}, tmp_path / "out", lambda _: None)
    assert not list((tmp_path / "out").iterdir())

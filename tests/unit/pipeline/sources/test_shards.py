from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.sources.shards import find_shards


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@dataclass(frozen=True)
class Named:
    id: str
    names: tuple[str, ...]
    splits: tuple[str | None, ...]


NAMED = [
    Named(
        "imagenet",
        ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"),
        ("train",) * 2 + ("validation",),
    ),
    Named("folders", ("train/train-00000-of-00001", "validation/validation-00000-of-00001"), ("train", "validation")),
    Named("suffix", ("test-00000-of-00001.tfrecord", "train-00000-of-00001.tfrecord.gz"), ("test", "train")),
    Named(
        "array_record",
        tuple(f"train-{index:05d}-of-00010.array_record" for index in range(10)),
        ("train",) * 10,
    ),
    Named(
        "tfds", ("pets-test.array_record-00000-of-00001", "pets-train.array_record-00000-of-00001"), ("test", "train")
    ),
    Named("whole", ("train.tfrecord", "val.tfrecords"), ("train", "validation")),
    Named("no_splits", ("data-00000-of-00002.tfrecord", "data-00001-of-00002.tfrecord"), (None, None)),
]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.id)
def test_names_say_the_split(case: Named, tmp_path: Path) -> None:
    shards, ignored = find_shards(str(make(tmp_path, *case.names)))

    assert tuple(shard.name for shard in shards) == case.names
    assert tuple(shard.split for shard in shards) == case.splits
    assert ignored == []


def test_other_files_are_listed_and_hidden_ones_are_not(tmp_path: Path) -> None:
    make(tmp_path, "train-00000-of-00001", "labels.txt", ".cache-00000-of-00001", "train/README")

    shards, ignored = find_shards(str(tmp_path))

    assert [shard.name for shard in shards] == ["train-00000-of-00001"]
    assert [problem.name for problem in ignored] == ["labels.txt", "train/README"]


def test_a_pattern_chooses(tmp_path: Path) -> None:
    make(tmp_path, "a/train-00000-of-00001", "a/test-00000-of-00001", "b/train-00000-of-00001")

    shards, _ = find_shards(str(tmp_path / "a" / "t*-of-*"))

    assert [(shard.name, shard.split) for shard in shards] == [
        ("test-00000-of-00001", "test"),
        ("train-00000-of-00001", "train"),
    ]


@dataclass(frozen=True)
class Wrong:
    id: str
    names: tuple[str, ...]
    path: str
    message: str


WRONG = [
    Wrong(
        "missing_shard",
        ("train-00000-of-00003", "train-00002-of-00003"),
        "",
        "has 2 of the 3 shards of train: 00001 of 00003 missing",
    ),
    Wrong(
        "many_missing", ("train-00000-of-00100",), "", "00001, 00002, 00003, 00004, 00005 and 94 more of 00100 missing"
    ),
    Wrong(
        "two_writings", ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"), "", "of 1 and of 2"
    ),
    Wrong("twice", ("train-00000-of-00001.tfrecord", "train-00000-of-00001.tfrecord.gz"), "", "a shard of train twice"),
    Wrong(
        "mixed",
        ("train-00000-of-00001", "data-00000-of-00001"),
        "",
        "with a split (train-00000-of-00001) and without one (data-00000-of-00001)",
    ),
    Wrong("no_shards", ("a.txt", "b.txt"), "", "2 files, none of them a shard"),
    Wrong("no_match", ("train-00000-of-00001",), "validation-*", "no file at"),
    Wrong("nothing", (), "missing", "nothing at"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_shards_that_do_not_fit_are_an_error(case: Wrong, tmp_path: Path) -> None:
    make(tmp_path, *case.names)

    with pytest.raises(DataError) as caught:
        find_shards(str(tmp_path / case.path))

    assert case.message in caught.value.message

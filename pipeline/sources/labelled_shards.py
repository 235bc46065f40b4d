"""Labelled images in shards of records: what TFRecord, ArrayRecord and TensorFlow Datasets have in common."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.errors import DataError
from pipeline.sources.base import SPLITS, Problem, Reading, Sample, SourceConfig
from pipeline.sources.decode import decode_image
from pipeline.sources.examples import LabelledImage, Layout, parse_example
from pipeline.sources.fingerprints import file_fingerprint, listing_fingerprint
from pipeline.sources.records import RecordReader
from pipeline.sources.shards import Shard, find_shards


@dataclass(frozen=True, slots=True)
class LabelledShards:
    """Shards and how they are read.

    Args:
        shards: In their order.
        read_records: Reads the records of one.
        first_label: The number of the first class; None takes that of the records' layout.
        names: The names of all classes from `first_label` on; None takes the texts of the records, or the numbers.
        layout: What the features are called; None finds it out.
        ignored: Other files beside the shards.
    """

    shards: Sequence[Shard]
    read_records: RecordReader
    first_label: int | None = None
    names: Sequence[str] | None = None
    layout: Layout | None = None
    ignored: tuple[Problem, ...] = ()

    def read(self) -> Reading:
        """Starts a pass over all samples.

        A first pass compares the checksums and finds the labels, so that a damaged shard is known before hours of
        decoding; it takes a fraction of the time.

        Raises:
            DataError: A shard is damaged, a split is empty, or a record has no image or a label out of range.
        """
        found = _Found()
        for shard in self.shards:
            for index, image in self._images(shard, check=True):
                self._check_label(image, shard, index)
                found.add(image, shard)
        for split in SPLITS:
            of_split = [shard.name for shard in self.shards if shard.split == split]
            if of_split and not found.num_images[split]:
                raise DataError(f"the {split} split has no record ({', '.join(of_split[:3])}): write its shards again")
        if not found.labels:
            raise DataError(f"the shards hold no record ({self.shards[0].name}): write them again")
        if len(found.firsts) > 1:
            raise DataError(
                "some records are in the layout of ImageNet and some in that of TensorFlow Datasets: split them"
            )
        classes = self._classes(found)
        return Reading(tuple(classes.values()), found.num_images.total(), self._samples(classes), self.ignored)

    def _images(self, shard: Shard, *, check: bool) -> Iterator[tuple[int, LabelledImage]]:
        for index, record in enumerate(self.read_records(shard.path, check=check)):
            try:
                yield index, parse_example(record, self.layout)
            except DataError as error:
                raise DataError(f"record {index} of {shard.path} can't be used: {error.message}") from error

    def _check_label(self, image: LabelledImage, shard: Shard, index: int) -> None:
        first = self._first(image)
        last = first + len(self.names) - 1 if self.names is not None else None
        if image.label < first or (last is not None and image.label > last):
            hint = "; set `first_label: 0` where labels count from 0" if image.label == 0 else ""
            expected = f"{first} and up" if last is None else f"{first} to {last}, for {len(self.names or ())} classes"
            raise DataError(
                f"record {index} of {shard.path} has the label {image.label}: expected {expected}; correct the "
                f"records{hint}"
            )

    def _first(self, image: LabelledImage) -> int:
        return image.first_label if self.first_label is None else self.first_label

    def _classes(self, found: _Found) -> dict[int, str]:
        """The name of every class by its number, in the order of the numbers; all names differ."""
        if self.names is not None:
            first = next(iter(found.firsts)) if self.first_label is None else self.first_label
            names = dict(enumerate(self.names, start=first))
        elif found.lacks_text:
            names = {label: str(label) for label in sorted(found.labels)}
        else:
            names = {label: found.labels[label] for label in sorted(found.labels)}
        counts = Counter(names.values())
        # ImageNet has two classes called crane.
        return {label: name if counts[name] == 1 else f"{name} ({label})" for label, name in names.items()}

    def _samples(self, classes: Mapping[int, str]) -> Iterator[Sample | Problem]:
        taken: set[str] = set()
        for shard in self.shards:
            for index, image in self._images(shard, check=False):
                place = f"{shard.name}/{index:06d}"
                name = place if not image.filename or image.filename in taken else image.filename
                taken.add(name)
                yield Sample(
                    name=name,
                    split=shard.split,
                    label=classes[image.label],
                    digest=hashlib.sha256(image.encoded).hexdigest(),
                    decode=functools.partial(decode_image, image.encoded),
                    encoded=image.encoded,
                )


@dataclass(slots=True)
class _Found:
    """What the first pass found: the text of each label, and counts."""

    labels: dict[int, str] = field(default_factory=dict)
    num_images: Counter[str | None] = field(default_factory=Counter)
    firsts: set[int] = field(default_factory=set)
    lacks_text: bool = False

    def add(self, image: LabelledImage, shard: Shard) -> None:
        known = self.labels.setdefault(image.label, image.text)
        if known != image.text:
            raise DataError(
                f"{shard.path} calls the label {image.label} {image.text!r}, and an earlier record {known!r}: expected "
                "one text a label; correct the records, or name the classes in a file (`labels`)"
            )
        self.lacks_text |= not image.text
        self.num_images[shard.split] += 1
        self.firsts.add(image.first_label)


def read_class_names(path_text: str) -> tuple[str, ...]:
    """The lines of a text file, a class each.

    Raises:
        DataError: There is no such file, it is no UTF-8, or a line is empty.
    """
    path = Path(path_text).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} can't be read ({error}): expected a text file with the name of a class on each line; correct "
            "`labels` in the data section"
        ) from error
    names = tuple(line.strip() for line in lines)
    if not names or "" in names:
        where = f"line {names.index('') + 1} is empty" if names else "it is empty"
        raise DataError(f"{path} does not name the classes ({where}): expected the name of a class on each line")
    return names


def shards_fingerprint(shards: Sequence[Shard], labels: str | None) -> str:
    """A digest over the names, sizes and modification times of shards, and over the file with the classes' names."""
    try:
        states = [(shard.name, shard.path.stat()) for shard in shards]
    except OSError as error:
        raise DataError(f"{error.filename} can't be read ({error.strerror}): check its permissions") from error
    listing = listing_fingerprint((name, state.st_size, state.st_mtime_ns) for name, state in states)
    return listing if labels is None else f"{listing} {file_fingerprint(Path(labels).expanduser())}"


class ShardsConfig(SourceConfig):
    """Labelled images in shards that a recipe names by their place.

    Attributes:
        path: A directory, whose folders are looked through one level deep, or a pattern such as `imagenet/*-of-*`.
        labels: A text file with the name of a class on each line, the first for `first_label`. Without it the classes
            are called as the records' texts say, or by their numbers.
        first_label: The number of the first class; None takes 1 for `image/class/label`, as in ImageNet's shards, and
            0 for `label`.
    """

    has_files: ClassVar[bool] = True
    place_fields: ClassVar[tuple[str, ...]] = ("path", "labels")
    read_records: ClassVar[RecordReader]

    path: Annotated[str, Field(min_length=1)]
    labels: Annotated[str, Field(min_length=1)] | None = None
    first_label: Annotated[int, Field(ge=0)] | None = None

    def fingerprint(self) -> str:
        """A digest of the shards' names, sizes and modification times."""
        return shards_fingerprint(find_shards(self.path)[0], self.labels)

    def read(self) -> Reading:
        """Starts a pass over all samples."""
        shards, ignored = find_shards(self.path)
        names = None if self.labels is None else read_class_names(self.labels)
        return LabelledShards(shards, type(self).read_records, self.first_label, names, ignored=tuple(ignored)).read()

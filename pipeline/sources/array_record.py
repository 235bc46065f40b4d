"""ArrayRecord shards of labelled images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.sources.base import Reading, SourceConfig
from pipeline.sources.labelled_shards import LabelledShards, read_class_names, shards_fingerprint
from pipeline.sources.records import read_array_record
from pipeline.sources.shards import find_shards


class ArrayRecordConfig(SourceConfig):
    """`tf.train.Example` records in ArrayRecord shards, which Grain and TensorFlow Datasets write.

    Names, features and classes are those of `pipeline.sources.tfrecord.TfrecordConfig`.

    Attributes:
        path: A directory, whose folders are looked through one level deep, or a pattern such as `imagenet/*-of-*`.
        labels: A text file with the name of a class on each line, the first for `first_label`. Without it the classes
            are called as the records' texts say, or by their numbers.
        first_label: The number of the first class; None takes 1 for `image/class/label`, as in ImageNet's shards, and
            0 for `label`.
    """

    has_files: ClassVar[bool] = True
    place_fields: ClassVar[tuple[str, ...]] = ("path", "labels")

    source: Literal["array_record"]
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
        return LabelledShards(shards, read_array_record, self.first_label, names, ignored=tuple(ignored)).read()

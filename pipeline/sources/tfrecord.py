"""TFRecord shards of labelled images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.sources.base import Reading, SourceConfig
from pipeline.sources.labelled_shards import LabelledShards, read_class_names, shards_fingerprint
from pipeline.sources.records import read_tfrecord
from pipeline.sources.shards import find_shards


class TfrecordConfig(SourceConfig):
    """`tf.train.Example` records in TFRecord shards, plain or compressed with GZIP.

    Shards are called `train-00000-of-01024`, `validation-00000-of-00128.tfrecord` and the like (see
    `pipeline.sources.shards`), and all of a set must be there. Features are those of ImageNet's shards,
    `image/encoded`, `image/class/label` and, where they are there, `image/class/text` and `image/filename`, or those
    of TensorFlow Datasets, `image`, `label` and `file_name`. An image is called by its file name; one that has none, or
    whose name was there before, by its shard and place.

    Attributes:
        path: A directory, whose folders are looked through one level deep, or a pattern such as `imagenet/*-of-*`.
        labels: A text file with the name of a class on each line, the first for `first_label`. Without it the classes
            are called as the records' texts say, or by their numbers.
        first_label: The number of the first class; None takes 1 for `image/class/label`, as in ImageNet's shards, and
            0 for `label`.
    """

    has_files: ClassVar[bool] = True
    place_fields: ClassVar[tuple[str, ...]] = ("path", "labels")

    source: Literal["tfrecord"]
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
        return LabelledShards(shards, read_tfrecord, self.first_label, names, ignored=tuple(ignored)).read()

"""TFRecord shards of labelled images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.sources.labelled_shards import ShardsConfig
from pipeline.sources.records import RecordReader, read_tfrecord


class TfrecordConfig(ShardsConfig):
    """`tf.train.Example` records in TFRecord shards, plain or compressed with GZIP.

    Shards are called `train-00000-of-01024`, `validation-00000-of-00128.tfrecord` and the like (see
    `pipeline.sources.shards`), and all of a set must be there. Features are those of ImageNet's shards,
    `image/encoded`, `image/class/label` and, where they are there, `image/class/text` and `image/filename`, or those
    of TensorFlow Datasets, `image`, `label` and `file_name`. An image is called by its file name; one that has none, or
    whose name was there before, by its shard and place.
    """

    read_records: ClassVar[RecordReader] = staticmethod(read_tfrecord)

    source: Literal["tfrecord"]

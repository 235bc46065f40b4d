"""ArrayRecord shards of labelled images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.sources.labelled_shards import ShardsConfig
from pipeline.sources.records import RecordReader, read_array_record


class ArrayRecordConfig(ShardsConfig):
    """`tf.train.Example` records in ArrayRecord shards, which Grain and TensorFlow Datasets write.

    Names, features and classes are those of `pipeline.sources.tfrecord.TfrecordConfig`.
    """

    read_records: ClassVar[RecordReader] = staticmethod(read_array_record)

    source: Literal["array_record"]

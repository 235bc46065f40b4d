"""Where labelled images come from: one file a source, and the table of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.sources.array_record import ArrayRecordConfig
from pipeline.sources.base import (
    SPLITS,
    DecodedImage,
    Problem,
    Reading,
    Sample,
    Source,
    SourceConfig,
    Split,
)
from pipeline.sources.decode import decode_image
from pipeline.sources.digits import DigitsConfig
from pipeline.sources.image_folder import ImageFolderConfig
from pipeline.sources.keras_datasets import KerasDatasetsConfig
from pipeline.sources.npz import NpzConfig
from pipeline.sources.samples import ArraysConfig, RandomConfig
from pipeline.sources.tfds import TfdsConfig
from pipeline.sources.tfrecord import TfrecordConfig

AnySource = (
    ArrayRecordConfig | DigitsConfig | ImageFolderConfig | KerasDatasetsConfig | NpzConfig | TfdsConfig | TfrecordConfig
)

SOURCES: dict[str, type[AnySource]] = {
    "array_record": ArrayRecordConfig,
    "digits": DigitsConfig,
    "image_folder": ImageFolderConfig,
    "keras_datasets": KerasDatasetsConfig,
    "npz": NpzConfig,
    "tfds": TfdsConfig,
    "tfrecord": TfrecordConfig,
}
"""By the name that a recipe gives in `data: {source: ...}`."""

DataConfig = Annotated[AnySource, Field(discriminator="source")]
"""Labelled images: one of `SOURCES`, told apart by its field `source`."""

RecipeData = Annotated[AnySource | ArraysConfig | RandomConfig, Field(discriminator="source")]
"""The data section of a recipe: labelled images, or what a model of one's own is fed with."""

__all__ = [
    "SOURCES",
    "SPLITS",
    "ArrayRecordConfig",
    "ArraysConfig",
    "DataConfig",
    "DecodedImage",
    "DigitsConfig",
    "ImageFolderConfig",
    "KerasDatasetsConfig",
    "NpzConfig",
    "Problem",
    "RandomConfig",
    "Reading",
    "RecipeData",
    "Sample",
    "Source",
    "SourceConfig",
    "Split",
    "TfdsConfig",
    "TfrecordConfig",
    "decode_image",
]

"""Where labelled images come from: one file a source, and the table of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
from pipeline.sources.npz import NpzConfig
from pipeline.sources.samples import ArraysConfig, RandomConfig

SOURCES: dict[str, type[DigitsConfig] | type[ImageFolderConfig] | type[NpzConfig]] = {
    "digits": DigitsConfig,
    "image_folder": ImageFolderConfig,
    "npz": NpzConfig,
}
"""By the name that a recipe gives in `data: {source: ...}`."""

DataConfig = Annotated[DigitsConfig | ImageFolderConfig | NpzConfig, Field(discriminator="source")]
"""Labelled images: one of `SOURCES`, told apart by its field `source`."""

RecipeData = Annotated[
    DigitsConfig | ImageFolderConfig | NpzConfig | ArraysConfig | RandomConfig, Field(discriminator="source")
]
"""The data section of a recipe: labelled images, or what a model of one's own is fed with."""

__all__ = [
    "SOURCES",
    "SPLITS",
    "ArraysConfig",
    "DataConfig",
    "DecodedImage",
    "DigitsConfig",
    "ImageFolderConfig",
    "NpzConfig",
    "Problem",
    "RandomConfig",
    "Reading",
    "RecipeData",
    "Sample",
    "Source",
    "SourceConfig",
    "Split",
    "decode_image",
]

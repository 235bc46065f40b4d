"""What a source of labelled images is, and the fields that every source shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from devices.board.preprocess import Preprocess
from pipeline.stages.base import FrozenConfig

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Pixels = NDArray[np.uint8]
"""An image `(height, width, 3)`, RGB, 0..255."""

Length = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as RGB.

    Args:
        pixels: `(height, width, 3)`, uint8, with the orientation that a camera stored already applied.
        mode: How the pixels were stored, by Pillow's name: `L`, `RGB`, `RGBA`, `P`, `I;16`, `CMYK`.
    """

    pixels: Pixels
    mode: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image that is not decoded yet.

    Args:
        name: Unique inside the source: a path relative to its root, or an array's name and an index.
        split: What the source says; None throughout a source that has no splits.
        label: The name of the class.
        digest: SHA-256 of the file's bytes; for an array of its dtype, shape and pixel bytes.
        decode: Decodes the image, or raises `DataError` with the reason why it can't.
        encoded: The bytes of the JPEG or PNG file; None for an array.
    """

    name: str
    split: Split | None
    label: str
    digest: str
    decode: Callable[[], DecodedImage]
    encoded: bytes | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass over a source.

    Args:
        classes: The names of the classes, in the order of their indices.
        num_images: How many items will come.
        items: The samples, in any order; a `Problem` in place of an image that can't be read.
        ignored: Files that are no images, or that are refused, and are therefore not among the items.
    """

    classes: tuple[str, ...]
    num_images: int
    items: Iterator[Sample | Problem]
    ignored: tuple[Problem, ...] = ()


class Source(Protocol):
    """Where labelled images come from."""

    def fingerprint(self) -> str:
        """A text that changes when the content changes, cheap enough for a run that does no other work.

        A source that fetches its images may do it here, once, where the text depends on what comes.

        Raises:
            DataError: If there is nothing at the source's path.
        """
        ...

    def read(self) -> Reading:
        """Starts a pass over all samples.

        Raises:
            DataError: If the source as a whole can't be used.
        """
        ...


class SourceConfig(FrozenConfig):
    """The fields that every source has in a recipe's `data` section.

    Args:
        size: Height and width of the images that the network sees.
        resize: See `devices.board.preprocess.Preprocess`.
        crop: See `devices.board.preprocess.Preprocess`.
        interpolation: See `devices.board.preprocess.Preprocess`.
        crop_fraction: See `devices.board.preprocess.Preprocess`.
        seed: Shapes the splits that are drawn, and nothing else here.
        validation_fraction: Share of the images that a validation split is drawn from. Not used by a source
            that has both a validation and a test split.
        test_fraction: Share of the images that a test split is drawn from. Not used by a source that has one.
        on_unreadable: What an image that can't be decoded means: `error` ends the stage, `skip` lists it in
            `dataset.json` and goes on without it.
        min_images_per_class: A class with fewer images is an error.
        cache: How the training images are kept: `decoded` as an array of the size above, or `encoded` as the files
            that they are, so that a random crop sees their original resolution; `auto` takes `decoded` up to 4 GiB.

    Class variables:
        has_files: Whether its images are JPEG or PNG files, and not arrays.
        place_fields: Fields that say where it lies; what lies there is the fingerprint's affair.
        tools: Distributions that shape what it gives, beside NumPy and Pillow.
    """

    has_files: ClassVar[bool] = False
    place_fields: ClassVar[tuple[str, ...]] = ("path",)
    tools: ClassVar[tuple[str, ...]] = ()

    size: tuple[Length, Length]
    resize: Literal["stretch", "shorter_side"] = "stretch"
    crop: Literal["none", "center"] = "none"
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    crop_fraction: float = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    on_unreadable: Literal["error", "skip"] = "error"
    min_images_per_class: Annotated[int, Field(ge=2)] = 2
    cache: Literal["auto", "decoded", "encoded"] = "auto"

    @model_validator(mode="after")
    def _is_a_preprocess_record(self) -> Self:
        self.preprocess()
        return self

    @model_validator(mode="after")
    def _leave_images_for_training(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction {self.test_fraction} "
                "leave no images for training: choose fractions whose sum is below 1"
            )
        return self

    @model_validator(mode="after")
    def _has_what_is_cached(self) -> Self:
        if self.cache == "encoded" and not self.has_files:
            raise ValueError(
                "cache is encoded, but this source gives arrays and no image files: set cache to auto or decoded"
            )
        return self

    def preprocess(self) -> Preprocess:
        """The record that training, evaluation and the board share."""
        return Preprocess(
            size=self.size,
            resize=self.resize,
            crop=self.crop,
            interpolation=self.interpolation,
            crop_fraction=self.crop_fraction,
        )

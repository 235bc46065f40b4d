"""What a batch holds: the order of an epoch, class weights, and the images as the draws change them.

It depends on the seed, the epoch and the step alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from devices.board.preprocess import Preprocess, preprocess
from pipeline.errors import InputError
from pipeline.training.augmentation import pillow
from pipeline.training.augmentation.draws import Draws, Mixing, crop_box, draw_images, draw_mixing
from pipeline.training.config import TrainConfig

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]

_ORDER, _IMAGES, _MIXING = range(3)
"""Streams of random numbers of an epoch."""


class Images(Protocol):
    """What the loader needs of `pipeline.training.images.TrainingImages`."""

    classes: tuple[str, ...]
    labels: Rows
    size: tuple[int, int]
    preprocess: Preprocess
    encoded: bool

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Pixels: ...


def epoch_order(labels: npt.ArrayLike, seed: int, epoch: int, sampling: str) -> Rows:
    """Returns the rows of an epoch in the order in which they are learned from.

    Args:
        labels: (images,) classes.
        seed: Of the training.
        epoch: From 0.
        sampling: `natural`: every image once. `balanced`: as many images, every class that there is equally often
            (to one), and within a class every image equally often (to one).

    Returns:
        (images,) int64.
    """
    rng = np.random.default_rng([seed, epoch, _ORDER, 0])
    labels = np.asarray(labels)
    if sampling == "natural":
        return rng.permutation(len(labels)).astype(np.int64)
    classes = rng.permutation(np.unique(labels))
    drawn = []
    for place, label in enumerate(classes.tolist()):
        rows = np.flatnonzero(labels == label)
        wanted = len(labels) // len(classes) + (place < len(labels) % len(classes))
        passes = [rng.permutation(rows) for _ in range(math.ceil(wanted / len(rows)))]
        drawn.append(np.concatenate([*passes, rows[:0]])[:wanted])
    return rng.permutation(np.concatenate(drawn)).astype(np.int64)


def class_weights(
    given: str | Mapping[str, float], labels: npt.ArrayLike, classes: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    """Returns (classes,) float32 weights of the loss, on average one over the training images; None for `none`.

    Args:
        given: `none`, `balanced` (images / (classes * images of the class)), or a weight for each class.
        labels: (images,) classes.
        classes: Their names.

    Raises:
        InputError: A name is no class, or a class has no weight.
    """
    if given == "none":
        return None
    counts = np.bincount(np.asarray(labels), minlength=len(classes)).astype(np.float64)
    if isinstance(given, str):
        weights = 1 / np.maximum(counts, 1)
    else:
        unknown = [name for name in given if name not in classes]
        missing = [name for name in classes if name not in given]
        if unknown or missing:
            problems = [f"unknown: {', '.join(unknown)}"] * bool(unknown)
            problems += [f"missing: {', '.join(missing)}"] * bool(missing)
            raise InputError(
                f"train.class_weights doesn't name each class once ({'; '.join(problems)}). Give a weight for each "
                f"of: {', '.join(classes)}."
            )
        weights = np.array([given[name] for name in classes], np.float64)
    normalized: npt.NDArray[np.float64] = weights * counts.sum() / (weights * counts).sum()
    return normalized.astype(np.float32)


@dataclass(frozen=True)
class TrainingBatches:
    """Random access to the batches of a training, for grain; sent to the worker processes."""

    images: Images
    config: TrainConfig
    weights: npt.NDArray[np.float32] | None
    block: slice
    on_accelerator: bool
    size: tuple[int, int]
    strength: float
    first_step: int
    end_step: int
    orders: dict[int, Rows] = field(default_factory=dict)

    def size_bytes(self) -> int:
        """Returns about how large a batch is."""
        images: int = self.block.stop - self.block.start
        return 3 * self.size[0] * self.size[1] * images

    def __len__(self) -> int:
        return self.end_step - self.first_step

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, step = divmod(self.first_step + index, len(self.images) // self.config.batch_size)
        rows = self._order(epoch)[step * self.config.batch_size :][self.block]
        draws = draw_images(
            self.config.augmentation,
            self.config.batch_size,
            self.size,
            strength=self.strength,
            rng=self._random(epoch, _IMAGES, step),
        ).of(self.block)
        mixing = self._mixing(epoch, step)
        pixels = self._pixels(rows, draws)
        inputs: dict[str, npt.NDArray[Any]] = {"image": pixels}
        if self.on_accelerator:
            inputs |= draws.accelerator_inputs()
            if self.config.augmentation.mixup or self.config.augmentation.cutmix:
                inputs |= mixing.accelerator_inputs(len(rows))
        else:
            pillow.mix(pixels, mixing)
        labels = self.images.labels[rows]
        batch = {"inputs": inputs, "targets": self._targets(labels, mixing), "rows": rows}
        return batch if self.weights is None else {**batch, "weights": self.weights[labels]}

    def _random(self, epoch: int, stream: int, step: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, epoch, stream, step])

    def _order(self, epoch: int) -> Rows:
        order = self.orders.get(epoch)
        if order is None:
            order = epoch_order(self.images.labels, self.config.seed, epoch, self.config.sampling)
            self.orders[epoch] = order
            self.orders.pop(epoch - 2, None)  # the one before may still be read by another thread
        return order

    def _mixing(self, epoch: int, step: int) -> Mixing:
        if epoch >= self.config.epochs - self.config.augmentation.stop_mixing_epochs and self.config.epochs:
            return Mixing()
        rng = self._random(epoch, _MIXING, step)
        return draw_mixing(self.config.augmentation, self.size, strength=self.strength, rng=rng)

    def _targets(self, labels: Rows, mixing: Mixing) -> npt.NDArray[np.float32]:
        targets = np.zeros((len(labels), len(self.images.classes)), np.float32)
        targets[np.arange(len(labels)), labels] = 1
        if mixing.share == 1:
            return targets
        neighbors = targets.reshape(-1, 2, targets.shape[1])[:, ::-1].reshape(targets.shape)
        share = np.float32(mixing.share)
        mixed: npt.NDArray[np.float32] = share * targets + (1 - share) * neighbors
        return mixed

    def _pixels(self, rows: Rows, draws: Draws) -> Pixels:
        pixels = np.empty((len(rows), *self.size, 3), np.uint8)
        in_loader = not self.on_accelerator
        for index, row in enumerate(rows.tolist()):
            pixels[index] = self._image(self.images[row], draws, index, in_loader=in_loader)
            if in_loader and draws.erase is not None and draws.noise is not None:
                pillow.erase(pixels[index], draws.erase[index], int(draws.noise[index]))
        return pixels

    def _image(self, image: Pixels, draws: Draws, index: int, *, in_loader: bool) -> Pixels:
        """Returns one image after all that is done to it by itself."""
        picture: Image.Image | None = None
        crop = self.config.augmentation.crop
        if crop is not None and draws.crop is not None:
            box = crop_box(draws.crop[index], image.shape[:2], min_area=crop.min_area, max_ratio=crop.max_ratio)
            picture = Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR, box=box)
        elif image.shape[:2] != self.size:
            image = preprocess(image, self._record())
        if draws.shift is not None:
            image = _shifted(image if picture is None else np.asarray(picture), draws.shift[index])
            picture = None
        if draws.flip is not None and draws.flip[index]:
            image = image[:, ::-1]
            picture = None if picture is None else picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if in_loader and (draws.color is not None or draws.numbers is not None):
            picture = Image.fromarray(image) if picture is None else picture
            picture = pillow.change_pixels(picture, draws, index)
        return image if picture is None else np.asarray(picture)

    def _record(self) -> Preprocess:
        """Returns how an image of another size becomes one of this; a decoded one has been cropped already."""
        record = self.images.preprocess
        if self.images.encoded:
            return dataclasses.replace(record, size=self.size)
        return Preprocess(self.size, interpolation=record.interpolation)


def _shifted(image: Pixels, shift: npt.NDArray[np.int32]) -> Pixels:
    """Returns the image moved up and left; the border is repeated."""
    height, width = image.shape[:2]
    down, right = shift.tolist()
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    shifted: Pixels = image.take(rows, axis=0).take(columns, axis=1)
    return shifted

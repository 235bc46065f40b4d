"""Batches of augmented training images, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.training.config import AugmentationConfig

Image = npt.NDArray[np.uint8]


def augment(image: Image, config: AugmentationConfig, rng: np.random.Generator) -> Image:
    """Returns a randomly changed copy of an image (height, width, 3) uint8.

    All random numbers are drawn whatever the config says, so that switching one change off leaves the others'
    numbers as they are.
    """
    height, width = image.shape[:2]
    draws = rng.random(5)
    reach_y, reach_x = int(config.shift * height), int(config.shift * width)
    shift_y = int(draws[0] * (2 * reach_y + 1)) - reach_y
    shift_x = int(draws[1] * (2 * reach_x + 1)) - reach_x
    if shift_y or shift_x:
        rows = np.clip(np.arange(height) + shift_y, 0, height - 1)
        columns = np.clip(np.arange(width) + shift_x, 0, width - 1)
        image = image[rows[:, None], columns]
    if config.flip and draws[2] < 0.5:
        image = image[:, ::-1]
    if config.brightness or config.contrast:
        gain = np.float32(1 + (2 * draws[3] - 1) * config.contrast)
        offset = np.float32(255 * (2 * draws[4] - 1) * config.brightness)
        image = np.clip(np.rint((image - np.float32(127.5)) * gain + np.float32(127.5) + offset), 0, 255)
    return np.ascontiguousarray(image, dtype=np.uint8)


class _TrainingImages:
    """Random access to a split for grain."""

    def __init__(self, images: Image, labels: npt.NDArray[np.int64], targets: npt.NDArray[np.float32]) -> None:
        self._images, self._labels, self._targets = images, labels, targets

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image, npt.NDArray[np.float32]]:
        return np.asarray(self._images[index]), self._targets[self._labels[index]]


def epoch_of_batches(
    images: Image,
    labels: npt.NDArray[np.int64],
    *,
    num_classes: int,
    batch_size: int,
    augmentation: AugmentationConfig,
    seed: int,
    epoch: int,
) -> Any:
    """Returns one epoch as a grain dataset of batches.

    Args:
        images: (images, height, width, 3) uint8; may be memory-mapped.
        labels: (images,).
        num_classes: Length of the one-hot targets.
        batch_size: Images a batch; a smaller rest is left out.
        augmentation: What is changed at random.
        seed: Of the training.
        epoch: Which epoch, from 0.

    Returns:
        A `grain.MapDataset` of `(images uint8, one-hot targets float32)`.
    """
    import grain

    source = _TrainingImages(images, labels, np.eye(num_classes, dtype=np.float32))
    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]) % 2**31
    return (
        grain.MapDataset.source(source)
        .seed(epoch_seed)
        .shuffle()
        .random_map(lambda item, rng: (augment(item[0], augmentation, rng), item[1]))
        .batch(batch_size, drop_remainder=True)
    )

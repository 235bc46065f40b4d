"""Batches and augmentation: random, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.training.config import AugmentationConfig
from pipeline.training.loader import augment, epoch_of_batches

NONE = AugmentationConfig(shift=0, flip=False, brightness=0, contrast=0)
ALL = AugmentationConfig(shift=0.25, flip=True, brightness=0.2, contrast=0.3)
COUNT, CLASSES = 23, 5


def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Images whose every pixel says which image it is."""
    labels = np.arange(COUNT) % CLASSES
    images = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (COUNT, 8, 8, 3)).copy()
    return images, labels


def epoch(augmentation: AugmentationConfig, *, seed: int = 0, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, labels = labelled()
    batches = epoch_of_batches(
        images, labels, num_classes=CLASSES, batch_size=5, augmentation=augmentation, seed=seed, epoch=number
    )
    parts = list(batches)
    assert [len(part[0]) for part in parts] == [5] * (COUNT // 5)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def test_targets_follow_their_images() -> None:
    images, targets = epoch(NONE)
    assert images.dtype == np.uint8
    assert targets.dtype == np.float32
    rows = images[:, 0, 0, 0]
    np.testing.assert_array_equal(targets.argmax(axis=1), rows % CLASSES)
    np.testing.assert_array_equal(targets.sum(axis=1), 1)
    assert len(set(rows.tolist())) == len(rows), "an image came twice in one epoch"
    assert (rows != np.sort(rows)).any(), "the images are not shuffled"


def test_the_same_seed_and_epoch_give_the_same_batches() -> None:
    for first, second in zip(epoch(ALL, seed=3, number=7), epoch(ALL, seed=3, number=7), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("seed", "number"), [(3, 8), (4, 7), (7, 3)])
def test_another_seed_or_epoch_gives_others(seed: int, number: int) -> None:
    assert (epoch(ALL, seed=3, number=7)[0] != epoch(ALL, seed=seed, number=number)[0]).any()
    assert (epoch(NONE, seed=3, number=7)[1] != epoch(NONE, seed=seed, number=number)[1]).any()


def gradient() -> np.ndarray:
    rows, columns = np.mgrid[0:8, 0:8]
    return np.stack([rows * 30, columns * 30, rows + columns], axis=-1).astype(np.uint8)


def drawn(config: AugmentationConfig, count: int = 200) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [augment(gradient(), config, rng) for _ in range(count)]


def test_nothing_changes_without_augmentation() -> None:
    for image in drawn(NONE, 5):
        np.testing.assert_array_equal(image, gradient())


def test_shift_repeats_the_border_and_keeps_to_its_reach() -> None:
    config = NONE.model_copy(update={"shift": 0.25})
    reached = set()
    for image in drawn(config):
        shift_y, shift_x = int(image[4, 4, 0]) // 30 - 4, int(image[4, 4, 1]) // 30 - 4
        reached.add((shift_y, shift_x))
        rows = np.clip(np.arange(8) + shift_y, 0, 7)
        columns = np.clip(np.arange(8) + shift_x, 0, 7)
        np.testing.assert_array_equal(image, gradient()[rows[:, None], columns])
    assert reached == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_flip_mirrors_half_of_the_images() -> None:
    config = NONE.model_copy(update={"flip": True})
    mirrored = [not np.array_equal(image, gradient()) for image in drawn(config)]
    assert 70 < sum(mirrored) < 130
    image = next(image for image, is_mirrored in zip(drawn(config), mirrored, strict=True) if is_mirrored)
    np.testing.assert_array_equal(image, gradient()[:, ::-1])
    assert image.flags["C_CONTIGUOUS"]


def test_brightness_and_contrast_keep_to_their_range() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    bright = [int(augment(grey, NONE.model_copy(update={"brightness": 0.1}), rng)[0, 0, 0]) for _ in range(300)]
    assert 74 <= min(bright) < 80
    assert 120 < max(bright) <= 126
    contrast = [int(augment(grey, NONE.model_copy(update={"contrast": 0.5}), rng)[0, 0, 0]) for _ in range(300)]
    assert 86 <= min(contrast) < 90
    assert 110 < max(contrast) <= 114
    white = augment(np.full((2, 2, 3), 255, np.uint8), ALL, np.random.default_rng(1))
    assert white.dtype == np.uint8


def test_switching_one_change_off_leaves_the_others() -> None:
    both = ALL.model_copy(update={"brightness": 0, "contrast": 0})
    shifted = both.model_copy(update={"flip": False})
    for first, second in zip(drawn(both, 20), drawn(shifted, 20), strict=True):
        assert np.array_equal(first, second) or np.array_equal(first[:, ::-1], second)


def test_the_given_image_is_not_written_to() -> None:
    image = gradient()
    image.flags.writeable = False
    augment(image, ALL, np.random.default_rng(0))
    assert np.array_equal(image, gradient())

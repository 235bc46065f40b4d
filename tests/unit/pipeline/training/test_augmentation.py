"""What is drawn, and what Pillow makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.training.augmentation import operations, pillow
from pipeline.training.augmentation.draws import Mixing, crop_box, draw_images, draw_mixing
from pipeline.training.config import AugmentationConfig

COUNT, SIZE = 4000, (32, 48)
EVERYTHING = {
    "crop": {},
    "shift": 0.1,
    "flip": True,
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.4,
    "rand_augment": {},
    "erase": 0.3,
}
DRAWN_BY = {
    "crop": ("crop",),
    "shift": ("shift",),
    "flip": ("flip",),
    "rand_augment": ("numbers", "arguments", "matrices"),
    "erase": ("erase", "noise"),
}


def config(**changes: object) -> AugmentationConfig:
    return AugmentationConfig.model_validate({"shift": 0, **changes})


def drawn(settings: AugmentationConfig, *, count: int = COUNT, strength: float = 1.0, seed: int = 0) -> object:
    return draw_images(settings, count, SIZE, strength=strength, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("left_out", DRAWN_BY)
def test_leaving_one_change_out_leaves_the_others_draws(left_out: str) -> None:
    everything = drawn(config(**EVERYTHING), count=20)
    fewer = drawn(config(**{name: value for name, value in EVERYTHING.items() if name != left_out}), count=20)
    for name in ("crop", "shift", "flip", "color", "numbers", "arguments", "matrices", "erase", "noise"):
        if name in DRAWN_BY[left_out]:
            assert getattr(fewer, name) is None
        else:
            np.testing.assert_array_equal(getattr(everything, name), getattr(fewer, name))


def test_a_part_of_the_draws_is_that_of_the_whole() -> None:
    whole = drawn(config(**EVERYTHING), count=20)
    part = whole.of(slice(8, 12))
    np.testing.assert_array_equal(part.matrices, whole.matrices[8:12])
    assert part.flip.shape == (4,)


def test_shift_reaches_its_range_evenly() -> None:
    shift = drawn(config(shift=0.125)).shift
    assert shift.min(axis=0).tolist() == [-4, -6]
    assert shift.max(axis=0).tolist() == [4, 6]
    counts = np.bincount(shift[:, 0] + 4)
    assert counts.min() > 0.7 * COUNT / 9


def crops(image: tuple[int, int], **settings: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    limits = {"min_area": 0.25, "max_ratio": 4 / 3, **settings}
    return np.array([crop_box(rng.random((10, 4)), image, **limits) for _ in range(2000)])


def test_crops_keep_to_area_and_ratio() -> None:
    left, top, right, bottom = crops((90, 120)).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 120).all()
    assert (bottom <= 90).all()
    area = (right - left) * (bottom - top) / (90 * 120)
    ratio = (right - left) / (bottom - top)
    assert 0.24 < area.min() < 0.27
    assert area.max() > 0.95
    assert 0.73 < ratio.min() < 0.78
    assert 1.29 < ratio.max() < 1.37
    assert {0, 120 - 60} <= set(np.clip(left, 0, 60).tolist())


def test_a_crop_that_never_fits_is_the_middle() -> None:
    """Of a strip, no box of nearly all the area has an allowed ratio."""
    assert {tuple(box) for box in crops((10, 100), min_area=0.99).tolist()} == {(43, 0, 56, 10)}


def test_the_whole_image_is_a_crop() -> None:
    assert {tuple(box) for box in crops((16, 16), min_area=1.0, max_ratio=1.0).tolist()} == {(0, 0, 16, 16)}


@pytest.mark.parametrize(("probability", "num_ops"), [(0.5, 2), (1.0, 3)])
def test_operations_are_drawn_evenly_for_each_image(probability: float, num_ops: int) -> None:
    numbers = drawn(config(rand_augment={"probability": probability, "num_ops": num_ops})).numbers
    assert numbers.shape == (COUNT, num_ops)
    shares = np.bincount(numbers.ravel(), minlength=16) / numbers.size
    assert shares[0] == pytest.approx(1 - probability, abs=0.02)
    np.testing.assert_allclose(shares[1:], probability / 15, rtol=0.3)


ARGUMENTS_AT_NINE = {
    "rotate": {27.0, -27.0},
    "posterize": {1.0},
    "solarize": {26.0},
    "solarize_add": {99.0},
    "color": {1.81, 0.19},
    "sharpness": {1.81, 0.19},
    "shear_x": {0.27, -0.27},
    "translate_y": {0.405, -0.405},
    "invert": {0.0},
}


@pytest.mark.parametrize("name", ARGUMENTS_AT_NINE)
def test_arguments_at_magnitude_nine(name: str) -> None:
    draws = drawn(config(rand_augment={"magnitude": 9, "magnitude_std": 0, "probability": 1}))
    found = draws.arguments[draws.numbers == operations.NUMBERS[name]]
    assert {round(float(value), 4) for value in found} == ARGUMENTS_AT_NINE[name]


def test_strength_scales_the_magnitude_and_the_odds_of_erasing() -> None:
    settings = config(rand_augment={"magnitude": 10, "magnitude_std": 0, "probability": 1}, erase=0.8, brightness=0.5)
    full, half, none = (drawn(settings, strength=strength) for strength in (1.0, 0.5, 0.0))
    rotated = full.numbers == operations.NUMBERS["rotate"]
    np.testing.assert_allclose(half.arguments[rotated], full.arguments[rotated] / 2)
    assert full.erase.any(axis=1).mean() == pytest.approx(0.8, abs=0.03)
    assert half.erase.any(axis=1).mean() == pytest.approx(0.4, abs=0.03)
    assert not none.erase.any()
    identity = np.broadcast_to(np.eye(3, 4), none.color.shape)
    np.testing.assert_array_equal(none.color, identity)
    np.testing.assert_allclose(half.color - identity, (full.color - identity) / 2, atol=1e-5)


def test_erased_boxes_lie_inside_and_keep_to_their_area() -> None:
    boxes = drawn(config(erase=1.0)).erase
    top, left, tall, wide = boxes.T
    assert (boxes >= 0).all()
    assert (top + tall <= SIZE[0]).all()
    assert (left + wide <= SIZE[1]).all()
    share = tall * wide / (SIZE[0] * SIZE[1])
    assert 0.015 < share.min() < 0.03
    assert 0.37 < share.max() < 0.42


def test_erasing_fills_the_box_and_nothing_else() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    pillow.erase(image, np.array([3, 5, 20, 30], np.int32), 65_000)
    inside = image[3:23, 5:35].astype(float)
    assert inside.mean() == pytest.approx(127.5, abs=6)
    assert inside.std() == pytest.approx(73.9, abs=4)
    image[3:23, 5:35] = 0
    assert not image.any()


def mixings(**settings: float) -> list[Mixing]:
    strength = settings.pop("strength", 1.0)
    return [
        draw_mixing(config(**settings), SIZE, strength=strength, rng=np.random.default_rng([1, step]))
        for step in range(1000)
    ]


def test_mixup_draws_its_share_from_beta() -> None:
    found = mixings(mixup=0.2)
    assert all(mixing.weight == mixing.share and mixing.box == (0, 0, 0, 0) for mixing in found)
    shares = np.array([mixing.share for mixing in found])
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(0.25 / (2 * 0.2 + 1), abs=0.02)  # variance of Beta(a, a)
    weaker = np.array([mixing.share for mixing in mixings(mixup=0.2, strength=0.1)])
    assert weaker.var() > shares.var() + 0.03


def test_cutmix_labels_follow_the_box() -> None:
    found = mixings(cutmix=1.0)
    assert all(mixing.weight == 1 for mixing in found)
    for mixing in found:
        top, left, tall, wide = mixing.box
        assert top >= 0
        assert left >= 0
        assert top + tall <= SIZE[0]
        assert left + wide <= SIZE[1]
        assert mixing.share == pytest.approx(1 - tall * wide / (SIZE[0] * SIZE[1]))
    assert 0.5 < np.mean([mixing.share for mixing in found]) < 0.7  # more than a half: boxes are cut off


def test_both_are_drawn_equally_often_and_with_their_probability() -> None:
    found = mixings(mixup=0.8, cutmix=1.0, mix_probability=0.6)
    mixed_up = sum(mixing.weight < 1 for mixing in found) / len(found)
    cut = sum(mixing.box[2] > 0 for mixing in found) / len(found)
    assert mixed_up == pytest.approx(0.3, abs=0.05)
    assert cut == pytest.approx(0.3, abs=0.06)
    assert all(mixing == Mixing() for mixing in mixings(mixup=0.8, strength=0.0))


def test_pairs_are_mixed() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    mixed = images.copy()
    pillow.mix(mixed, Mixing(weight=0.25))
    expected = 0.25 * images + 0.75 * images[[1, 0, 3, 2]]
    np.testing.assert_allclose(mixed, expected, atol=0.5001)
    cut = images.copy()
    pillow.mix(cut, Mixing(box=(1, 2, 3, 4)))
    expected = images.copy()
    expected[:, 1:4, 2:6] = images[[1, 0, 3, 2], 1:4, 2:6]
    np.testing.assert_array_equal(cut, expected)


def test_colors_change_as_they_are_named() -> None:
    grey, red = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), (200, 100, 50), np.uint8)

    def range_of(image: np.ndarray, **settings: float) -> tuple[int, int]:
        draws = drawn(config(**settings), count=400)
        values = [pillow.change_pixels(Image.fromarray(image), draws, i).getpixel((0, 0))[0] for i in range(400)]
        return min(values), max(values)

    assert range_of(grey, brightness=0.1) == pytest.approx((74.5, 125.5), abs=1.5)
    assert range_of(grey, contrast=0.5) == pytest.approx((86.25, 113.75), abs=1.5)
    assert range_of(grey, saturation=0.5) == (100, 100)
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert range_of(red, saturation=0.5) == pytest.approx((200 - (200 - luma) / 2, 200 + (200 - luma) / 2), abs=1.5)


def test_warps_move_what_they_say_and_fill_with_grey() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[2, 5] = 255

    def warped(name: str, argument: float) -> np.ndarray:
        numbers = np.array([operations.NUMBERS[name]], np.int32)
        values = np.array([argument], np.float32)
        matrix = operations.matrices(numbers, values, (8, 8))[0]
        return np.asarray(pillow.apply_operation(Image.fromarray(image), int(numbers[0]), argument, matrix))

    assert warped("translate_x", 0.25)[2, 3].tolist() == [255] * 3
    assert (warped("translate_x", 0.25)[:, 6:] == operations.FILL).all()
    assert warped("translate_y", -0.25)[4, 5].tolist() == [255] * 3
    np.testing.assert_array_equal(warped("rotate", 90), np.rot90(image, -1))
    slanted = np.argwhere(warped("shear_y", 0.5)[:, :, 0] > 160)
    assert slanted.tolist() == []  # between two rows, so a half of it in each
    assert np.argwhere(warped("shear_y", 0.4)[:, :, 0] > 160).tolist() == [[0, 5]]

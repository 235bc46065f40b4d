from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from devices.board.preprocess import Preprocess, preprocess

SIDES = st.integers(1, 70)


def synthetic(height: int, width: int) -> np.ndarray[Any, Any]:
    """A picture without any library's random numbers."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    picture: np.ndarray[Any, Any] = ((rows * rows * 7 + columns * 13 * (channels + 1) + rows * columns) % 256).astype(
        np.uint8
    )
    return picture


class Golden(NamedTuple):
    id: str
    image: tuple[int, int]
    record: Preprocess
    sha256: str


GOLDENS = [
    Golden("down", (61, 83), Preprocess((24, 32)), "b7fa44f9662195fe27a82cf21c1d3ac1bdcf28adf91cf0adf85ced035b6f8a38"),
    Golden("up", (9, 7), Preprocess((32, 24)), "6bad6247dbe3073a1db859286a67a02e0b7d062785a7a39ceb52d9f51c40e6e7"),
    Golden(
        "crop",
        (61, 83),
        Preprocess((24, 24), "shorter_side", "center", crop_fraction=0.875),
        "2ce1f6b4ef615e6296fba70bc2e2b08b2a83bc055683273d91d42fe7a80c62eb",
    ),
    Golden(
        "nearest",
        (61, 83),
        Preprocess((24, 32), interpolation="nearest"),
        "0c407235ea4db6cacf33f84001ba5f0b58be8a9ddde66082614e3efff4de054a",
    ),
]


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.id)
def test_golden_bytes(golden: Golden) -> None:
    result = preprocess(synthetic(*golden.image), golden.record)
    assert result.shape == (*golden.record.size, 3)
    assert hashlib.sha256(result.tobytes()).hexdigest() == golden.sha256


@settings(deadline=None, max_examples=150)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 1000))
def test_bilinear_is_within_one_level_of_pillow(
    height: int, width: int, to_height: int, to_width: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ours = preprocess(image, Preprocess((to_height, to_width))).astype(int)
    pillow = Image.fromarray(image).resize((to_width, to_height), Image.Resampling.BILINEAR)
    assert np.abs(ours - np.asarray(pillow)).max() <= 1


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, st.integers(0, 1000))
def test_one_axis_is_pillow_to_the_bit(width: int, to_width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (5, width, 3), np.uint8)
    pillow = Image.fromarray(image).resize((to_width, 5), Image.Resampling.BILINEAR)
    assert np.array_equal(preprocess(image, Preprocess((5, to_width))), np.asarray(pillow))


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1.0, 0.875, 0.5]))
def test_crop_is_the_middle_of_the_covering_image(
    height: int, width: int, to_height: int, to_width: int, fraction: float
) -> None:
    image = synthetic(height, width)
    record = Preprocess((to_height, to_width), "shorter_side", "center", crop_fraction=fraction)
    result = preprocess(image, record)
    cover_height, cover_width = int(to_height / fraction + 0.5), int(to_width / fraction + 0.5)
    if cover_height * width >= cover_width * height:
        cover_width = max(cover_width, int(width * cover_height / height + 0.5))
    else:
        cover_height = max(cover_height, int(height * cover_width / width + 0.5))
    whole = preprocess(image, Preprocess((cover_height, cover_width)))
    top, left = (cover_height - to_height) // 2, (cover_width - to_width) // 2
    assert np.array_equal(result, whole[top : top + to_height, left : left + to_width])


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@settings(deadline=None, max_examples=40)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(0, 255))
def test_one_colour_stays_one_colour(
    interpolation: str, image_size: tuple[int, int], size: tuple[int, int], level: int
) -> None:
    record = Preprocess(size, interpolation=interpolation)
    assert (preprocess(np.full((*image_size, 3), level, np.uint8), record) == level).all()


def test_an_image_of_the_size_comes_back_as_a_copy() -> None:
    image = synthetic(20, 30)
    result = preprocess(image, Preprocess((20, 30)))
    assert np.array_equal(result, image)
    assert not np.shares_memory(result, image)
    assert result.flags.c_contiguous


def test_strides_of_the_image_do_not_matter() -> None:
    image = synthetic(40, 60)
    record = Preprocess((16, 16))
    assert np.array_equal(preprocess(image[::-1, ::2], record), preprocess(image[::-1, ::2].copy(), record))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[[0, 0, 0]]],
    ],
    ids=["grey", "alpha", "float", "empty", "list"],
)
def test_other_images_are_refused(image: Any) -> None:
    with pytest.raises(ValueError, match="the image is"):
        preprocess(image, Preprocess((2, 2)))


RECORDS = [
    Preprocess((224, 192)),
    Preprocess((32, 32), "shorter_side", "center", "nearest", 0.875),
]


@pytest.mark.parametrize("record", RECORDS, ids=["stretch", "crop"])
def test_a_record_survives_its_dictionary(record: Preprocess) -> None:
    assert Preprocess.from_dict(record.to_dict()) == record


BAD_RECORDS: list[dict[str, Any]] = [
    {},
    {"size": [32]},
    {"size": [32, 32.0]},
    {"size": [32, True]},
    {"size": [0, 32]},
    {"size": [32, 10_000]},
    {"size": "32"},
    {"size": 32},
    {"size": [32, 32], "resize": "fit"},
    {"size": [32, 32], "resize": ["stretch"]},
    {"size": [32, 32], "interpolation": "bicubic"},
    {"size": [32, 32], "resize": "shorter_side"},
    {"size": [32, 32], "crop": "center"},
    {"size": [32, 32], "crop_fraction": 0.5},
    {"size": [32, 32], "resize": "shorter_side", "crop": "center", "crop_fraction": 1.5},
    {"size": [32, 32], "resize": "shorter_side", "crop": "center", "crop_fraction": float("nan")},
    {"size": [32, 32], "colour": "BGR"},
]


@pytest.mark.parametrize("values", BAD_RECORDS, ids=str)
def test_bad_records_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|preprocess record|crop"):
        Preprocess.from_dict(values)

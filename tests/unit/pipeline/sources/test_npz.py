from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.sources import NpzConfig, Sample

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (4, 3, 2), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (4, 3, 2, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 10, 0])


def config(path: Path) -> NpzConfig:
    return NpzConfig(source="npz", path=str(path), size=(4, 4))


def save(directory: Path, arrays: dict[str, Any]) -> Path:
    path = directory / "data.npz"
    np.savez_compressed(path, **arrays)
    return path


def samples(path: Path) -> list[Sample]:
    return [item for item in config(path).read().items if isinstance(item, Sample)]


@dataclass(frozen=True)
class Images:
    id: str
    images: np.ndarray
    expected: np.ndarray
    mode: str


IMAGES = [
    Images("grey", GREY, np.stack([GREY] * 3, axis=3), "L"),
    Images("grey_with_an_axis", GREY[..., np.newaxis], np.stack([GREY] * 3, axis=3), "L"),
    Images("colour", COLOUR, COLOUR, "RGB"),
    Images("column_order", np.asfortranarray(COLOUR), COLOUR, "RGB"),
]


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.id)
def test_arrays_become_rgb(case: Images, tmp_path: Path) -> None:
    path = save(tmp_path, {"images": case.images, "labels": LABELS})

    found = samples(path)

    assert config(path).read().classes == ("0", "2", "10")
    assert [sample.label for sample in found] == ["2", "0", "10", "0"]
    assert {sample.split for sample in found} == {None}
    assert np.array_equal([sample.decode().pixels for sample in found], case.expected)
    assert {sample.decode().mode for sample in found} == {case.mode}


def test_splits_and_names_are_read(tmp_path: Path) -> None:
    arrays = {
        "train_images": GREY,
        "train_labels": np.array([[0], [1], [1], [0]], dtype=np.uint8),
        "val_images": GREY[:1],
        "val_labels": np.array([1], dtype=np.uint8),
        "class_names": np.array(["no", "01"]),
    }

    found = samples(save(tmp_path, arrays))

    assert [(sample.name, sample.split, sample.label) for sample in found] == [
        ("train_images/0", "train", "no"),
        ("train_images/1", "train", "01"),
        ("train_images/2", "train", "01"),
        ("train_images/3", "train", "no"),
        ("val_images/0", "validation", "01"),
    ]


def test_a_digest_stands_for_pixels_and_shape(tmp_path: Path) -> None:
    images = np.zeros((3, 2, 4), dtype=np.uint8)
    images[2] = 1
    first = samples(save(tmp_path, {"images": images, "labels": np.array([0, 1, 1])}))
    turned = samples(save(tmp_path, {"images": images.reshape(3, 4, 2), "labels": np.array([0, 1, 1])}))

    assert first[0].digest == first[1].digest
    assert len({first[0].digest, first[2].digest, turned[0].digest}) == 3


@dataclass(frozen=True)
class Wrong:
    id: str
    arrays: dict[str, Any]
    message: str
    needs: dict[str, Any] = field(default_factory=dict)


WRONG = [
    Wrong("no_images", {"x": GREY}, "has the arrays x: expected `images` and `labels`"),
    Wrong("no_labels", {"images": GREY}, "has `images` but no `labels`"),
    Wrong("no_test_images", {"test_labels": LABELS}, "has `test_labels` but no `test_images`"),
    Wrong("float_images", {"images": GREY / 255, "labels": LABELS}, "float64 (4, 3, 2): expected uint8"),
    Wrong("two_channels", {"images": COLOUR[..., :2], "labels": LABELS}, "uint8 (4, 3, 2, 2): expected uint8"),
    Wrong("flat_images", {"images": GREY.reshape(4, 6), "labels": LABELS}, "uint8 (4, 6): expected uint8"),
    Wrong("images_without_pixels", {"images": GREY[:, :0], "labels": LABELS}, "uint8 (4, 0, 2)"),
    Wrong("fewer_labels", {"images": GREY, "labels": LABELS[:3]}, "4 images but `labels` has 3 labels"),
    Wrong("float_labels", {"images": GREY, "labels": LABELS / 2}, "float64 (4,): expected whole numbers"),
    Wrong("one_hot_labels", {"images": GREY, "labels": np.eye(4, dtype=int)}, "(4, 4): expected whole numbers"),
    Wrong("negative_labels", {"images": GREY, "labels": LABELS - 1}, "labels from -1 to 9"),
    Wrong(
        "an_empty_split",
        {"train_images": GREY, "train_labels": LABELS, "test_images": GREY[:0], "test_labels": LABELS[:0]},
        "`test_labels` of",
    ),
    Wrong(
        "pickled_labels",
        {"images": GREY, "labels": np.array(["a", 1, None, 2], dtype=object)},
        "without pickled objects",
    ),
    Wrong(
        "too_few_names",
        {"images": GREY, "labels": LABELS, "class_names": np.array(["a", "b"])},
        "label 10 but only 2 `class_names`",
    ),
    Wrong(
        "repeated_names",
        {"images": GREY, "labels": LABELS % 2, "class_names": np.array(["a", "a"])},
        "repeats a name",
    ),
    Wrong(
        "names_that_are_numbers",
        {"images": GREY, "labels": LABELS % 2, "class_names": np.array([1, 2])},
        "expected text",
    ),
    Wrong(
        "splits_and_no_splits",
        {"images": GREY, "labels": LABELS, "train_images": GREY, "train_labels": LABELS},
        "expected either `images` alone or one array of images a split",
    ),
    Wrong(
        "one_split_twice",
        {"val_images": GREY, "val_labels": LABELS, "valid_images": GREY, "valid_labels": LABELS},
        "expected either `images` alone",
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_arrays_that_do_not_fit_are_an_error(case: Wrong, tmp_path: Path) -> None:
    path = save(tmp_path, case.arrays)

    with pytest.raises(DataError) as caught:
        list(config(path).read().items)

    assert case.message in caught.value.message


def test_files_that_are_no_npz_are_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", GREY)
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "empty.npz").touch()
    whole = save(tmp_path, {"images": GREY, "labels": LABELS}).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-40])

    for name, message in (
        ("one.npy", "holds one array alone"),
        ("text.npz", "can't be read as .npz"),
        ("empty.npz", "can't be read as .npz"),
        ("cut.npz", "can't be read as .npz"),
        ("missing.npz", "no file at"),
    ):
        with pytest.raises(DataError, match=message):
            config(tmp_path / name).read()


def test_a_missing_file_is_an_error_of_the_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file at .*missing\.npz"):
        config(tmp_path / "missing.npz").fingerprint()

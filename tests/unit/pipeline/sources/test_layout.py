from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from pipeline.errors import DataError
from pipeline.sources.layout import Listing, arrange


@dataclass(frozen=True)
class Arranged:
    id: str
    files: tuple[str, ...]
    places: dict[str, tuple[str | None, str]]
    classes: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    directories: tuple[str, ...] = field(default=())


ARRANGED = [
    Arranged(
        "splits",
        ("train/cat/1.jpg", "val/cat/1.JPEG", "test/dog/1.PNG"),
        {
            "train/cat/1.jpg": ("train", "cat"),
            "val/cat/1.JPEG": ("validation", "cat"),
            "test/dog/1.PNG": ("test", "dog"),
        },
        ("cat", "dog"),
    ),
    Arranged(
        "split_names_in_any_case",
        ("Train/a/1.jpg", "Valid/a/1.jpg", "TEST/a/1.jpg"),
        {
            "Train/a/1.jpg": ("train", "a"),
            "Valid/a/1.jpg": ("validation", "a"),
            "TEST/a/1.jpg": ("test", "a"),
        },
        ("a",),
    ),
    Arranged(
        "classes_that_look_like_other_types",
        ("10/1.jpg", "01/1.jpg", "no/1.jpg", "1e3/1.jpg"),
        {
            "10/1.jpg": (None, "10"),
            "01/1.jpg": (None, "01"),
            "no/1.jpg": (None, "no"),
            "1e3/1.jpg": (None, "1e3"),
        },
        ("01", "10", "1e3", "no"),
    ),
    Arranged(
        "a_folder_around_splits",
        ("pets/train/cat/1.jpg", "pets/test/cat/2.jpg", "pets/README.md"),
        {"train/cat/1.jpg": ("train", "cat"), "test/cat/2.jpg": ("test", "cat")},
        ("cat",),
    ),
    Arranged(
        "a_folder_around_classes",
        ("pets/cat/1.jpg", "pets/dog/1.jpg"),
        {"cat/1.jpg": (None, "cat"), "dog/1.jpg": (None, "dog")},
        ("cat", "dog"),
    ),
    Arranged(
        "a_class_called_train",
        ("bus/1.jpg", "train/1.jpg"),
        {"bus/1.jpg": (None, "bus"), "train/1.jpg": (None, "train")},
        ("bus", "train"),
    ),
    Arranged(
        "train_alone",
        ("train/cat/1.jpg", "train/dog/1.jpg"),
        {"train/cat/1.jpg": ("train", "cat"), "train/dog/1.jpg": ("train", "dog")},
        ("cat", "dog"),
    ),
    Arranged(
        "what_is_left_out",
        ("a/1.jpg", "a/notes.txt", "a/2.gif", "b/1.png", "cover.jpg", "README.md"),
        {"a/1.jpg": (None, "a"), "b/1.png": (None, "b")},
        ("a", "b"),
        ignored=("a/2.gif", "a/notes.txt", "cover.jpg", "empty/"),
        directories=("a", "b", "empty"),
    ),
    Arranged(
        "images_without_a_class_in_a_split",
        ("train/a/1.jpg", "test/1.jpg"),
        {"train/a/1.jpg": ("train", "a")},
        ("a",),
        ignored=("test/1.jpg",),
    ),
]


@pytest.mark.parametrize("case", ARRANGED, ids=lambda case: case.id)
def test_files_find_their_split_and_class(case: Arranged) -> None:
    layout = arrange(Listing(case.files, case.directories), root="pets")

    assert {place.name: (place.split, place.label) for place in layout.places.values()} == case.places
    assert set(layout.places) <= set(case.files)
    assert layout.classes == case.classes
    assert tuple(problem.name for problem in layout.ignored) == case.ignored
    assert all(problem.reason for problem in layout.ignored)


@pytest.mark.parametrize("case", ARRANGED, ids=lambda case: case.id)
def test_the_order_of_a_listing_does_not_matter(case: Arranged) -> None:
    shuffled = list(case.files)
    random.Random(1).shuffle(shuffled)

    assert arrange(Listing(tuple(shuffled), case.directories), root="pets") == arrange(
        Listing(case.files, case.directories), root="pets"
    )


@dataclass(frozen=True)
class Misfit:
    id: str
    files: tuple[str, ...]
    message: str


MISFITS = [
    Misfit("empty", (), "pets is empty"),
    Misfit("no_images", ("a/1.txt", "b/2.txt"), "2 files but no image in a class folder"),
    Misfit("images_without_classes", ("1.jpg", "2.jpg"), "no image in a class folder"),
    Misfit("two_depths", ("a/1.jpg", "b/c/1.jpg"), "b/c/1.jpg, too deep"),
    Misfit("too_deep", ("train/a/images/1.jpg", "test/a/1.jpg"), "train/a/images/1.jpg, too deep"),
    Misfit("misspelt_split", ("train/a/1.jpg", "valdation/a/1.jpg"), "valdation beside train"),
    Misfit("classes_beside_splits", ("train/a/1.jpg", "b/1.jpg"), "b beside train"),
    Misfit("one_split_twice", ("train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"), "two folders for one split"),
]


@pytest.mark.parametrize("case", MISFITS, ids=lambda case: case.id)
def test_folders_that_fit_no_layout_are_an_error(case: Misfit) -> None:
    with pytest.raises(DataError) as caught:
        arrange(Listing(case.files), root="pets")

    assert case.message in caught.value.message

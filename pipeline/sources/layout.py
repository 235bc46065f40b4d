"""Which file of a folder of images belongs to which split and class.

    split/class/image.jpg     with the splits train, val, valid, validation, test in any case
    class/image.jpg           no splits

A single folder around all of that is tolerated. Names stay text: a class may be called `01` or `no`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import DataError
from pipeline.sources.base import Problem, Split
from pipeline.sources.decode import IMAGE_SUFFIXES

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_EXPECTED = "expected split/class/image.jpg (splits: train, val or validation, test) or class/image.jpg"


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in a folder or an archive.

    Args:
        files: Relative paths of the regular files, with `/` between the parts.
        directories: Relative paths of the directories, as far as they are known.
        refused: What is there but not touched, and why.
    """

    files: tuple[str, ...]
    directories: tuple[str, ...] = ()
    refused: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image belongs.

    Args:
        name: Its path without the folder around everything.
        split: None in a folder without splits.
        label: The name of its class.
    """

    name: str
    split: Split | None
    label: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Every image's place, by the path in the listing."""

    places: dict[str, Place]
    classes: tuple[str, ...]
    ignored: tuple[Problem, ...]


def is_hidden(name: str) -> bool:
    """Whether a part of a path is left out without a word: dot files and what macOS adds to archives."""
    return (name.startswith(".") and name != "..") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a path has the suffix of an image, in any case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def arrange(listing: Listing, *, root: str) -> Layout:
    """Finds the splits and classes of a listing.

    Args:
        listing: In any order; the outcome does not depend on it.
        root: What messages call the folder or archive.

    Raises:
        DataError: If there are no images in class folders, or the folders fit neither layout.
    """
    files = [tuple(name.split("/")) for name in sorted(listing.files)]
    directories = [tuple(name.split("/")) for name in sorted(listing.directories)]
    images = [parts for parts in files if is_image(parts[-1])]
    lead = _num_folders_around([parts for parts in images if len(parts) > 1], root=root, listing=listing)
    inner = [parts[lead:] for parts in images if len(parts) > lead]
    split_folders = _split_folders(inner, root=root)
    depth = 3 if split_folders else 2

    places: dict[str, Place] = {}
    ignored = list(listing.refused)
    for parts in files:
        name = parts[lead:] if len(parts) > lead else parts[-1:]
        if not is_image(parts[-1]):
            if len(name) >= depth:
                ignored.append(Problem("/".join(name), "not a .jpg, .jpeg or .png file"))
        elif len(name) < depth:
            ignored.append(Problem("/".join(name), "not in a class folder"))
        elif len(name) > depth:
            raise DataError(f"{root} has the image {'/'.join(name)}, too deep: {_EXPECTED}")
        else:
            split = split_folders[name[0]] if split_folders else None
            places["/".join(parts)] = Place("/".join(name), split, name[-2])

    with_images = {tuple(place.name.split("/"))[:-1] for place in places.values()}
    ignored += [
        Problem("/".join(parts[lead:]) + "/", "a class folder without images")
        for parts in directories
        if len(parts) == lead + depth - 1 and parts[lead:] not in with_images
    ]
    classes = tuple(sorted({place.label for place in places.values()}))
    return Layout(places, classes, tuple(sorted(ignored, key=lambda problem: problem.name)))


def _num_folders_around(nested: list[tuple[str, ...]], *, root: str, listing: Listing) -> int:
    """1 if a single folder, which is neither a split nor a class, holds everything; else 0."""
    if not nested:
        if not listing.files:
            raise DataError(f"{root} is empty: {_EXPECTED}")
        raise DataError(f"{root} holds {len(listing.files)} files but no image in a class folder: {_EXPECTED}")
    tops = {parts[0] for parts in nested}
    shallowest = min(len(parts) for parts in nested)
    is_split = next(iter(tops)).lower() in SPLIT_NAMES
    return int(len(tops) == 1 and (shallowest >= 4 or (shallowest == 3 and not is_split)))


def _split_folders(images: Iterable[tuple[str, ...]], *, root: str) -> dict[str, Split]:
    """The names of the split folders that hold classes; empty where the folders are the classes."""
    images = [parts for parts in images if len(parts) > 1]
    with_classes = {parts[0] for parts in images if len(parts) > 2}
    splits = {top: SPLIT_NAMES[top.lower()] for top in sorted(with_classes) if top.lower() in SPLIT_NAMES}
    if not splits:
        return {}
    others = sorted({parts[0] for parts in images if parts[0].lower() not in SPLIT_NAMES})
    if others:
        raise DataError(
            f"{root} has the folders {', '.join(others[:5])} beside {', '.join(splits)}: expected split "
            "folders only (train, val or validation, test) or class folders only; rename or move them"
        )
    if len(set(splits.values())) < len(splits):
        raise DataError(f"{root} has two folders for one split ({', '.join(splits)}): merge them")
    return splits

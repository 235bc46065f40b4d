"""Which image goes into which split.

What a source says is kept where it is enough; what is missing is drawn, class by class:

| the source has          | test            | validation      | train    |
|-------------------------|-----------------|-----------------|----------|
| no splits, or train     | drawn           | drawn           | the rest |
| train, test             | its own         | drawn           | the rest |
| train, validation       | its validation  | drawn           | the rest |
| train, validation, test | its own         | its own         | its own  |

The third line follows the usual practice for data sets whose test labels are not public (ImageNet): what is
published as validation is what results are reported on, so it must not also choose the weights.

The same bytes never land in two splits. Of the splits that a source has, test is never touched, and
validation ranks over train: the copy in the lower split is left out. A draw keeps copies together. Copies
inside one split stay. Images that differ in a single byte are different images here.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor

from pipeline.errors import DataError
from pipeline.sources.base import SPLITS, Split

_DRAWN: tuple[Split, ...] = ("test", "validation")
_SHOWN = 5
"""How many names a message holds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A readable image.

    Args:
        name: Unique inside the source.
        split: What the source says, or None.
        label: The name of its class.
        digest: The same for images with the same content.
        row: Where its pixels are kept.
    """

    name: str
    split: Split | None
    label: str
    digest: str
    row: int


@dataclass(frozen=True, slots=True)
class Removed:
    """An image that is left out because a split of higher rank holds the same bytes."""

    entry: Entry
    kept: Entry


@dataclass(frozen=True, slots=True)
class Plan:
    """Every image's split.

    Args:
        splits: The images of each split, sorted by name.
        removed: What was left out, sorted by name.
        conflicts: Images with the same bytes under different labels, one tuple for each content.
        notes: What was decided, in sentences.
    """

    splits: dict[Split, tuple[Entry, ...]]
    removed: tuple[Removed, ...]
    conflicts: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]


def plan_splits(
    entries: Iterable[Entry],
    *,
    classes: Sequence[str],
    fractions: Mapping[Split, float],
    seed: int,
    min_images_per_class: int = 2,
) -> Plan:
    """Decides the splits.

    Args:
        entries: All readable images, in any order; the outcome does not depend on it. Either all have a split
            or none has one.
        classes: The names of all classes.
        fractions: For `validation` and `test` the share of the images it is drawn from, if it is drawn.
        seed: Shapes the draw.
        min_images_per_class: A class with fewer images is an error.

    Raises:
        DataError: If a class has too few images, is not in train, or a split would be empty.
    """
    entries = sorted(entries, key=lambda entry: entry.name)
    _check_classes(entries, classes, min_images_per_class)
    pool, fixed, notes = _fixed_splits(entries)
    fixed, pool, removed = _without_copies(fixed, pool)
    _check_pool(pool, fixed, removed, classes)
    to_draw = [split for split in _DRAWN if split not in fixed]
    drawn = draw_splits(pool, {split: fractions[split] for split in to_draw}, classes=classes, seed=seed)
    splits = {split: tuple((drawn | fixed)[split]) for split in SPLITS}
    for split in _DRAWN:
        missing = sorted(set(classes) - {entry.label for entry in splits[split]})
        if missing:
            notes.append(f"{split} has no image of {_some(missing)}: nothing is measured on it there")
    return Plan(splits, removed, _conflicts(entries), tuple(notes))


def draw_splits(
    entries: Sequence[Entry], fractions: Mapping[Split, float], *, classes: Sequence[str], seed: int
) -> dict[Split, list[Entry]]:
    """Draws splits so that each class has its share in each of them, and train gets the rest.

    Images with the same digest stay together. Every class gets at least one image in every split. The order
    of the draw is that of `SHA-256(seed:digest)`: it depends on the content alone, and an added image moves
    few others.

    Raises:
        DataError: If a class has fewer different images than there are splits, or the fractions are out of
            range.
    """
    if any(not 0 < fraction < 1 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        received = ", ".join(f"{split} {fraction}" for split, fraction in fractions.items())
        raise DataError(f"received the fractions {received}: expected each between 0 and 1 and their sum below 1")
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.digest].append(entry)
    by_class: dict[str, list[list[Entry]]] = {name: [] for name in classes}
    for group in groups.values():
        by_class[min(entry.label for entry in group)].append(group)
    num_splits = len(fractions) + 1
    too_few = [f"{name} ({len(found)})" for name, found in by_class.items() if len(found) < num_splits]
    if too_few and fractions:
        raise DataError(
            f"too few different images to appear in each of the {num_splits} splits that are drawn: "
            f"{_some(too_few)}; expected at least {num_splits} a class: add images or remove the class"
        )

    drawn: dict[Split, list[Entry]] = {split: [] for split in ("train", *fractions)}
    for found in by_class.values():
        available = sorted(found, key=lambda group: _rank(seed, group[0].digest))
        num_images = sum(len(group) for group in found)
        for num_later, (split, fraction) in zip(range(len(fractions), 0, -1), fractions.items(), strict=True):
            target = max(1, floor(num_images * fraction + 0.5))
            taken, available = _take(available, target, num_left=num_later)
            drawn[split] += [entry for group in taken for entry in group]
        drawn["train"] += [entry for group in available for entry in group]
    return {split: sorted(found, key=lambda entry: entry.name) for split, found in drawn.items()}


def _rank(seed: int, digest: str) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()


def _take(groups: list[list[Entry]], target: int, *, num_left: int) -> tuple[list[list[Entry]], list[list[Entry]]]:
    """Takes groups in order while they fit into the target and enough groups are left; at least one."""
    taken: list[list[Entry]] = []
    rest: list[list[Entry]] = []
    num_taken = 0
    for position, group in enumerate(groups):
        num_after = len(rest) + len(groups) - position - 1
        if num_taken + len(group) <= target and num_after >= num_left:
            taken.append(group)
            num_taken += len(group)
        else:
            rest.append(group)
    if not taken:
        smallest = min(rest, key=len)
        rest.remove(smallest)
        taken.append(smallest)
    return taken, rest


def _check_classes(entries: Sequence[Entry], classes: Sequence[str], min_images_per_class: int) -> None:
    if not entries:
        raise DataError("no image that can be read: expected at least two classes of images")
    if len(classes) < 2:
        raise DataError(f"one class only ({classes[0]}): expected at least two, a folder or label each")
    counts = Counter(entry.label for entry in entries)
    too_few = [f"{name} ({counts[name]})" for name in classes if counts[name] < min_images_per_class]
    if too_few:
        raise DataError(
            f"too few images that can be read: {_some(too_few)}; expected at least {min_images_per_class} a "
            "class (min_images_per_class): add images or remove the class"
        )


def _fixed_splits(
    entries: Sequence[Entry],
) -> tuple[list[Entry], dict[Split, list[Entry]], list[str]]:
    """The images to draw from, the splits that are given, and what was decided about them."""
    given: dict[Split | None, list[Entry]] = defaultdict(list)
    for entry in entries:
        given[entry.split].append(entry)
    pool = given.pop(None, [])
    if pool:
        return pool, {}, ["test and validation are drawn from all images: the source has no splits"]
    if "train" not in given:
        raise DataError(f"received the splits {', '.join(map(str, given))} without train: add a train split")
    pool = given.pop("train")
    fixed = {split: given[split] for split in SPLITS if split in given}
    if len(fixed) == 2:
        return pool, fixed, []
    if "test" in fixed:
        return pool, fixed, ["validation is drawn from train: the source has none"]
    if "validation" in fixed:
        note = "the source's validation split is used as test, for it has none; validation is drawn from train"
        return pool, {"test": fixed["validation"]}, [note]
    return pool, {}, ["test and validation are drawn from train: the source has no other split"]


def _without_copies(
    fixed: dict[Split, list[Entry]], pool: list[Entry]
) -> tuple[dict[Split, list[Entry]], list[Entry], tuple[Removed, ...]]:
    held: dict[str, Entry] = {}
    removed: list[Removed] = []
    clean: dict[Split, list[Entry]] = {}
    for split in ("test", "validation", "train"):
        found = pool if split == "train" else fixed.get(split, [])
        removed += [Removed(entry, held[entry.digest]) for entry in found if entry.digest in held]
        clean[split] = [entry for entry in found if entry.digest not in held]
        if found and not clean[split]:
            raise DataError(
                f"every image of {split} is also in a split of higher rank ({found[0].name} is "
                f"{held[found[0].digest].name}): expected splits that differ; correct the source"
            )
        for entry in clean[split]:
            held.setdefault(entry.digest, entry)
    ordered = tuple(sorted(removed, key=lambda item: item.entry.name))
    return {split: clean[split] for split in fixed}, clean["train"], ordered


def _check_pool(
    pool: Sequence[Entry],
    fixed: Mapping[Split, Sequence[Entry]],
    removed: Iterable[Removed],
    classes: Sequence[str],
) -> None:
    missing = sorted(set(classes) - {entry.label for entry in pool})
    if not missing:
        return
    were_copies = {item.entry.label for item in removed if item.entry.split == "train"}
    if missing[0] in were_copies:
        raise DataError(
            f"every train image of {_some(missing)} is also in a split of higher rank and is left out of "
            "train: expected splits that differ; correct the source"
        )
    where = ", ".join(split for split, found in fixed.items() if any(entry.label == missing[0] for entry in found))
    raise DataError(
        f"no train image of {_some(missing)} (only in {where}): expected every class in train; add images or "
        "remove the class"
    )


def _conflicts(entries: Iterable[Entry]) -> tuple[tuple[Entry, ...], ...]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.digest].append(entry)
    return tuple(tuple(group) for group in groups.values() if len({entry.label for entry in group}) > 1)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown

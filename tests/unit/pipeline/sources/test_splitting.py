from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.sources.base import SPLITS, Split
from pipeline.sources.splitting import Entry, Plan, draw_splits, plan_splits

FRACTIONS: dict[Split, float] = {"test": 0.2, "validation": 0.15}


def entries_of(counts: dict[str, int], split: Split | None = None, first_digest: int = 0) -> list[Entry]:
    """Images that all differ."""
    found = []
    for label, count in counts.items():
        for index in range(count):
            number = first_digest + len(found)
            found.append(Entry(f"{split or 'all'}/{label}/{index:04d}", split, label, f"{number:064x}", number))
    return found


def plan(entries: Sequence[Entry], *, seed: int = 0, min_images_per_class: int = 2) -> Plan:
    return plan_splits(
        entries,
        classes=sorted({entry.label for entry in entries}),
        fractions=FRACTIONS,
        seed=seed,
        min_images_per_class=min_images_per_class,
    )


def count_labels(entries: Sequence[Entry]) -> dict[str, int]:
    return dict(Counter(entry.label for entry in entries))


@st.composite
def drawable(draw: st.DrawFn) -> list[Entry]:
    """Two to four classes with at least three different images each, some of them several times."""
    entries = []
    for label in "abcd"[: draw(st.integers(2, 4))]:
        for index, copies in enumerate(draw(st.lists(st.integers(1, 3), min_size=3, max_size=25))):
            for copy in range(copies):
                name = f"{label}/{index}/{copy}"
                entries.append(Entry(name, None, label, f"{label}{index}", len(entries)))
    return entries


@given(drawable(), st.integers(0, 2**32), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_draw_is_a_stratified_partition_that_no_order_changes(
    entries: list[Entry], seed: int, randomness: object
) -> None:
    shuffled = list(entries)
    randomness.shuffle(shuffled)  # type: ignore[attr-defined]

    splits = plan(entries, seed=seed).splits

    assert plan(shuffled, seed=seed).splits == splits
    rows = sorted(entry.row for split in SPLITS for entry in splits[split])
    assert rows == list(range(len(entries)))
    digests = [{entry.digest for entry in splits[split]} for split in SPLITS]
    assert sum(map(len, digests)) == len(set().union(*digests))
    classes = {entry.label for entry in entries}
    assert all({entry.label for entry in splits[split]} == classes for split in SPLITS)
    assert all([e.name for e in splits[s]] == sorted(e.name for e in splits[s]) for s in SPLITS)


@given(st.integers(3, 200), st.floats(0.01, 0.45), st.floats(0.01, 0.45), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_class_gets_its_share(num_images: int, test: float, validation: float, seed: int) -> None:
    entries = entries_of({"a": num_images, "b": 40})

    drawn = draw_splits(entries, {"test": test, "validation": validation}, classes=("a", "b"), seed=seed)

    for split, fraction in (("test", test), ("validation", validation)):
        count = sum(entry.label == "a" for entry in drawn[split])
        assert abs(count - max(1, num_images * fraction)) <= 1


def test_every_split_gets_an_image_even_if_the_shares_would_take_all() -> None:
    drawn = draw_splits(entries_of({"a": 4, "b": 4}), {"test": 0.3, "validation": 0.69}, classes=("a", "b"), seed=0)

    assert {split: count_labels(found) for split, found in drawn.items()} == {
        "train": {"a": 1, "b": 1},
        "validation": {"a": 2, "b": 2},
        "test": {"a": 1, "b": 1},
    }


def test_the_seed_changes_the_draw() -> None:
    entries = entries_of({"a": 50, "b": 50})

    assert plan(entries, seed=0).splits == plan(entries, seed=0).splits
    assert plan(entries, seed=0).splits["test"] != plan(entries, seed=1).splits["test"]


def test_the_draw_is_pinned_and_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from pipeline.sources.splitting import Entry, plan_splits\n"
        "entries = [Entry(f'{c}{i}', None, c, f'{c}{i:03d}', 0) for c in 'ab' for i in range(10)]\n"
        "plan = plan_splits(entries, classes='ab', fractions={'test': 0.2, 'validation': 0.15}, seed=3)\n"
        "print([entry.name for entry in plan.splits['test']])\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert outputs == {"['a3', 'a9', 'b4', 'b7']\n"}


def test_copies_stay_together_and_a_group_too_large_for_a_share_goes_to_train() -> None:
    copies = [Entry(f"a/copy{index}", None, "a", "same", index) for index in range(10)]
    entries = [*copies, *entries_of({"a": 10, "b": 10})]

    splits = plan(entries).splits

    assert [entry for entry in splits["train"] if entry.digest == "same"] == copies


@dataclass(frozen=True)
class Given:
    id: str
    splits: dict[Split, dict[str, int]]
    expected: dict[Split, dict[str, int]]
    note: str


GIVEN = [
    Given(
        "train_and_test",
        {"train": {"a": 20, "b": 40}, "test": {"a": 5, "b": 5}},
        {"train": {"a": 17, "b": 34}, "validation": {"a": 3, "b": 6}, "test": {"a": 5, "b": 5}},
        "validation is drawn from train",
    ),
    Given(
        "train_and_validation",
        {"train": {"a": 20, "b": 20}, "validation": {"a": 4, "b": 5}},
        {"train": {"a": 17, "b": 17}, "validation": {"a": 3, "b": 3}, "test": {"a": 4, "b": 5}},
        "validation split is used as test",
    ),
    Given(
        "train_alone",
        {"train": {"a": 20, "b": 20}},
        {"train": {"a": 13, "b": 13}, "validation": {"a": 3, "b": 3}, "test": {"a": 4, "b": 4}},
        "test and validation are drawn from train",
    ),
    Given(
        "all_three",
        {"train": {"a": 2, "b": 2}, "validation": {"a": 1, "b": 1}, "test": {"a": 1}},
        {"train": {"a": 2, "b": 2}, "validation": {"a": 1, "b": 1}, "test": {"a": 1}},
        "test has no image of b",
    ),
]


@pytest.mark.parametrize("case", GIVEN, ids=lambda case: case.id)
def test_what_a_source_lacks_is_drawn_from_train(case: Given) -> None:
    entries: list[Entry] = []
    for split, counts in case.splits.items():
        entries += entries_of(counts, split, first_digest=len(entries))

    result = plan(entries)

    assert {split: count_labels(result.splits[split]) for split in SPLITS} == case.expected
    assert any(case.note in note for note in result.notes)
    assert {e.split for e in result.splits["validation"]} <= {"train"} | (
        {"validation"} if "test" in case.splits else set()
    )


def test_copies_leave_the_split_of_lower_rank() -> None:
    train = entries_of({"a": 5, "b": 5}, "train")
    validation = entries_of({"a": 3, "b": 3}, "validation", first_digest=100)
    test = entries_of({"a": 3, "b": 3}, "test", first_digest=200)
    validation[0] = Entry("validation/a/x", "validation", "a", test[0].digest, 0)
    train[0] = Entry("train/a/x", "train", "a", test[0].digest, 0)
    train[1] = Entry("train/b/y", "train", "b", validation[1].digest, 0)

    result = plan([*train, *validation, *test])

    assert plan([*reversed(test), *reversed(validation), *reversed(train)]) == result
    assert list(result.splits["test"]) == test
    removed = [(item.entry.name, item.kept.name) for item in result.removed]
    assert removed == [
        ("train/a/x", "test/a/0000"),
        ("train/b/y", "validation/a/0001"),
        ("validation/a/x", "test/a/0000"),
    ]
    assert [[entry.name for entry in group] for group in result.conflicts] == [["train/b/y", "validation/a/0001"]]


def test_one_content_under_two_labels_is_kept_in_one_split_and_listed() -> None:
    entries = [
        *entries_of({"a": 10, "b": 10}),
        Entry("all/a/x", None, "a", "same", 0),
        Entry("all/b/x", None, "b", "same", 1),
    ]

    result = plan(entries)

    assert [[entry.name for entry in group] for group in result.conflicts] == [["all/a/x", "all/b/x"]]
    holding = [split for split in SPLITS if any(entry.digest == "same" for entry in result.splits[split])]
    assert len(holding) == 1


def copies_of(entries: Sequence[Entry], split: Split) -> list[Entry]:
    return [Entry(f"{split}/{e.name}", split, e.label, e.digest, e.row) for e in entries]


TRAIN = entries_of({"a": 5, "b": 5}, "train")


@dataclass(frozen=True)
class Refused:
    id: str
    entries: list[Entry]
    message: str
    min_images_per_class: int = 2


REFUSED = [
    Refused("nothing", [], "no image that can be read"),
    Refused("one_class", entries_of({"a": 9}), "one class only (a)"),
    Refused("one_image", entries_of({"a": 9, "b": 1}), "b (1); expected at least 2 a class"),
    Refused("below_the_minimum", entries_of({"a": 9, "b": 4}), "b (4)", min_images_per_class=5),
    Refused("too_few_for_the_splits", entries_of({"a": 9, "b": 2}), "each of the 3 splits that are drawn: b (2)"),
    Refused(
        "copies_do_not_count",
        [*entries_of({"a": 9}), *(Entry(f"b{i}", None, "b", "same", i) for i in range(9))],
        "too few different images to appear in each of the 3 splits that are drawn: b (1)",
    ),
    Refused("no_train", entries_of({"a": 5, "b": 5}, "test"), "received the splits test without train"),
    Refused(
        "class_in_test_alone",
        [*TRAIN, *entries_of({"c": 5}, "test", first_digest=50)],
        "no train image of c (only in test)",
    ),
    Refused(
        "train_is_a_copy_of_test",
        [*TRAIN, *copies_of(TRAIN, "test")],
        "every image of train is also in a split",
    ),
    Refused(
        "validation_is_a_copy_of_test",
        [
            *TRAIN,
            *copies_of(entries_of({"a": 1}, "test", first_digest=50), "validation"),
            *entries_of({"a": 1}, "test", first_digest=50),
        ],
        "every image of validation is also in a split",
    ),
    Refused(
        "a_class_of_train_is_a_copy_of_test",
        [*TRAIN, *copies_of(TRAIN[:5], "test")],
        "every train image of a is also in a split of higher rank",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_splits_that_cannot_be_made_are_an_error(case: Refused) -> None:
    with pytest.raises(DataError) as caught:
        plan(case.entries, min_images_per_class=case.min_images_per_class)

    assert case.message in caught.value.message


@pytest.mark.parametrize("fractions", [(0.0, 0.1), (0.5, 0.5), (1.2, 0.1), (-0.1, 0.2)], ids=str)
def test_fractions_out_of_range_are_an_error(fractions: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="expected each between 0 and 1"):
        draw_splits(
            entries_of({"a": 9}),
            {"test": fractions[0], "validation": fractions[1]},
            classes=("a",),
            seed=0,
        )


def test_a_long_list_of_classes_is_cut() -> None:
    entries = entries_of({f"class{index}": 1 for index in range(9)})

    with pytest.raises(DataError, match=r"class4 \(1\) and 4 more"):
        plan(entries)

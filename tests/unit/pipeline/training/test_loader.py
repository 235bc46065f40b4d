"""Batches: random, and the same every time, however they are loaded."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.preprocess import Preprocess, preprocess
from pipeline.errors import DataError, InputError, StageError
from pipeline.training import loader as loader_module
from pipeline.training.batches import class_weights, epoch_order
from pipeline.training.config import TrainConfig
from pipeline.training.loader import Batch, Loader, num_workers

ROOT = Path(__file__).resolve().parents[4]
COUNT, CLASSES, SIZE = 45, ("ant", "bee", "cat"), (16, 20)
STRONG: dict[str, Any] = {
    "crop": {"min_area": 0.3},
    "flip": True,
    "shift": 0.1,
    "brightness": 0.2,
    "saturation": 0.3,
    "rand_augment": {},
    "erase": 0.3,
    "mixup": 0.4,
    "cutmix": 1.0,
}


@dataclass
class Fake:
    """A training split in memory; the first pixel of an image says its row."""

    stored: tuple[int, int] = SIZE
    encoded: bool = False
    size: tuple[int, int] = SIZE
    classes: tuple[str, ...] = CLASSES
    fails_at: int | None = None
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(SIZE))
    labels: np.ndarray = field(default_factory=lambda: np.arange(COUNT) ** 2 % 5 % 3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> np.ndarray:
        if row == self.fails_at:
            raise DataError(f"image {row} is damaged")
        image = np.random.default_rng(row).integers(0, 256, (*self.stored, 3), dtype=np.uint8)
        image[0, 0] = row
        image.flags.writeable = False
        return image


def config(augmentation: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    values = {"workers": 0, "epochs": 4, "warmup_epochs": 1, "batch_size": 8, "seed": 3, **changes}
    return TrainConfig.model_validate(
        {**values, "augmentation": {"shift": 0} if augmentation is None else augmentation}
    )


def load(settings: TrainConfig, epoch: int = 1, *, images: Fake | None = None, **options: Any) -> list[Batch]:
    places = {name: options.pop(name) for name in ("process_index", "process_count") if name in options}
    on_accelerator = options.pop("on_accelerator", False)
    with Loader(images or Fake(), settings, on_accelerator=on_accelerator, **places) as loader:
        return list(loader.epoch(epoch, **options))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.inputs.keys() == other.inputs.keys()
        for name, values in one.inputs.items():
            np.testing.assert_array_equal(values, other.inputs[name])
            assert values.dtype == other.inputs[name].dtype
        np.testing.assert_array_equal(one.targets, other.targets)
        np.testing.assert_array_equal(one.rows, other.rows)
        assert (one.weights is None) == (other.weights is None)
        if one.weights is not None:
            np.testing.assert_array_equal(one.weights, other.weights)


def test_a_batch_holds_images_and_their_targets() -> None:
    images = Fake()
    batches = load(config())
    assert [len(batch.rows) for batch in batches] == [8] * (COUNT // 8)
    for batch in batches:
        assert batch.inputs.keys() == {"image"}
        assert batch.inputs["image"].shape == (8, *SIZE, 3)
        assert batch.inputs["image"].dtype == np.uint8
        assert batch.targets.dtype == np.float32
        assert batch.weights is None
        np.testing.assert_array_equal(batch.targets, np.eye(3)[images.labels[batch.rows]])
        for row, image in zip(batch.rows, batch.inputs["image"], strict=True):
            np.testing.assert_array_equal(image, images[int(row)])
    rows = np.concatenate([batch.rows for batch in batches])
    assert len(set(rows.tolist())) == len(rows), "an image came twice in one epoch"
    np.testing.assert_array_equal(rows, epoch_order(images.labels, 3, 1, "natural")[: len(rows)])


@pytest.mark.parametrize("on_accelerator", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int, on_accelerator: bool) -> None:
    settings = config(STRONG, class_weights="balanced")
    expected = load(settings, on_accelerator=on_accelerator)
    found = load(settings.model_copy(update={"workers": workers}), on_accelerator=on_accelerator)
    assert_same(found, expected)


def test_batches_come_through_pipes_where_there_is_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    create = shared_memory.SharedMemory.__init__
    monkeypatch.setattr(
        shared_memory.SharedMemory,
        "__init__",
        lambda self, name=None, **options: (names.append(name), create(self, name, **options))[1],
    )
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 10))
    found = load(config(workers=1))
    assert_same(found, load(config()))
    assert not names
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))
    assert_same(load(config(workers=1)), found)
    assert names, "this test looks at something else than how batches come"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_where_it_was(workers: int) -> None:
    whole = load(config(STRONG))
    assert_same(load(config(STRONG, workers=workers), first_step=3), whole[3:])


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_two_processes_have_the_halves_of_one(on_accelerator: bool) -> None:
    settings = config(STRONG, class_weights={"ant": 1, "bee": 2, "cat": 3})
    whole = load(settings, on_accelerator=on_accelerator)
    parts = [load(settings, process_index=i, process_count=2, on_accelerator=on_accelerator) for i in (0, 1)]
    joined = [
        Batch(
            inputs={name: np.concatenate([first.inputs[name], second.inputs[name]]) for name in first.inputs},
            targets=np.concatenate([first.targets, second.targets]),
            weights=np.concatenate([first.weights, second.weights]),
            rows=np.concatenate([first.rows, second.rows]),
        )
        for first, second in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


@pytest.mark.parametrize("changes", [{"seed": 4}, {"epoch": 2}])
def test_another_seed_or_epoch_gives_other_batches(changes: dict[str, int]) -> None:
    epoch = changes.pop("epoch", 1)
    found, usual = load(config(STRONG, **changes), epoch), load(config(STRONG))
    assert (found[0].rows != usual[0].rows).any()
    assert (found[0].inputs["image"] != usual[0].inputs["image"]).any()


def test_epochs_follow_one_another_in_one_reading_and_may_be_left() -> None:
    settings = config(STRONG)
    with Loader(Fake(), settings, on_accelerator=False) as loader:
        first = list(loader.epoch(0))
        reading = loader._reading
        second = list(loader.epoch(1))
        assert loader._reading is reading, "the second epoch was not read ahead"
        left = loader.epoch(2)
        next(left)
        again = list(loader.epoch(0))
        assert_same(again, first)
        assert_same(second, load(settings, 1))
        with pytest.raises(RuntimeError, match="epoch 2"):
            next(left)
        assert_same(list(loader.epoch(9)), load(settings, 9))  # beyond the training, as a measurement reads


def test_size_and_strength_change_from_epoch_to_epoch() -> None:
    settings = config({**STRONG, "mixup": 0, "cutmix": 0})
    with Loader(Fake(), settings, on_accelerator=True) as loader:
        usual = next(loader.epoch(0))
        small = next(loader.epoch(0, size=(8, 10), strength=0.5))
    assert small.inputs["image"].shape == (8, 8, 10, 3)
    assert small.inputs.keys() == usual.inputs.keys()
    factor = small.inputs["color"] - np.eye(3, 4, dtype=np.float32)
    np.testing.assert_allclose(factor * 2, usual.inputs["color"] - np.eye(3, 4), atol=1e-4)


def test_the_accelerator_gets_the_draws_and_untouched_pixels() -> None:
    plain = load(config({"crop": STRONG["crop"], "flip": True, "shift": 0.1}))
    left = load(config(STRONG), on_accelerator=True)
    for one, other in zip(left, plain, strict=True):
        np.testing.assert_array_equal(one.inputs["image"], other.inputs["image"])
        assert {name: values.shape for name, values in one.inputs.items()} == {
            "image": (8, *SIZE, 3),
            "color": (8, 3, 4),
            "numbers": (8, 2),
            "arguments": (8, 2),
            "matrices": (8, 2, 6),
            "erase": (8, 4),
            "noise": (8,),
            "mix_weight": (8,),
            "mix_box": (8, 4),
        }
    assert load(config(), on_accelerator=True)[0].inputs.keys() == {"image"}


def test_mixed_targets_follow_the_images_and_stop_at_the_end() -> None:
    settings = config({"shift": 0, "mixup": 1.0, "stop_mixing_epochs": 1})
    images = Fake()
    for batch in load(settings, 2):
        one_hot = np.eye(3, dtype=np.float32)[images.labels[batch.rows]]
        neighbor = one_hot[np.arange(8) ^ 1]
        stored = np.stack([images[int(row)] for row in batch.rows]).astype(np.float32)
        other = stored[np.arange(8) ^ 1]
        share = float(((batch.inputs["image"] - other) * (stored - other)).sum() / ((stored - other) ** 2).sum())
        assert 0 < share < 1
        np.testing.assert_allclose(batch.targets, share * one_hot + (1 - share) * neighbor, atol=0.01)
    assert any((batch.targets.max(axis=1) < 1).any() for batch in load(settings, 2))
    for batch in load(settings, 3):
        assert (batch.targets.max(axis=1) == 1).all()
        np.testing.assert_array_equal(batch.inputs["image"][0], images[int(batch.rows[0])])
    keys = [load(settings, epoch, on_accelerator=True)[0].inputs.keys() for epoch in (2, 3)]
    assert keys[0] == keys[1], "a training needs the same inputs to the end"


@pytest.mark.parametrize("size", [SIZE, (10, 10)])
def test_encoded_images_without_a_crop_are_preprocessed_as_recorded(size: tuple[int, int]) -> None:
    record = Preprocess(SIZE, resize="shorter_side", crop="center", crop_fraction=0.875)
    images = Fake(stored=(37, 61), encoded=True, preprocess=record)
    expected_record = Preprocess(size, resize="shorter_side", crop="center", crop_fraction=0.875)
    batch = load(config(), images=images, size=size)[0]
    expected = preprocess(images[int(batch.rows[0])], expected_record)
    np.testing.assert_array_equal(batch.inputs["image"][0], expected)


def test_decoded_images_are_not_cropped_twice() -> None:
    record = Preprocess(SIZE, resize="shorter_side", crop="center", crop_fraction=0.875)
    images = Fake(preprocess=record)
    batch = load(config(), images=images, size=(8, 10))[0]
    expected = preprocess(images[int(batch.rows[0])], Preprocess((8, 10)))
    np.testing.assert_array_equal(batch.inputs["image"][0], expected)


def test_a_crop_takes_its_part_of_the_stored_image() -> None:
    images = Fake(stored=(400, 500), encoded=True)
    batch = load(config({"shift": 0, "crop": {"min_area": 1, "max_ratio": 1.25}}), images=images)[0]
    # The whole image, or the square-to-wide middle of it: noise averages out only with an antialiasing filter.
    assert batch.inputs["image"].astype(float).std() < 10


def test_flip_mirrors_half_of_the_images() -> None:
    images = Fake()
    mirrored = 0
    batches = [batch for epoch in range(8) for batch in load(config({"shift": 0, "flip": True}), epoch)]
    for batch in batches:
        for row, image in zip(batch.rows, batch.inputs["image"], strict=True):
            stored = images[int(row)]
            is_mirrored = not np.array_equal(image, stored)
            np.testing.assert_array_equal(image, stored[:, ::-1] if is_mirrored else stored)
            mirrored += is_mirrored
    assert 0.35 < mirrored / (8 * len(batches)) < 0.65


def test_shift_repeats_the_border() -> None:
    images = Fake()
    reached = set()
    for batch in load(config({"shift": 0.125})):
        for row, image in zip(batch.rows, batch.inputs["image"], strict=True):
            stored = images[int(row)]
            fits = [
                (down, right)
                for down in range(-2, 3)
                for right in range(-2, 3)
                if np.array_equal(
                    image,
                    stored[np.clip(np.arange(16) + down, 0, 15)[:, None], np.clip(np.arange(20) + right, 0, 19)],
                )
            ]
            assert len(fits) == 1
            reached.add(fits[0])
    assert len(reached) > 12


def test_balanced_sampling_draws_classes_equally_often() -> None:
    labels = np.repeat([0, 1, 3], [90, 9, 3])
    order = epoch_order(labels, 0, 0, "balanced")
    assert order.dtype == np.int64
    assert np.bincount(labels[order]).tolist() == [34, 34, 0, 34]
    often = np.bincount(order, minlength=102)
    assert often[:90].max() == 1
    assert sorted(set(often[90:99].tolist())) == [3, 4]
    assert sorted(often[99:].tolist()) == [11, 11, 12]
    assert (np.diff(labels[order]) != 0).mean() > 0.4, "the classes are not shuffled"
    assert (epoch_order(labels, 0, 1, "balanced") != order).any()
    assert (epoch_order(labels, 1, 0, "balanced") != order).any()


def test_class_weights_average_to_one_over_the_images() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    assert class_weights("none", labels, CLASSES) is None
    balanced = class_weights("balanced", labels, CLASSES)
    np.testing.assert_allclose(balanced, [100 / (3 * 60), 100 / (3 * 30), 100 / (3 * 10)], rtol=1e-6)
    named = class_weights({"bee": 2, "ant": 1, "cat": 4}, labels, CLASSES)
    np.testing.assert_allclose(named / named[0], [1, 2, 4], rtol=1e-6)
    assert named[labels].mean() == pytest.approx(1)
    batch = load(config(class_weights="balanced"))[0]
    np.testing.assert_array_equal(
        batch.weights, class_weights("balanced", Fake().labels, CLASSES)[Fake().labels[batch.rows]]
    )


@pytest.mark.parametrize(
    ("given", "named"),
    [({"ant": 1, "bee": 1}, ["missing: cat"]), ({"ant": 1, "bee": 1, "cat": 1, "dog": 2}, ["unknown: dog"])],
)
def test_class_weights_name_each_class(given: dict[str, float], named: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Loader(Fake(), config(class_weights=given), on_accelerator=False)
    for part in [*named, "ant, bee, cat", "train.class_weights"]:
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("changes", "processes", "expected"),
    [
        ({"batch_size": 46}, 1, ["batch_size is 46", "45 images"]),
        ({"batch_size": 9}, 2, ["batch_size is 9", "2 processes"]),
        ({"batch_size": 6, "augmentation": {"mixup": 0.2}}, 2, ["batch_size is 6", "multiple of 4"]),
        ({"batch_size": 7, "augmentation": {"cutmix": 1}}, 1, ["batch_size is 7", "multiple of 2"]),
    ],
)
def test_a_batch_that_cannot_be_is_refused(changes: dict[str, Any], processes: int, expected: list[str]) -> None:
    augmentation = changes.pop("augmentation", None)
    with pytest.raises(InputError) as caught:
        Loader(Fake(), config(augmentation, **changes), process_count=processes, on_accelerator=False)
    for part in expected:
        assert part in caught.value.message


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_an_image_comes_through(workers: int) -> None:
    row = int(load(config())[0].rows[3])
    with pytest.raises(DataError, match=f"image {row} is damaged"):
        load(config(workers=workers), images=Fake(fails_at=row))


def test_a_killed_worker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Through pipes, because a killed process leaves what it just put into shared memory.
    monkeypatch.setattr(loader_module, "_fits_shared_memory", lambda _: False)
    settings = config(workers=1, epochs=10_000)
    with Loader(Fake(), settings, on_accelerator=False) as loader:
        next(batches := itertools.chain.from_iterable(loader.epoch(epoch) for epoch in range(1000)))
        (worker,) = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(StageError, match=r"Lower train\.workers"):
            list(batches)  # what lay ready comes first


def test_workers_go_by_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in {1: 0, 2: 0, 4: 2, 16: 14, 128: 16}.items():
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert num_workers(config(workers="auto")) == expected
    assert num_workers(config(workers=5)) == 5


PARENT = """
import os, sys, time
sys.path.insert(0, {tests!r})
from test_loader import Fake, config
from pipeline.training.loader import Loader
if __name__ == "__main__":
    loader = Loader(Fake(), config(workers=2, epochs=10_000), on_accelerator=False)
    next(loader.epoch(0))
    import multiprocessing
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {end}
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("ends", ["killed", "by an error", "closed"])
def test_workers_end_with_their_parent(ends: str, tmp_path: Path) -> None:
    end = {"killed": "time.sleep(60)", "by an error": "raise SystemExit(3)", "closed": "loader.close(); time.sleep(60)"}
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), end=end[ends]), encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if ends == "killed":
            parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in pids if alive(pid)]
    finally:
        parent.kill()
        parent.communicate()

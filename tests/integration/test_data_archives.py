"""The data stage on real archives, which lie beside the project and are not part of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.stages.data import DataStage

DATA = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Archive:
    id: str
    size: tuple[int, int]
    num_classes: int
    first_and_last_class: tuple[str, str]
    num_images: dict[str, int]
    num_grey: int
    num_label_conflicts: int
    note: str
    max_seconds: float


ARCHIVES = [
    Archive(
        id="cifar10",
        size=(32, 32),
        num_classes=10,
        first_and_last_class=("airplane", "truck"),
        num_images={"train": 42_500, "validation": 7_500, "test": 10_000},
        num_grey=0,
        num_label_conflicts=0,
        note="validation is drawn from train: the source has none",
        max_seconds=120,
    ),
    Archive(
        id="tiny_imagenet_20",
        size=(96, 96),
        num_classes=20,
        first_and_last_class=("american_alligator", "trilobite"),
        num_images={"train": 8_500, "validation": 1_500, "test": 1_000},
        num_grey=45,
        num_label_conflicts=2,
        note="the source's validation split is used as test, for it has none; validation is drawn from train",
        max_seconds=60,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", ARCHIVES, ids=lambda case: case.id)
def test_a_real_archive_is_prepared(case: Archive, tmp_path: Path) -> None:
    path = DATA / f"{case.id}.tar.xz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the project (shared/data)")
    section = {"source": "image_folder", "path": str(path), "size": case.size}
    stage = DataStage.model_validate_json(json.dumps({"source": section}), strict=True)

    start = time.perf_counter()
    fingerprint = stage.fingerprint()
    fingerprint_seconds = time.perf_counter() - start
    stage.run({}, tmp_path, lambda _: None)
    seconds = time.perf_counter() - start

    assert fingerprint_seconds < 0.5
    assert seconds < case.max_seconds
    dataset = json.loads((tmp_path / "dataset.json").read_text())
    assert len(dataset["classes"]) == case.num_classes
    assert (dataset["classes"][0], dataset["classes"][-1]) == case.first_and_last_class
    assert dataset["classes"] == sorted(dataset["classes"])
    assert dataset["modes"].get("L", 0) == case.num_grey
    assert len(dataset["label_conflicts"]) == case.num_label_conflicts
    assert dataset["removed_duplicates"] == []
    assert dataset["notes"] == [case.note]
    assert dataset["fingerprint"] == fingerprint
    for split, count in case.num_images.items():
        images = np.load(tmp_path / f"{split}_images.npy", mmap_mode="r")
        labels = np.load(tmp_path / f"{split}_labels.npy")
        assert images.shape == (count, *case.size, 3)
        assert np.array_equal(np.bincount(labels), np.full(case.num_classes, count // case.num_classes))
        assert images[:: count // 100].std() > 40

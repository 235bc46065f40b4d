from __future__ import annotations

import hashlib
import json
import os
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devices.board.preprocess import Preprocess, preprocess
from pipeline.errors import DataError
from pipeline.sources.base import SPLITS
from pipeline.stages.data import DataStage

FILES = sorted(f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels"))


def stage(path: Path, **fields: Any) -> DataStage:
    section = {"source": "image_folder", "path": str(path), "size": [8, 8]} | fields
    return DataStage.model_validate_json(json.dumps({"source": section}), strict=True)


def prepare(path: Path, out_dir: Path, **fields: Any) -> dict[str, Any]:
    out_dir.mkdir()
    return stage(path, **fields).run({}, out_dir, lambda _: None)


def write_image(path: Path, value: int, *, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, 7)).convert(mode).save(path)


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """Images that all differ, `counts` of them in each folder."""
    value = 0
    for folder, count in counts.items():
        for index in range(count):
            write_image(root / folder / f"{index}.png", value)
            value += 1
    return root


def pack(root: Path, path: Path, seed: int) -> Path:
    files = sorted(file for file in root.rglob("*") if file.is_file())
    random.Random(seed).shuffle(files)
    with tarfile.open(path, "w:gz") as archive:
        for file in files:
            archive.add(file, f"{root.name}/{file.relative_to(root)}")
    return path


def dataset(out_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out_dir / "dataset.json").read_text())
    return found


def index(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "index.jsonl").read_text().splitlines()]


def test_a_folder_becomes_arrays_an_index_and_a_summary(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/no": 20, "train/01": 20, "test/no": 3, "test/01": 4})
    out = tmp_path / "out"

    metrics = prepare(root, out)

    assert sorted(file.name for file in out.iterdir()) == sorted([*FILES, "dataset.json", "index.jsonl"])
    assert metrics == {
        "num_classes": 2,
        "num_train_images": 34,
        "num_validation_images": 6,
        "num_test_images": 7,
        "num_removed_duplicates": 0,
        "num_label_conflicts": 0,
        "num_unreadable": 0,
        "num_ignored": 0,
    }
    summary = dataset(out)
    assert summary["classes"] == ["01", "no"]
    record = Preprocess.from_dict(summary["preprocess"])
    assert record == Preprocess((8, 8))
    assert summary["splits"]["test"] == {
        "num_images": 7,
        "num_images_per_class": {"01": 4, "no": 3},
        "num_duplicates_inside": 0,
    }
    assert summary["original_sizes"]["height"] == {"min": 5, "median": 5.0, "max": 5}
    assert summary["original_sizes"]["most_common"] == [{"height": 5, "width": 6, "num_images": 47}]
    assert summary["modes"] == {"RGB": 47}
    assert summary["notes"] == ["validation is drawn from train: the source has none"]
    assert summary["fingerprint"] == stage(root).fingerprint()
    lines = index(out)
    assert len(lines) == 47
    for line in lines:
        data = (root / line["name"]).read_bytes()
        images = np.load(out / f"{line['split']}_images.npy", mmap_mode="r")
        labels = np.load(out / f"{line['split']}_labels.npy")
        pixels = np.asarray(Image.open(root / line["name"]))
        assert images.dtype == np.uint8
        assert images.shape[1:] == (8, 8, 3)
        assert labels.dtype == np.int64
        assert labels.shape == images.shape[:1]
        assert np.array_equal(images[line["row"]], preprocess(pixels, record))
        assert summary["classes"][labels[line["row"]]] == line["label"] == line["name"].split("/")[1]
        assert line["digest"] == hashlib.sha256(data).hexdigest()


def test_neither_the_order_nor_the_packing_changes_the_outcome(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 12, "dog": 15})
    prepare(root, tmp_path / "plain")
    prepare(pack(root, tmp_path / "1.tar.gz", 1), tmp_path / "packed")
    prepare(pack(root, tmp_path / "2.tar.gz", 2), tmp_path / "shuffled")

    for name in [*FILES, "index.jsonl"]:
        expected = (tmp_path / "plain" / name).read_bytes()
        assert (tmp_path / "packed" / name).read_bytes() == expected
        assert (tmp_path / "shuffled" / name).read_bytes() == expected


def test_images_are_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 12, "dog": 15})
    prepare(root, tmp_path / "whole")
    monkeypatch.setattr("pipeline.image_spool._CHUNK_SIZE_BYTES", 8 * 8 * 3 * 2)
    prepare(root, tmp_path / "chunks")

    for name in FILES:
        assert (tmp_path / "chunks" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_copies_across_splits_and_labels_are_listed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/a": 9, "train/b": 9, "test/a": 3, "test/b": 3})
    (root / "train/a/copy.png").write_bytes((root / "test/a/0.png").read_bytes())
    (root / "train/b/wrong.png").write_bytes((root / "test/a/1.png").read_bytes())
    (root / "test/b/twice.png").write_bytes((root / "test/b/0.png").read_bytes())

    metrics = prepare(root, tmp_path / "out")

    summary = dataset(tmp_path / "out")
    assert [
        (item["name"], item["split"], item["kept_name"], item["kept_split"]) for item in summary["removed_duplicates"]
    ] == [
        ("train/a/copy.png", "train", "test/a/0.png", "test"),
        ("train/b/wrong.png", "train", "test/a/1.png", "test"),
    ]
    assert [item["images"] for item in summary["label_conflicts"]] == [
        [{"name": "test/a/1.png", "label": "a"}, {"name": "train/b/wrong.png", "label": "b"}]
    ]
    assert summary["splits"]["test"]["num_duplicates_inside"] == 1
    assert metrics["num_test_images"] == 7
    assert metrics["num_train_images"] + metrics["num_validation_images"] == 18
    assert (metrics["num_removed_duplicates"], metrics["num_label_conflicts"]) == (2, 1)
    names = {line["name"] for line in index(tmp_path / "out")}
    assert not names & {"train/a/copy.png", "train/b/wrong.png"}


def test_modes_sizes_and_other_files_are_summarized(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"a": 4, "b": 4})
    write_image(root / "a/grey.png", 40, mode="L")
    write_image(root / "b/alpha.png", 41, size=(20, 30), mode="RGBA")
    write_image(root / "b/palette.png", 42, mode="P")
    (root / "b/notes.txt").write_text("text")

    prepare(root, tmp_path / "out")

    summary = dataset(tmp_path / "out")
    assert summary["modes"] == {"L": 1, "P": 1, "RGB": 8, "RGBA": 1}
    assert summary["original_sizes"]["height"] == {"min": 5, "median": 5.0, "max": 30}
    assert summary["original_sizes"]["width"] == {"min": 6, "median": 6.0, "max": 20}
    assert summary["ignored"] == {
        "num_files": 1,
        "first_files": [{"name": "b/notes.txt", "reason": "not a .jpg, .jpeg or .png file"}],
    }


def break_images(root: Path, count: int) -> None:
    for number in range(count):
        (root / "a" / f"broken{number}.jpg").write_bytes(b"no image")


def test_unreadable_images_end_the_stage(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"a": 4, "b": 4})
    break_images(root, 7)

    with pytest.raises(DataError) as caught:
        prepare(root, tmp_path / "out")

    assert caught.value.message.startswith("7 images can't be read (a/broken0.jpg: not a JPEG or PNG image; ")
    assert "a/broken4.jpg" in caught.value.message
    assert "a/broken5.jpg" not in caught.value.message
    assert "and 2 more" in caught.value.message
    assert "`on_unreadable: skip`" in caught.value.message
    assert not list((tmp_path / "out").iterdir())


def test_unreadable_images_are_skipped_and_listed_on_request(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"a": 4, "b": 4})
    prepare(root, tmp_path / "expected")
    break_images(root, 2)
    (root / "b" / "gone.png").symlink_to(root / "missing.png")

    metrics = prepare(root, tmp_path / "out", on_unreadable="skip")

    assert metrics["num_unreadable"] == 3
    assert dataset(tmp_path / "out")["unreadable"] == [
        {"name": "a/broken0.jpg", "reason": "not a JPEG or PNG image"},
        {"name": "a/broken1.jpg", "reason": "not a JPEG or PNG image"},
        {"name": "b/gone.png", "reason": "No such file or directory"},
    ]
    for name in [*FILES, "index.jsonl"]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def break_everything(root: Path) -> None:
    for file in root.rglob("*.png"):
        file.write_bytes(b"no image")


def remove_everything(root: Path) -> None:
    for file in root.rglob("*.png"):
        file.unlink()


@dataclass(frozen=True)
class Refused:
    id: str
    counts: dict[str, int]
    message: str
    change: Callable[[Path], None] = lambda _: None


REFUSED = [
    Refused("no_files", {"a": 3, "b": 3}, "is empty", remove_everything),
    Refused("one_class", {"a": 9}, "one class only (a)"),
    Refused("one_image", {"a": 9, "b": 1}, "b (1)"),
    Refused("too_few_to_split", {"a": 9, "b": 2}, "each of the 3 splits"),
    Refused("class_in_test_alone", {"train/a": 4, "train/b": 4, "test/c": 4}, "no train image of c"),
    Refused("nothing_readable", {"a": 4, "b": 4}, "no image that can be read", break_everything),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_data_that_cannot_be_used_is_an_error(case: Refused, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", case.counts)
    case.change(root)

    with pytest.raises(DataError) as caught:
        prepare(root, tmp_path / "out", on_unreadable="skip")

    assert case.message in caught.value.message
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_path_is_an_error_of_the_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing at"):
        stage(tmp_path / "missing").fingerprint()


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"a": 4, "b": 4})
    (tmp_path / "out").mkdir()

    def touch(event: dict[str, Any]) -> None:
        if event["message"] == "writing test":
            os.utime(root / "a/0.png", ns=(1, 1))

    with pytest.raises(DataError, match="changed while it was read"):
        stage(root).run({}, tmp_path / "out", touch)


def test_progress_is_told_a_few_times_a_second(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"a": 50, "b": 50})
    (tmp_path / "out").mkdir()
    events: list[dict[str, Any]] = []

    stage(root).run({}, tmp_path / "out", events.append)

    reading = [event for event in events if event["message"] == "reading images"]
    assert reading[0] == {"message": "reading images", "done": 0, "total": 100}
    assert reading[-1] == {"message": "reading images", "done": 100, "total": 100}
    assert len(reading) < 20


def test_arrays_and_digits_are_sources_too(tmp_path: Path) -> None:
    images = np.arange(30 * 4 * 4, dtype=np.uint16).reshape(30, 4, 4).astype(np.uint8)
    images[:, 0, 0] = np.arange(30)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(30) % 2)

    prepare(tmp_path / "a.npz", tmp_path / "npz", source="npz", size=[4, 4])
    out = tmp_path / "digits"
    out.mkdir()
    digits = DataStage.model_validate_json('{"source": {"source": "digits", "size": [8, 8]}}', strict=True)
    metrics = digits.run({}, out, lambda _: None)

    line = next(line for line in index(tmp_path / "npz") if line["name"] == "images/07")
    row = np.load(tmp_path / "npz" / f"{line['split']}_images.npy")[line["row"]]
    assert np.array_equal(row, np.stack([images[7]] * 3, axis=2))
    assert metrics["num_classes"] == 10
    assert sum(metrics[f"num_{split}_images"] for split in SPLITS) == 1797
    assert 0.19 < metrics["num_test_images"] / 1797 < 0.21
    assert digits.tool_names() == ("numpy", "pillow", "scikit-learn")
    assert stage(tmp_path).tool_names() == ("numpy", "pillow")

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from devices.board.preprocess import Preprocess, preprocess
from pipeline.encoded_images import EncodedImages, shard_lengths, shard_name, write_encoded_images
from pipeline.errors import CorruptArtifactError, DataError
from pipeline.sources.base import SPLITS
from pipeline.sources.decode import decode_image
from pipeline.stages.data import DataStage
from pipeline.training.images import TrainingImages, preprocessed_training_images


def stage(path: Path, **fields: Any) -> DataStage:
    section = {"source": "image_folder", "path": str(path), "size": [8, 8]} | fields
    return DataStage.model_validate_json(json.dumps({"source": section}), strict=True)


def prepare(path: Path, out_dir: Path, **fields: Any) -> Path:
    out_dir.mkdir()
    stage(path, **fields).run({}, out_dir, lambda _: None)
    return out_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of different sizes, some grey, some turned by their EXIF tag."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for index in range(count):
            path = root / split / "ab"[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (10 + index, 30 - index) if index == 3 else (10 + index, 30 - index, 3)
            image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
            image.getexif()[0x0112] = 6 if index == 4 else 1
            image.save(path, exif=image.getexif())
    return root


@pytest.fixture(scope="module")
def decoded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(folder, tmp_path_factory.mktemp("decoded") / "out", cache="decoded")


@pytest.fixture(scope="module")
def encoded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(folder, tmp_path_factory.mktemp("encoded") / "out", cache="encoded")


def test_the_training_split_is_kept_as_it_is(folder: Path, decoded: Path, encoded: Path) -> None:
    names = {file.name for file in encoded.iterdir()}
    assert names == {file.name for file in decoded.iterdir()} - {"train_images.npy"} | {
        "train_images-00000-of-00001.array_record"
    }
    for name in (*(f"{split}_labels.npy" for split in SPLITS), "validation_images.npy", "test_images.npy"):
        assert (encoded / name).read_bytes() == (decoded / name).read_bytes()
    lines = [json.loads(line) for line in (encoded / "index.jsonl").read_text().splitlines()]
    images = TrainingImages(encoded)
    for line in lines:
        if line["split"] == "train":
            expected = decode_image((folder / line["name"]).read_bytes()).pixels
            assert np.array_equal(images[line["row"]], expected)
    summary = json.loads((encoded / "dataset.json").read_text())
    assert summary["cache"] == {"kind": "encoded", "shard_lengths": [16]}


def test_both_caches_give_the_same_training_images(decoded: Path, encoded: Path) -> None:
    first, second = TrainingImages(decoded), TrainingImages(encoded)

    assert (first.encoded, second.encoded) == (False, True)
    assert len(first) == len(second) == 16
    assert first.size == second.size == (8, 8)
    assert first.classes == second.classes == ("a", "b")
    assert np.array_equal(first.labels, second.labels)
    assert first.names([3, 0, 3]) == second.names([3, 0, 3])
    assert second.preprocess == Preprocess((8, 8))
    for row in range(16):
        assert np.array_equal(preprocess(second[row], second.preprocess), first[row])
    array = np.load(decoded / "train_images.npy")
    for path in (decoded, encoded):
        assert np.array_equal(preprocessed_training_images(path), array)
        assert np.array_equal(preprocessed_training_images(path, np.array([5, 1, 5])), array[[5, 1, 5]])


@pytest.mark.parametrize("kind", ["decoded", "encoded"])
def test_images_are_pickled_as_paths_and_read_by_threads(kind: str, request: pytest.FixtureRequest) -> None:
    images = TrainingImages(request.getfixturevalue(kind))
    expected = [images[row].tobytes() for row in range(16)]
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301

    assert len(pickle.dumps(images)) < 3000
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda row: copy[row % 16].tobytes(), range(16 * 20)))
    assert found == expected * 20


def test_the_choice_is_made_by_the_size_of_the_training_split(
    folder: Path, decoded: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_bytes = 8 * 8 * 3

    def kind(limit_images: int, name: str, **fields: Any) -> str:
        monkeypatch.setattr("pipeline.stages.data._MAX_DECODED_SIZE_BYTES", limit_images * image_bytes)
        out = prepare(folder, tmp_path / name, **fields)
        reference = encoded if TrainingImages(out).encoded else decoded
        for file in reference.iterdir():
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name
        return str(json.loads((out / "dataset.json").read_text())["cache"]["kind"])

    assert kind(26, "all") == "decoded"
    assert kind(16, "training") == "decoded"  # all images are more than the limit, the training split is not
    assert kind(15, "less") == "encoded"
    assert kind(1, "asked", cache="decoded") == "decoded"
    assert kind(26, "asked_too", cache="encoded") == "encoded"


def test_the_choice_is_in_the_key_and_the_path_is_not(folder: Path) -> None:
    assert stage(folder).key_config() == stage(folder / "..").key_config()
    assert len({json.dumps(stage(folder, cache=cache).key_config()) for cache in ("auto", "decoded", "encoded")}) == 3


@pytest.mark.parametrize("source", [{"source": "digits"}, {"source": "npz", "path": "a.npz"}])
def test_arrays_have_no_files_to_keep(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"cache is encoded, but this source gives arrays and no image files"):
        DataStage.model_validate({"source": {**source, "size": (8, 8), "cache": "encoded"}})


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100, 0, 26 * 2 * 8 * 8 * 3 - 1))
    with pytest.raises(
        DataError, match=r"\(26 images, twice .* of 8x8 pixels\).* set `cache: encoded`, a smaller `size`"
    ):
        prepare(folder, tmp_path / "decoded")
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100, 0, 10 * 8 * 8 * 3 - 1))
    with pytest.raises(DataError, match=r"\(10 images of validation, test, of 8x8 pixels\).*: set a smaller `size`"):
        prepare(folder, tmp_path / "encoded", cache="encoded")
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) % 2)
    with pytest.raises(DataError, match=r": set a smaller `size`"):
        prepare(tmp_path / "a.npz", tmp_path / "npz", source="npz")
    assert not list((tmp_path / "decoded").iterdir())
    assert not list((tmp_path / "encoded").iterdir())


def test_shards_are_filled_and_a_large_file_has_its_own() -> None:
    assert shard_lengths([4, 4, 4, 11, 1, 9], 10) == [2, 1, 1, 2]
    assert shard_lengths([], 10) == []


def test_files_in_several_shards_are_found_by_their_rows(tmp_path: Path) -> None:
    files = [bytes([index]) * (1000 + index) for index in range(20)]
    lengths = shard_lengths(map(len, files), 3100)
    write_encoded_images(tmp_path, "x", iter(files), lengths)

    images = EncodedImages(tmp_path, "x", lengths)

    assert len(lengths) == 7
    assert len(images) == 20
    assert [images[row] for row in range(20)] == files
    assert images[-1] == files[-1]
    with pytest.raises(IndexError, match="row 20 of 20"):
        images[20]


def test_a_damaged_shard_is_an_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    write_encoded_images(tmp_path, "x", (random.bytes(50_000) for _ in range(10)), [10])
    path = tmp_path / shard_name("x", 0, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    images = EncodedImages(tmp_path, "x", [10])
    with pytest.raises(CorruptArtifactError, match=r"x-00000-of-00001\.array_record is damaged"):
        [images[row] for row in range(10)]


def test_writing_the_shards_twice_gives_the_same_bytes(folder: Path, encoded: Path, tmp_path: Path) -> None:
    again = prepare(folder, tmp_path / "again", cache="encoded")

    for file in encoded.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_too_few_files_for_the_shards_are_an_error(tmp_path: Path) -> None:
    def files() -> Iterator[bytes]:
        yield io.BytesIO(b"one").getvalue()

    with pytest.raises(OSError, match="fewer than its 2 files"):
        write_encoded_images(tmp_path, "x", files(), [2])

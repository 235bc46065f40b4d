from __future__ import annotations

import hashlib
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.sources import ImageFolderConfig, Problem, Sample
from pipeline.sources import image_folder as module


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2), (value, value, value)).save(path)


def make_folder(root: Path, names: list[str]) -> Path:
    for index, name in enumerate(names):
        write_image(root / name, index)
    return root


def config(path: Path) -> ImageFolderConfig:
    return ImageFolderConfig(source="image_folder", path=str(path), size=(4, 4))


def samples(path: Path) -> list[Sample]:
    items = list(config(path).read().items)
    assert not [item for item in items if isinstance(item, Problem)]
    return sorted((item for item in items if isinstance(item, Sample)), key=lambda sample: sample.name)


NAMES = ["train/01/a.png", "train/no/b.PNG", "test/01/c.png", "test/no/d.png"]


def test_a_directory_is_read(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", NAMES)

    reading = config(root).read()
    found = samples(root)

    assert reading.classes == ("01", "no")
    assert reading.num_images == 4
    assert [(sample.name, sample.split, sample.label) for sample in found] == [
        ("test/01/c.png", "test", "01"),
        ("test/no/d.png", "test", "no"),
        ("train/01/a.png", "train", "01"),
        ("train/no/b.PNG", "train", "no"),
    ]
    assert found[0].digest == hashlib.sha256((root / "test/01/c.png").read_bytes()).hexdigest()
    assert np.array_equal(found[0].decode().pixels, np.full((2, 4, 3), 2))


@pytest.mark.parametrize("reverse", [False, True], ids=["sorted", "reversed"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_an_archive_gives_what_its_directory_gives(suffix: str, reverse: bool, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", NAMES)
    path = tmp_path / f"pets.{suffix}"
    modes = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}
    with tarfile.open(path, modes[suffix]) as archive:  # type: ignore[call-overload]
        for name in sorted(NAMES, reverse=reverse):
            archive.add(root / name, f"pets/{name}")

    packed, plain = samples(path), samples(root)

    assert config(path).read().classes == config(root).read().classes
    assert [(s.name, s.split, s.label, s.digest) for s in packed] == [
        (s.name, s.split, s.label, s.digest) for s in plain
    ]
    assert all(np.array_equal(a.decode().pixels, b.decode().pixels) for a, b in zip(packed, plain, strict=True))


def test_hidden_files_are_left_out_and_other_files_are_reported(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ["a/1.png", "b/1.png", ".cache/1.png", "a/.1.png", "__MACOSX/1.png"])
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "c").mkdir()

    reading = config(root).read()

    assert reading.num_images == 2
    assert [problem.name for problem in reading.ignored] == ["a/Thumbs.db", "c/"]


def test_links_are_followed_in_a_directory_and_a_loop_ends(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root", ["a/1.png"])
    other = make_folder(tmp_path / "other", ["1.png"])
    (root / "b").symlink_to(other)
    (root / "b" / "2.png").symlink_to(root / "a" / "1.png")

    assert [sample.name for sample in samples(root)] == ["a/1.png", "b/1.png", "b/2.png"]
    (root / "a" / "loop").symlink_to(root)
    with pytest.raises(DataError, match="too deep"):
        config(root).read()


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ["a/1.png", "b/1.png"])
    (root / "a" / "2.png").symlink_to(root / "missing.png")

    problems = [item for item in config(root).read().items if isinstance(item, Problem)]

    assert problems == [Problem("a/2.png", "No such file or directory")]
    assert config(root).fingerprint()


def test_a_huge_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path, ["a/1.png", "b/1.png"])
    monkeypatch.setattr(module, "MAX_FILE_SIZE_BYTES", 10)

    assert all(isinstance(item, Problem) for item in config(root).read().items)


@pytest.mark.parametrize("name", ["missing", "missing.tar", "notes.txt", "pets.zip"])
def test_a_path_that_is_no_folder_or_archive_is_an_error(name: str, tmp_path: Path) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"x")

    for use in (config(tmp_path / name).fingerprint, config(tmp_path / name).read):
        with pytest.raises(DataError) as caught:
            use()
        assert "expected a directory or an archive" in caught.value.message


def test_the_fingerprint_of_a_directory_follows_names_sizes_and_times(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ["a/1.png", "b/1.png"])
    seen = [config(root).fingerprint()]
    assert config(root).fingerprint() == seen[0]

    os.utime(root / "a/1.png", ns=(1, 1))
    seen.append(config(root).fingerprint())
    (root / "a/1.png").rename(root / "a/2.png")
    seen.append(config(root).fingerprint())
    with (root / "a/2.png").open("ab") as file:
        file.write(b"x")
    os.utime(root / "a/2.png", ns=(1, 1))
    seen.append(config(root).fingerprint())
    write_image(root / "c" / "1.png")
    seen.append(config(root).fingerprint())

    assert len(set(seen)) == len(seen)
    write_image(root / ".hidden" / "1.png")
    assert config(root).fingerprint() == seen[-1]


def test_the_fingerprint_of_an_archive_is_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    first = config(path).fingerprint()
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))

    assert first == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    assert config(path).fingerprint() != first


def test_the_fingerprint_of_many_files_is_quick(tmp_path: Path) -> None:
    for label in range(20):
        (tmp_path / str(label)).mkdir()
        for index in range(100):
            (tmp_path / str(label) / f"{index}.png").touch()

    start = time.perf_counter()
    config(tmp_path).fingerprint()

    assert time.perf_counter() - start < 0.5

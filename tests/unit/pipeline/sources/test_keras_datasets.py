from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipeline.errors import DataError
from pipeline.sources import DataConfig, KerasDatasetsConfig, Sample

RANDOM = np.random.default_rng(0)
CIFAR10_IMAGES = RANDOM.integers(0, 256, (6, 2, 32, 32, 3), dtype=np.uint8)
FASHION_IMAGES = RANDOM.integers(0, 256, (5, 28, 28), dtype=np.uint8)
IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def config(name: str, path: Path | None = None) -> KerasDatasetsConfig:
    section: dict[str, Any] = {"source": "keras_datasets", "name": name, "size": [32, 32]}
    if path is not None:
        section["path"] = str(path)
    found: KerasDatasetsConfig = TypeAdapter(DataConfig).validate_json(json.dumps(section), strict=True)
    return found


def samples(source: KerasDatasetsConfig) -> list[Sample]:
    return [item for item in source.read().items if isinstance(item, Sample)]


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def cifar_files(*, protocol: int = 2) -> dict[str, bytes]:
    """The files of CIFAR-10 with two images each, pickled as its authors did, with keys of bytes."""
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    files = {
        f"cifar-10-batches-py/{name}": pickle.dumps(
            {b"data": images.transpose(0, 3, 1, 2).reshape(2, 3072), b"labels": [1, index]}, protocol
        )
        for index, (name, images) in enumerate(zip(names, CIFAR10_IMAGES, strict=True))
    }
    meta = {b"label_names": [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog"]}
    return files | {"cifar-10-batches-py/batches.meta": pickle.dumps(meta, protocol)}


def write_fashion(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in (("train", FASHION_IMAGES[:3]), ("t10k", FASHION_IMAGES[3:])):
        count = len(images)
        files = {
            f"{split}-images-idx3-ubyte": struct.pack(">4I", 2051, count, 28, 28) + images.tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">2I", 2049, count) + bytes(range(7, 7 + count)),
        }
        for name, data in files.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(changed.get(name.replace("-", "_"), data)))
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_archive_of_cifar_10_is_read(protocol: int, tmp_path: Path) -> None:
    path = pack(tmp_path / "cifar-10-python.tar.gz", cifar_files(protocol=protocol))

    reading = config("cifar10", path).read()
    found = [item for item in reading.items if isinstance(item, Sample)]

    assert reading.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog")
    assert reading.num_images == 12
    assert [sample.split for sample in found] == ["train"] * 10 + ["test"] * 2
    assert [sample.label for sample in found[::2]] == ["automobile"] * 6
    assert [sample.label for sample in found[1::2]] == list(reading.classes)
    assert found[3].name == "data_batch_2/1"
    assert np.array_equal([sample.decode().pixels for sample in found], CIFAR10_IMAGES.reshape(12, 32, 32, 3))


def test_the_archive_of_cifar_100_is_read_by_its_fine_labels(tmp_path: Path) -> None:
    def batch(labels: list[int]) -> bytes:
        data = np.zeros((len(labels), 3072), np.uint8) + np.arange(len(labels), dtype=np.uint8)[:, None]
        return pickle.dumps({b"data": data, b"fine_labels": labels, b"coarse_labels": [0] * len(labels)}, 2)

    files = {
        "cifar-100-python/train": batch([2, 0, 1]),
        "cifar-100-python/test": batch([1]),
        "cifar-100-python/meta": pickle.dumps({b"fine_label_names": [b"apple", b"bear", b"cup"]}, 2),
    }

    found = samples(config("cifar100", pack(tmp_path / "c.tar.gz", files)))

    assert [(sample.split, sample.label) for sample in found] == [
        ("train", "cup"),
        ("train", "apple"),
        ("train", "bear"),
        ("test", "bear"),
    ]


def test_the_files_of_fashion_mnist_are_read(tmp_path: Path) -> None:
    found = samples(config("fashion_mnist", write_fashion(tmp_path)))

    assert [(sample.name, sample.split, sample.label) for sample in found] == [
        ("train/0", "train", "Sneaker"),
        ("train/1", "train", "Bag"),
        ("train/2", "train", "Ankle boot"),
        ("test/0", "test", "Sneaker"),
        ("test/1", "test", "Bag"),
    ]
    assert np.array_equal([sample.decode().pixels[:, :, 1] for sample in found], FASHION_IMAGES)


def test_files_that_keras_keeps_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    write_fashion(tmp_path / "datasets" / "fashion-mnist")
    pack(tmp_path / "datasets" / "cifar-10-batches-py-target_archive", cifar_files())

    assert len(samples(config("fashion_mnist"))) == 5
    assert len(samples(config("cifar10"))) == 12
    assert (
        config("cifar10").fingerprint()
        == config("cifar10", tmp_path / "datasets/cifar-10-batches-py-target_archive").fingerprint()
    )


def test_the_fingerprint_is_the_digest_of_the_files_or_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    path = pack(tmp_path / "c.tar.gz", cifar_files())
    before = config("cifar10", path).fingerprint()
    folder = write_fashion(tmp_path / "f")
    fashion = config("fashion_mnist", folder).fingerprint()
    (folder / IDX_NAMES[3]).write_bytes(gzip.compress(b"other"))

    assert config("cifar10").fingerprint() == "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert config("fashion_mnist").fingerprint().count("md5:") == 4
    assert config("fashion_mnist", folder).fingerprint() != fashion
    path.write_bytes(path.read_bytes() + b"\0")
    assert config("cifar10", path).fingerprint() != before


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


class Decoder:
    def __reduce__(self) -> tuple[Any, ...]:
        import _codecs

        return _codecs.encode, ("x", "utf-16")


@dataclass(frozen=True)
class Wrong:
    id: str
    change: Callable[[dict[str, bytes]], None]
    message: str


def put(name: str, value: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[f"cifar-10-batches-py/{name}"] = value if isinstance(value, bytes) else pickle.dumps(value, 4)

    return change


DATA = np.zeros((2, 3072), np.uint8)
WRONG = [
    Wrong("code", put("data_batch_3", {b"data": Attack()}), "it names posix.mkdir, which is no part of an array"),
    Wrong("other_encoding", put("data_batch_3", {b"data": Decoder()}), "it holds bytes as utf-16"),
    Wrong("damaged", put("test_batch", b"\x80\x02no pickle"), "test_batch is no pickle of arrays"),
    Wrong("a_list", put("test_batch", [1]), "test_batch holds list: expected a mapping"),
    Wrong(
        "float_data", put("test_batch", {b"data": DATA / 2, b"labels": [0, 1]}), "are float64 (2, 3072): expected uint8"
    ),
    Wrong("no_data", put("test_batch", {b"labels": [0, 1]}), "are NoneType: expected uint8"),
    Wrong("no_images", put("test_batch", {b"data": DATA[:0], b"labels": []}), "are uint8 (0, 3072): expected uint8"),
    Wrong(
        "one_label",
        put("test_batch", {b"data": DATA, b"labels": [0]}),
        "test_batch has no list of 2 whole numbers as labels",
    ),
    Wrong("large_label", put("test_batch", {b"data": DATA, b"labels": [0, 6]}), "labels from 0 to 6: expected 0 to 5"),
    Wrong("no_names", put("batches.meta", {b"num_vis": 3072}), "batches.meta has no list label_names"),
    Wrong(
        "no_batch",
        lambda files: files.pop("cifar-10-batches-py/data_batch_2"),
        "lacks data_batch_2 in cifar-10-batches-py",
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_archives_that_do_not_fit_are_an_error(case: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = cifar_files()
    case.change(files)

    with pytest.raises(DataError) as caught:
        config("cifar10", pack(tmp_path / "c.tar.gz", files)).read()

    assert case.message in caught.value.message
    assert not (tmp_path / "attacked").exists()


def test_files_of_fashion_mnist_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    header = struct.pack(">2I", 2049, 2)
    for labels, message in (
        (header + b"\x01\x0a", "has the label 10: expected 0 to 9"),
        (header + b"\x01", "has 1 values: expected 2"),
        (struct.pack(">2I", 2049, 1) + b"\x01", "has 2 images and t10k-labels-idx1-ubyte.gz 1 labels"),
        (struct.pack(">2I", 2050, 2) + b"\x01\x01", "is no IDX file of bytes with 1 axes"),
    ):
        with pytest.raises(DataError, match=message):
            config("fashion_mnist", write_fashion(tmp_path, t10k_labels_idx1_ubyte=labels)).read()
    (tmp_path / IDX_NAMES[0]).write_bytes(b"no gzip")
    with pytest.raises(DataError, match="can't be read"):
        config("fashion_mnist", tmp_path).read()


def test_a_path_without_the_files_is_an_error_of_the_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not cifar10: expected the archive cifar-10-python\.tar\.gz"):
        config("cifar10", tmp_path / "c.tar.gz").fingerprint()
    with pytest.raises(DataError, match="is not fashion_mnist: expected a folder with train-images"):
        config("fashion_mnist", tmp_path).fingerprint()


FETCH = """
import socket, sys
from pipeline.errors import DataError
from pipeline.sources import KerasDatasetsConfig

def no_network(*arguments, **options):
    raise socket.gaierror("Name or service not known")

socket.getaddrinfo = no_network
source = KerasDatasetsConfig(source="keras_datasets", name=sys.argv[1], size=(32, 32))
source.fingerprint()
assert "keras" not in sys.modules
try:
    source.read()
except DataError as error:
    sys.exit(error.message)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar100", "fashion_mnist"])
def test_without_a_network_the_error_says_what_to_copy(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name],
        check=False,
        env={
            **os.environ,
            "KERAS_HOME": str(tmp_path),
            "KERAS_BACKEND": "jax",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{name} is not in {tmp_path}/datasets, and fetching it failed (URL fetch failure on " in last
    assert ("cifar-100-python.tar.gz" if name == "cifar100" else ", ".join(IDX_NAMES)) in last
    assert "`path` in the data section" in last

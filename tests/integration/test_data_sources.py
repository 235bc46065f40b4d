"""The sources of shards and the encoded cache on real files: one artifact from all of them, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.executor import StageExecutor
from pipeline.sources import TfdsConfig
from pipeline.sources.base import SPLITS
from pipeline.stages.data import DataStage

ARRAYS = [f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")]


def stage(source: str, path: Path, **fields: Any) -> DataStage:
    section = {"source": source, "path": str(path), "size": [48, 48]} | fields
    return DataStage.model_validate_json(json.dumps({"source": section}), strict=True)


def prepare(prepared: DataStage, out_dir: Path) -> Path:
    """Runs the stage as the runner does, in a process of its own."""
    out_dir.mkdir()
    with StageExecutor(lambda _: None) as executor:
        executor.run(prepared, {}, out_dir)
    return out_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of blobs in 4 classes, some of them grey."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)
    for split, count in (("train", 160), ("val", 40)):
        for index in range(count):
            path = root / split / f"n{index % 4:02d}" / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((64 + index % 7, 64), Image.Resampling.BICUBIC)
            image.convert("L" if index % 9 == 0 else "RGB").save(path, quality=90)
    return root


@pytest.mark.slow
def test_shards_give_the_artifact_of_the_folder(folder: Path, record_shards: ModuleType, tmp_path: Path) -> None:
    expected = prepare(stage("image_folder", folder), tmp_path / "expected")
    for kind in ("tfrecord", "tfrecord.gz", "array_record"):
        root = tmp_path / f"shards.{kind}"
        record_shards.shards_of_folder(folder, root, count=3, kind=kind)
        out = prepare(stage(kind.removesuffix(".gz"), root), tmp_path / f"out.{kind}")

        for name in [*ARRAYS, "index.jsonl"]:
            assert (out / name).read_bytes() == (expected / name).read_bytes(), (kind, name)
        first, second = (json.loads((path / "dataset.json").read_text()) for path in (expected, out))
        for entry in ("classes", "splits", "original_sizes", "modes", "preprocess"):
            assert first[entry] == second[entry]


BUILD = """
import sys
import numpy as np
import tensorflow_datasets as tfds


class TinyPets(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["dog", "cat"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 60), "test": self._generate_examples(60, 20)}

    def _generate_examples(self, start, count):
        for index in range(start, start + count):
            pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            yield index, {"image": pixels, "label": index % 2, "file_name": f"{index:03d}.png"}


TinyPets(data_dir=sys.argv[1], file_format=sys.argv[2]).download_and_prepare()
"""


def build(data_dir: Path, file_format: str) -> None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", BUILD, str(data_dir), file_format]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_data_set_of_tensorflow_datasets_is_read_by_its_name(file_format: str, tmp_path: Path) -> None:
    build(tmp_path / "data", file_format)
    source = TfdsConfig(source="tfds", name="tiny_pets", data_dir=str(tmp_path / "data"), size=(9, 12))

    out = prepare(DataStage(source=source), tmp_path / "out")

    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["classes"] == ["dog", "cat"]
    assert dataset["notes"] == ["validation is drawn from train: the source has none"]
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert len(lines) == 80
    for line in lines:
        index = int(line["name"].removesuffix(".png"))
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        images = np.load(out / f"{line['split']}_images.npy", mmap_mode="r")
        assert np.array_equal(images[line["row"]], pixels)
        assert line["label"] == dataset["classes"][index % 2]
        assert (line["split"] == "test") == (index >= 60)


LOADED = """
import sys
from pipeline.sources import TfdsConfig

source = TfdsConfig(source="tfds", name=sys.argv[1], data_dir=sys.argv[2], size=(9, 12))
source.fingerprint()
assert "tensorflow_datasets" not in sys.modules
sum(1 for item in source.read().items)
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_a_prepared_data_set_is_read_without_tensorflow(tmp_path: Path) -> None:
    build(tmp_path, "array_record")

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LOADED, "tiny_pets", str(tmp_path)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_data_set_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    source = TfdsConfig(source="tfds", name="no_such_set", version="1.0.0", data_dir=str(tmp_path), size=(8, 8))

    with pytest.raises(DataError) as caught:
        source.fingerprint()

    assert f"no_such_set:1.0.0 is not prepared in {tmp_path}, and downloading it failed (" in caught.value.message
    assert "`tfds build no_such_set:1.0.0 --file_format=array_record`" in caught.value.message
    assert "(`data_dir`)" in caught.value.message


MEMORY = """
import sys
from pathlib import Path
from pipeline.stages.data import DataStage
from pipeline.training.images import TrainingImages


def memory_kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


stage = DataStage.model_validate_json(sys.argv[1], strict=True)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, which is that of the parent
before = memory_kib("VmRSS:")
stage.run({}, Path(sys.argv[2]), lambda event: None)
images = TrainingImages(Path(sys.argv[2]))
held = [images[row][0, 0] for row in range(0, len(images), 4) if images.encoded]
print((memory_kib("VmHWM:") - before) / 1024)
"""


def peak_mib(prepared: DataStage, out_dir: Path) -> float:
    """By how much the stage and reading its artifact raise the memory of a process."""
    out_dir.mkdir()
    command = [sys.executable, "-c", MEMORY, prepared.model_dump_json(), str(out_dir)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cache"), [("tfrecord", "encoded"), ("array_record", "decoded")])
def test_memory_does_not_grow_with_the_data(kind: str, cache: str, record_shards: ModuleType, tmp_path: Path) -> None:
    """220 MB of files, which are 78 MB as an array."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (320, 320, 3), dtype=np.uint8)
    root = tmp_path / "shards"
    for shard in range(4):
        records = []
        for index in range(180):
            pixels[0, 0] = (index, shard, 0)
            Image.fromarray(pixels).save(tmp_path / "image.png", compress_level=0)
            data = (tmp_path / "image.png").read_bytes()
            records.append(record_shards.imagenet_example(data, 1 + index % 2))
        path = root / f"train-{shard:05d}-of-00004.{kind}"
        (record_shards.write_array_record if kind == "array_record" else record_shards.write_tfrecord)(path, records)
    assert sum(file.stat().st_size for file in root.iterdir()) > 220e6

    peak = peak_mib(stage(kind, root, size=[190, 190], interpolation="nearest", cache=cache), tmp_path / "out")

    assert peak < 80, peak

"""Data sets of TensorFlow Datasets, by their names."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import DataError
from pipeline.sources.base import Problem, Reading, SourceConfig
from pipeline.sources.examples import Layout
from pipeline.sources.labelled_shards import LabelledShards, shards_fingerprint
from pipeline.sources.layout import SPLIT_NAMES
from pipeline.sources.records import RecordReader, read_array_record, read_tfrecord
from pipeline.sources.shards import Shard, find_shards

_READERS: dict[str, RecordReader] = {"array_record": read_array_record, "tfrecord": read_tfrecord}
_FILENAMES = ("file_name", "filename", "image/filename", "image_id", "id")
_NAME = r"^[a-z][a-z0-9_]*(/[A-Za-z0-9_.-]+)?$"
_VERSION = re.compile(r"^\d+\.\d+\.\d+$")
_MAX_REASON_LENGTH = 500
_PREPARE = """
import sys
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

downloader.MAX_RETRIES = 3  # ten take minutes where there is no network
name, data_dir = sys.argv[1:]
tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
"""
"""Runs in a process of its own, which may load TensorFlow."""


class TfdsConfig(SourceConfig):
    """A data set of TensorFlow Datasets that has an image and a class label, such as `oxford_flowers102`.

    One that is not prepared yet is downloaded and prepared as ArrayRecord, once, before anything else. Its shards,
    ArrayRecord or TFRecord, are then read without TensorFlow. It needs the extra `tfds`.

    Attributes:
        name: As TensorFlow Datasets calls it, with the config where there are several (`imagenet_resized/64x64`).
        version: Such as `3.0.2`; None takes the newest that is prepared, or else the newest there is.
        data_dir: Where data sets are prepared; None takes `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
    """

    has_files: ClassVar[bool] = True
    place_fields: ClassVar[tuple[str, ...]] = ("data_dir",)

    source: Literal["tfds"]
    name: Annotated[str, Field(pattern=_NAME, max_length=200)]
    version: Annotated[str, Field(pattern=_VERSION.pattern)] | None = None
    data_dir: Annotated[str, Field(min_length=1)] | None = None

    def fingerprint(self) -> str:
        """A digest of the shards' names, sizes and modification times; it prepares what is not there yet."""
        directory = self._prepared()
        return f"tfds {directory.name} {shards_fingerprint(find_shards(str(directory))[0], None)}"

    def read(self) -> Reading:
        """Starts a pass over all samples."""
        directory = self._prepared()
        _require_library()
        import tensorflow_datasets as tfds

        try:
            info = tfds.builder_from_directory(directory).info
        except Exception as error:  # the library raises errors of many kinds
            raise DataError(f"{directory} is no prepared data set ({error}): remove it, and run again") from error
        format_name = info.file_format.value if info.file_format else "tfrecord"
        if format_name not in _READERS:
            raise DataError(
                f"{directory} was prepared as {format_name}: expected {' or '.join(_READERS)}; prepare it again with "
                f"`tfds build {self.name} --file_format=array_record`"
            )
        layout, names = _features(directory, info)
        shards, ignored = _shards(directory, info)
        return LabelledShards(shards, _READERS[format_name], 0, names, layout, ignored).read()

    def _prepared(self) -> Path:
        """The directory of the prepared data set; prepares it where there is none.

        Raises:
            DataError: It can't be prepared here.
        """
        directory = self._find()
        if directory is None:
            self._prepare()
            directory = self._find()
        if directory is None:
            raise DataError(
                f"{self._full_name()} was prepared, but there is nothing in {self._data_dir() / self.name}: name the "
                "config, too, as in `name: imagenet_resized/64x64`"
            )
        return directory

    def _find(self) -> Path | None:
        root = self._data_dir() / self.name
        if "/" not in self.name and not _versions(root):
            configs = [entry for entry in root.iterdir() if _versions(entry)] if root.is_dir() else []
            if len(configs) > 1:
                known = ", ".join(sorted(entry.name for entry in configs))
                raise DataError(
                    f"{self.name} is prepared in several configs ({known}): name one, as in "
                    f"`name: {self.name}/{configs[0].name}`"
                )
            root = configs[0] if configs else root
        found = [path for path in _versions(root) if self.version in (None, path.name)]
        return found[-1] if found else None

    def _prepare(self) -> None:
        _require_library()
        data_dir = self._data_dir()
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PREPARE, self._full_name(), str(data_dir)],
            check=False,
            env={**os.environ, "CI": "true", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if done.returncode:
            words = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
            reason = words[-1].strip()[-_MAX_REASON_LENGTH:] if words else f"exit status {done.returncode}"
            raise DataError(
                f"{self._full_name()} is not prepared in {data_dir}, and downloading it failed ({reason}): prepare it "
                f"where there is a network, with `tfds build {self._full_name()} --file_format=array_record`, copy its "
                f"folder to {data_dir / self.name}, or say where it lies (`data_dir`)",
                details=done.stderr,
            )

    def _data_dir(self) -> Path:
        return Path(self.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()

    def _full_name(self) -> str:
        return f"{self.name}:{self.version}" if self.version else self.name


def _versions(directory: Path) -> list[Path]:
    """The prepared versions in a directory, the newest last."""
    if not directory.is_dir():
        return []
    found = [
        path for path in directory.iterdir() if _VERSION.match(path.name) and (path / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _require_library() -> None:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise DataError(
            "data.source is tfds, but tensorflow_datasets is not installed: install the extra, "
            "`pip install 'edgeship[tfds]'`"
        )


def _features(directory: Path, info: Any) -> tuple[Layout, Sequence[str]]:
    """What the features of the records are called, and the classes."""
    from tensorflow_datasets.core import features

    known = dict(info.features.items()) if isinstance(info.features, features.FeaturesDict) else {}
    images = [name for name, feature in known.items() if type(feature) is features.Image]
    labels = [name for name, feature in known.items() if type(feature) is features.ClassLabel]
    supervised = [name for name in info.supervised_keys or () if isinstance(name, str)]
    image = next((name for name in supervised if name in images), images[0] if len(images) == 1 else None)
    label = next((name for name in supervised if name in labels), labels[0] if len(labels) == 1 else None)
    if image is None or label is None:
        raise DataError(
            f"{directory} has the features {', '.join(known) or '(none)'}: expected one image and one class label; "
            "choose a data set for classification"
        )
    filename = next((name for name in _FILENAMES if type(known.get(name)) is features.Text), "")
    return Layout(image, label, 0, "", filename), [str(name) for name in known[label].names]


def _shards(directory: Path, info: Any) -> tuple[list[Shard], tuple[Problem, ...]]:
    """The shards of the splits for training and tests, and the splits that are left out."""
    shards: list[Shard] = []
    ignored: list[Problem] = []
    for name, split in sorted(info.splits.items()):
        paths = [directory / Path(path).name for path in split.filepaths]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None:
            raise DataError(f"{missing} is missing: copy it too, or remove {directory} and run again")
        if name in SPLIT_NAMES:
            shards += [Shard(path.name, path, SPLIT_NAMES[name]) for path in paths]
        else:
            ignored.append(Problem(name, "a split that is neither train, validation nor test"))
    if not shards:
        raise DataError(f"{directory} has the splits {', '.join(info.splits) or '(none)'}: expected train")
    return shards, tuple(ignored)

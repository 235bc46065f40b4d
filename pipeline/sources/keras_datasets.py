"""Data sets of `keras.datasets`: fetched where the machine can, read from a local file where it can't."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import DataError
from pipeline.sources.arrays import array_samples
from pipeline.sources.base import Reading, SourceConfig
from pipeline.sources.cifar import CIFAR10, CIFAR100, CifarFormat, read_cifar
from pipeline.sources.idx import IDX_FILES, read_idx_batches

DatasetName = Literal["cifar10", "cifar100", "fashion_mnist"]


@dataclass(frozen=True, slots=True)
class _Published:
    """What a data set is published as.

    Args:
        algorithm: Of the digests.
        digests: By the name of each file.
        cached: What Keras calls the file, or the folder of the files, below `datasets`; older names behind newer ones.
        form: Of a CIFAR archive; None for IDX files.
        classes: The names, where the files have none.
    """

    algorithm: str
    digests: Mapping[str, str]
    cached: Sequence[str]
    form: CifarFormat | None = None
    classes: tuple[str, ...] = ()


_PUBLISHED: dict[DatasetName, _Published] = {
    "cifar10": _Published(
        algorithm="sha256",
        digests={"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        cached=("cifar-10-batches-py-target_archive", "cifar-10-batches-py.tar.gz", "cifar-10-python.tar.gz"),
        form=CIFAR10,
    ),
    "cifar100": _Published(
        algorithm="sha256",
        digests={"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
        cached=("cifar-100-python-target_archive", "cifar-100-python.tar.gz"),
        form=CIFAR100,
    ),
    "fashion_mnist": _Published(
        algorithm="md5",  # its authors publish no other
        digests={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        cached=("fashion-mnist",),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}


class KerasDatasetsConfig(SourceConfig):
    """CIFAR-10, CIFAR-100 (with its 100 fine labels) or Fashion-MNIST, with their own training and test splits.

    Without `path`, the files are looked for where Keras keeps them (`~/.keras/datasets`, or `datasets` in `KERAS_HOME`)
    and fetched by Keras where they are not there.

    Attributes:
        name: Which.
        path: The archive `cifar-10-python.tar.gz` or `cifar-100-python.tar.gz`; of Fashion-MNIST the folder with its
            four `.gz` files.
    """

    source: Literal["keras_datasets"]
    name: DatasetName
    path: Annotated[str, Field(min_length=1)] | None = None

    def fingerprint(self) -> str:
        """The digests of the files; of files that are still to be fetched, the published ones."""
        published = _PUBLISHED[self.name]
        files = self._files()
        if files is None:
            return _joined(published.algorithm, published.digests.values())
        return _joined(published.algorithm, [_digest(file, published.algorithm) for file in files])

    def read(self) -> Reading:
        """Starts a pass over all samples."""
        files = self._files()
        if files is None:
            files = self._fetch()
        published = _PUBLISHED[self.name]
        if published.form is not None:
            classes, batches = read_cifar(files[0], published.form)
        else:
            classes = published.classes
            batches = read_idx_batches(files[0].parent, len(classes))
        names = dict(enumerate(classes))
        items = (sample for batch in batches for sample in array_samples(batch, names))
        return Reading(classes, sum(len(batch.labels) for batch in batches), items)

    def _files(self) -> list[Path] | None:
        """The files that are there; None where they are still to be fetched.

        Raises:
            DataError: They are not where `path` says.
        """
        published = _PUBLISHED[self.name]
        if self.path is not None:
            path = Path(self.path).expanduser()
            found = _complete(path, published)
            if found is None:
                expected = "a folder with" if published.form is None else "the archive"
                raise DataError(
                    f"{path} is not {self.name}: expected {expected} {', '.join(published.digests)}; correct `path` "
                    "in the data section"
                )
            return found
        known = (_complete(_keras_home() / "datasets" / name, published) for name in published.cached)
        return next((found for found in known if found is not None), None)

    def _fetch(self) -> list[Path]:
        import keras

        try:
            getattr(keras.datasets, self.name).load_data()
        except Exception as error:  # Keras raises a plain Exception where there is no network
            names = ", ".join(_PUBLISHED[self.name].digests)
            raise DataError(
                f"{self.name} is not in {_keras_home() / 'datasets'}, and fetching it failed ({error}): copy {names} "
                "to this machine and say where (`path` in the data section), or run once where there is a network"
            ) from error
        files = self._files()
        if files is None:
            raise DataError(
                f"Keras fetched {self.name}, but not to {_keras_home() / 'datasets'}: make that folder writable, or "
                "name another one in KERAS_HOME"
            )
        return files


def _keras_home() -> Path:
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()


def _complete(path: Path, published: _Published) -> list[Path] | None:
    """The files of a data set at a place, None if they are not all there."""
    files = [path] if published.form is not None else [path / name for pair in IDX_FILES.values() for name in pair]
    return files if all(file.is_file() for file in files) else None


def _digest(path: Path, algorithm: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): check its permissions") from error


def _joined(algorithm: str, digests: Iterable[str]) -> str:
    return " ".join(f"{algorithm}:{digest}" for digest in digests)

"""Which files of a directory, or of a pattern, are the shards of which split.

train-00000-of-01024                       the ImageNet scripts of TensorFlow, in one folder or one a split
validation-00000-of-00128.tfrecord         the same with a suffix, also `.gz`
flowers-train.array_record-00000-of-00004  TensorFlow Datasets
test.tfrecord                              a split in one file
"""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.sources.base import Problem, Split
from pipeline.sources.layout import SPLIT_NAMES, is_hidden

_SUFFIX = r"\.(?:tfrecords?|array_?record)"
_NAME = re.compile(
    rf"(?P<stem>.*?)(?P<before>{_SUFFIX})?(?:-(?P<index>\d{{5,}})-of-(?P<count>\d{{5,}}))?(?P<after>{_SUFFIX})?(?:\.gz)?",
    re.IGNORECASE,
)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of records.

    Args:
        name: Its path relative to the source's.
        path: Where it lies.
        split: None in a source without splits.
    """

    name: str
    path: Path
    split: Split | None


def find_shards(path_text: str) -> tuple[list[Shard], list[Problem]]:
    """The shards that a directory holds or a pattern matches, in the order of their names, and other files.

    Args:
        path_text: A directory, whose folders are looked through one level deep, a file, or a pattern with `*`.

    Raises:
        DataError: There are none, one is missing, or some have a split and some have none.
    """
    root, files = _listed(path_text)
    shards: list[Shard] = []
    ignored: list[Problem] = []
    sets: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for file in files:
        name = file.relative_to(root).as_posix()
        match = _NAME.fullmatch(file.name)
        if match is None or not (match["index"] or match["before"] or match["after"]):
            ignored.append(Problem(name, "no shard: expected a name such as train-00000-of-00010.tfrecord"))
            continue
        shards.append(Shard(name, file, _split(match["stem"])))
        if match["index"]:
            family = f"{file.parent.relative_to(root).as_posix()}/{match['stem']}".removeprefix("./")
            sets[family, match["before"] or match["after"] or ""].append((int(match["index"]), int(match["count"])))
    if not shards:
        found = f"{len(files)} files, none of them a shard" if files else "no file"
        raise DataError(
            f"{found} at {path_text}: expected shards such as train-00000-of-00010.tfrecord; correct `path` in the "
            "data section"
        )
    for (family, _), numbers in sets.items():
        _check_set(family, numbers, path_text)
    with_split = [shard for shard in shards if shard.split is not None]
    if with_split and len(with_split) < len(shards):
        other = next(shard.name for shard in shards if shard.split is None)
        raise DataError(
            f"{path_text} has shards with a split ({with_split[0].name}) and without one ({other}): expected "
            "names with train, validation or test throughout, or nowhere"
        )
    return shards, ignored


def _listed(path_text: str) -> tuple[Path, list[Path]]:
    """What the names of the files are relative to, and the files, sorted."""
    path = Path(path_text).expanduser()
    try:
        if path.is_dir():
            found = [entry for entry in path.iterdir() if not is_hidden(entry.name)]
            inner = [entry for folder in found if folder.is_dir() for entry in folder.iterdir()]
            files = [entry for entry in (*found, *inner) if entry.is_file() and not is_hidden(entry.name)]
            return path, sorted(files)
    except OSError as error:
        raise DataError(f"{path} can't be listed ({error.strerror}): check its permissions") from error
    if path.is_file():
        return path.parent, [path]
    wildcards = next((place for place, part in enumerate(path.parts) if glob.has_magic(part)), None)
    if wildcards is None:
        raise DataError(
            f"nothing at {path}: expected a directory with shards, or a pattern such as data/train-*; correct "
            "`path` in the data section"
        )
    root = Path(*path.parts[:wildcards])
    return root, sorted(file for name in glob.glob(str(path)) if (file := Path(name)).is_file())  # noqa: PTH207


def _split(stem: str) -> Split | None:
    word = re.split(r"[-_.]", stem)[-1].lower()
    return SPLIT_NAMES.get(word)


def _check_set(family: str, numbers: Sequence[tuple[int, int]], path_text: str) -> None:
    counts = sorted({count for _, count in numbers})
    if len(counts) > 1:
        raise DataError(
            f"{path_text} has shards of {family} of {counts[0]} and of {counts[1]}: expected those of one writing; "
            "remove the others"
        )
    if len(set(numbers)) < len(numbers):
        raise DataError(f"{path_text} has a shard of {family} twice: remove one of the copies")
    missing = sorted(set(range(counts[0])) - {index for index, _ in numbers})
    if missing:
        shown = ", ".join(f"{index:05d}" for index in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{path_text} has {len(numbers)} of the {counts[0]} shards of {family}: {shown}{more} of "
            f"{counts[0]:05d} missing; copy the missing ones too"
        )

"""The data stage: labelled images in, three arrays of preprocessed images and a summary out."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.encoded_images import shard_lengths, write_encoded_images
from pipeline.errors import DataError
from pipeline.image_spool import DecodedSpool, EncodedSpool, Spool, write_images
from pipeline.sources import SPLITS, DataConfig, Problem, Sample, Split
from pipeline.sources.base import Reading, SourceConfig
from pipeline.sources.splitting import Entry, Plan, plan_splits
from pipeline.stages.base import Stage, Tell

_SHOWN = 5
_MAX_IGNORED_LISTED = 100
_NUM_COMMON_SIZES = 10
_SECONDS_BETWEEN_EVENTS = 0.5
_MAX_DECODED_SIZE_BYTES = 4 * 2**30
"""Of a training split that `cache: auto` keeps decoded."""


class DataStage(Stage):
    """Reads a source, decides the splits and writes images that are ready for the network.

    Files:

    - `train_images.npy`, `validation_images.npy`, `test_images.npy`: uint8 `(count, height, width, 3)`, RGB,
      preprocessed, sorted by name. Open them with `mmap_mode="r"`, those of the training split with
      `pipeline.training.images`: where it is cached encoded, `train_images-00000-of-00012.array_record` and so on
      hold its files as they are in place of the array.
    - `train_labels.npy`, ...: int64 `(count,)`, indices into `classes`.
    - `dataset.json`: classes, the preprocessing record, counts, sizes, modes, duplicates, what was left out
      and what was decided.
    - `index.jsonl`: `split`, `row`, `name`, `label` and `digest` of every image in the arrays.

    Images wait in a file until all are known and the splits can be decided, so that memory stays small and the disk
    holds them twice for a while. Each is decoded once; where the training split is cached encoded, those of the other
    splits twice.
    """

    stage: ClassVar[str] = "data"
    tools: ClassVar[tuple[str, ...]] = ("numpy", "pillow")

    source: DataConfig

    def tool_names(self) -> tuple[str, ...]:
        """Returns the distributions whose versions shape the output.

        ArrayRecord's is none of them: it shapes the container, and every version reads what others wrote.
        """
        return (*self.tools, *self.source.tools)

    def key_config(self) -> dict[str, Any]:
        """Leaves out where the source lies: the fingerprint says what is there, wherever it is."""
        config = super().key_config()
        for name in self.source.place_fields:
            config["source"].pop(name, None)
        return config

    def fingerprint(self) -> str:
        """Stands for the content of the source in the artifact's key.

        Raises:
            DataError: If there is nothing at the source's path.
        """
        return self.source.fingerprint()

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Prepares the data set; see `Stage.run`.

        Raises:
            DataError: If the source, its labels or its splits can't be used.
        """
        del inputs
        fingerprint = self.fingerprint()
        tell({"message": "listing the images"})
        reading = self.source.read()
        with self._spool(reading, out_dir) as spool:
            survey = self._survey(reading, spool, tell)
            self._check_unreadable(survey.unreadable)
            plan = plan_splits(
                survey.entries,
                classes=reading.classes,
                fractions={
                    "validation": self.source.validation_fraction,
                    "test": self.source.test_fraction,
                },
                seed=self.source.seed,
                min_images_per_class=self.source.min_images_per_class,
            )
            cache = self._write_splits(plan, spool, out_dir, tell)
        _write_labels(plan, reading.classes, out_dir)
        _write_index(plan, out_dir / "index.jsonl")
        if self.fingerprint() != fingerprint:
            raise DataError("the source changed while it was read: run again when nothing writes to it")
        dataset = self._describe(plan, reading, survey) | {"cache": cache, "fingerprint": fingerprint}
        (out_dir / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n", encoding="utf-8")
        return _metrics(dataset)

    def _spool(self, reading: Reading, out_dir: Path) -> DecodedSpool | EncodedSpool:
        """Where the images wait: encoded where the training split may have to be cached so."""
        path, record = out_dir / "spool.tmp", self.source.preprocess()
        size_bytes = reading.num_images * _image_size_bytes(self.source)
        if self.source.cache == "encoded" or (self._may_encode() and size_bytes > _MAX_DECODED_SIZE_BYTES):
            return EncodedSpool(path, record)
        self._check_disk(2 * size_bytes, f"{reading.num_images} images, twice while they are prepared", out_dir)
        return DecodedSpool(path, record)

    def _may_encode(self) -> bool:
        return self.source.has_files and self.source.cache != "decoded"

    def _check_disk(self, size_bytes: int, what: str, out_dir: Path) -> None:
        """Refuses what does not fit on the disk, before it is written."""
        free_bytes = shutil.disk_usage(out_dir).free
        if size_bytes <= free_bytes:
            return
        from rich.filesize import decimal

        height, width = self.source.size
        encoded = "`cache: encoded`, " if self.source.has_files and self.source.cache != "encoded" else ""
        raise DataError(
            f"the decoded images take {decimal(size_bytes)} ({what}, of {height}x{width} pixels), but "
            f"{out_dir} has {decimal(free_bytes)} free: set {encoded}a smaller `size` in the data section, free some "
            f"with edgeship store gc, or take a store on a larger disk (--store)"
        )

    def _write_splits(
        self, plan: Plan, spool: DecodedSpool | EncodedSpool, out_dir: Path, tell: Tell
    ) -> dict[str, Any]:
        """Writes the images of every split and returns how those of the training split are kept."""
        rows = {split: np.array([entry.row for entry in plan.splits[split]], dtype=np.int64) for split in SPLITS}
        image_bytes = _image_size_bytes(self.source)
        encoded = isinstance(spool, EncodedSpool) and (
            self.source.cache == "encoded" or len(rows["train"]) * image_bytes > _MAX_DECODED_SIZE_BYTES
        )
        if isinstance(spool, EncodedSpool):
            decoded = [split for split in SPLITS if split != "train" or not encoded]
            count = sum(len(rows[split]) for split in decoded)
            self._check_disk(count * image_bytes, f"{count} images of {', '.join(decoded)}", out_dir)
        cache: dict[str, Any] = {"kind": "decoded"}
        for split in SPLITS:
            tell({"message": f"writing {split}", "done": 0, "total": len(rows[split])})
            if split == "train" and encoded and isinstance(spool, EncodedSpool):
                lengths = shard_lengths(spool.sizes(rows[split]))
                write_encoded_images(out_dir, "train_images", spool.files(rows[split]), lengths)
                cache = {"kind": "encoded", "shard_lengths": lengths}
            else:
                write_images(out_dir / f"{split}_images.npy", spool, rows[split], self.source.size)
        return cache

    def _survey(self, reading: Reading, spool: Spool, tell: Tell) -> _Survey:
        """Decodes all images into the spool, in the order of the source."""
        survey = _Survey()
        for item in _with_progress(reading.items, reading.num_images, "reading images", tell):
            if isinstance(item, Problem):
                survey.unreadable.append(item)
                continue
            try:
                image = item.decode()
            except DataError as error:
                survey.unreadable.append(Problem(item.name, error.message))
                continue
            spool.add(item, image)
            survey.add(item, image.pixels.shape[0], image.pixels.shape[1], image.mode)
        survey.unreadable.sort(key=lambda problem: problem.name)
        return survey

    def _check_unreadable(self, unreadable: Sequence[Problem]) -> None:
        if unreadable and self.source.on_unreadable == "error":
            shown = "; ".join(f"{problem.name}: {problem.reason}" for problem in unreadable[:_SHOWN])
            more = f"; and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
            raise DataError(
                f"{len(unreadable)} images can't be read ({shown}{more}): repair or remove them, or set "
                "`on_unreadable: skip` in the data section to go on without them"
            )

    def _describe(self, plan: Plan, reading: Reading, survey: _Survey) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "source": self.source.source,
            "classes": list(reading.classes),
            "preprocess": self.source.preprocess().to_dict(),
            "splits": {split: _describe_split(plan.splits[split], reading.classes) for split in SPLITS},
            "original_sizes": _describe_sizes(survey.sizes),
            "modes": dict(sorted(survey.modes.items())),
            "removed_duplicates": [
                {
                    "name": item.entry.name,
                    "split": item.entry.split,
                    "digest": item.entry.digest,
                    "kept_name": item.kept.name,
                    "kept_split": item.kept.split,
                }
                for item in plan.removed
            ],
            "label_conflicts": [
                {
                    "digest": group[0].digest,
                    "images": [{"name": entry.name, "label": entry.label} for entry in group],
                }
                for group in plan.conflicts
            ],
            "unreadable": [asdict(problem) for problem in survey.unreadable],
            "ignored": {
                "num_files": len(reading.ignored),
                "first_files": [asdict(problem) for problem in reading.ignored[:_MAX_IGNORED_LISTED]],
            },
            "notes": list(plan.notes),
        }


@dataclass(slots=True)
class _Survey:
    """What one pass over the source found."""

    entries: list[Entry] = field(default_factory=list)
    unreadable: list[Problem] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Sample, height: int, width: int, mode: str) -> None:
        self.entries.append(Entry(sample.name, sample.split, sample.label, sample.digest, len(self.entries)))
        self.sizes[height, width] += 1
        self.modes[mode] += 1


def _with_progress(
    items: Iterable[Sample | Problem], total: int, message: str, tell: Tell
) -> Iterator[Sample | Problem]:
    last = 0.0
    for done, item in enumerate(items):
        if time.monotonic() - last >= _SECONDS_BETWEEN_EVENTS:
            last = time.monotonic()
            tell({"message": message, "done": done, "total": total})
        yield item
    tell({"message": message, "done": total, "total": total})


def _image_size_bytes(source: SourceConfig) -> int:
    return source.size[0] * source.size[1] * 3


def _write_labels(plan: Plan, classes: Sequence[str], out_dir: Path) -> None:
    class_indices = {name: index for index, name in enumerate(classes)}
    for split in SPLITS:
        labels = [class_indices[entry.label] for entry in plan.splits[split]]
        np.save(out_dir / f"{split}_labels.npy", np.array(labels, dtype=np.int64))


def _write_index(plan: Plan, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for split in SPLITS:
            for row, entry in enumerate(plan.splits[split]):
                line = {
                    "split": split,
                    "row": row,
                    "name": entry.name,
                    "label": entry.label,
                    "digest": entry.digest,
                }
                file.write(json.dumps(line) + "\n")


def _describe_split(entries: Sequence[Entry], classes: Sequence[str]) -> dict[str, Any]:
    counts = Counter(entry.label for entry in entries)
    return {
        "num_images": len(entries),
        "num_images_per_class": {name: counts[name] for name in classes},
        "num_duplicates_inside": len(entries) - len({entry.digest for entry in entries}),
    }


def _describe_sizes(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    """Heights, widths and the most common pairs of them, before preprocessing, after orientation."""
    pairs = np.array(list(sizes), dtype=np.int64)
    lengths = np.repeat(pairs, list(sizes.values()), axis=0)
    common = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_NUM_COMMON_SIZES]
    return {
        axis: {
            "min": int(column.min()),
            "median": float(np.median(column)),
            "max": int(column.max()),
        }
        for axis, column in (("height", lengths[:, 0]), ("width", lengths[:, 1]))
    } | {"most_common": [{"height": height, "width": width, "num_images": count} for (height, width), count in common]}


def _metrics(dataset: Mapping[str, Any]) -> dict[str, Any]:
    splits: Mapping[Split, Mapping[str, Any]] = dataset["splits"]
    return {
        "num_classes": len(dataset["classes"]),
        **{f"num_{split}_images": splits[split]["num_images"] for split in SPLITS},
        "num_removed_duplicates": len(dataset["removed_duplicates"]),
        "num_label_conflicts": len(dataset["label_conflicts"]),
        "num_unreadable": len(dataset["unreadable"]),
        "num_ignored": dataset["ignored"]["num_files"],
    }

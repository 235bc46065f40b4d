"""The training split as the loader reads it: any image by its row, from any process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from devices.board.preprocess import Preprocess, preprocess
from pipeline.encoded_images import EncodedImages
from pipeline.sources.decode import decode_image

Image = npt.NDArray[np.uint8]

_ARRAY = "train_images.npy"
"""Preprocessed images; an artifact whose training split is cached encoded has none."""


class TrainingImages:
    """Random access to the training split of a `data` artifact.

    It is sent to worker processes, so it holds paths and opens files in the process that reads.

    Args:
        data: Directory of the artifact.

    Attributes:
        classes: The names of the classes.
        labels: (images,), indices into `classes`.
        preprocess: How an image becomes one of the network's size.
        size: Height and width of the network's input.
        encoded: Whether images come in their original size, and not preprocessed.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        dataset = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        self.classes: tuple[str, ...] = tuple(dataset["classes"])
        self.labels: npt.NDArray[np.int64] = np.load(data / "train_labels.npy")
        self.preprocess: Preprocess = Preprocess.from_dict(dataset["preprocess"])
        self.size: tuple[int, int] = self.preprocess.size
        self.encoded: bool = not (data / _ARRAY).is_file()
        self._images: Image | None = None
        self._files = None
        if self.encoded:
            self._files = EncodedImages(data, "train_images", dataset["cache"]["shard_lengths"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Image:
        """Returns an image (height, width, 3) uint8, RGB; not preprocessed where the artifact holds encoded ones.

        Raises:
            IndexError: There is no such row.
            CorruptArtifactError: The file that holds it is damaged.
        """
        if self._files is not None:
            return decode_image(self._files[row]).pixels
        if self._images is None:
            self._images = np.load(self._data / _ARRAY, mmap_mode="r")
        return np.asarray(self._images[row])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_images": None}

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Returns what the source calls the images of these rows."""
        asked = [int(row) for row in np.asarray(rows)]
        wanted, found = set(asked), dict[int, str]()
        with (self._data / "index.jsonl").open(encoding="utf-8") as stream:
            for line in stream:
                record = json.loads(line)
                if record["split"] == "train" and record["row"] in wanted:
                    found[record["row"]] = record["name"]
        return [found[row] for row in asked]


def preprocessed_training_images(data: Path, rows: npt.ArrayLike | None = None) -> Image:
    """Returns training images as the network sees them, without augmentation.

    Args:
        data: Directory of a `data` artifact.
        rows: (images,), which; None takes all of them.

    Returns:
        (images, height, width, 3) uint8, RGB.
    """
    if (data / _ARRAY).is_file():
        array: Image = np.load(data / _ARRAY, mmap_mode="r")
        return np.array(array if rows is None else array[np.asarray(rows)])
    images = TrainingImages(data)
    chosen = np.arange(len(images)) if rows is None else np.asarray(rows)
    found = np.empty((len(chosen), *images.size, 3), np.uint8)
    for place, row in enumerate(chosen.tolist()):
        found[place] = preprocess(images[row], images.preprocess)
    return found

"""The training split as the loader reads it: any image by its row, from any process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


class TrainingImages:
    """Random access to the training split of a `data` artifact.

    It is sent to worker processes, so it holds paths and opens files in the process that reads.

    Args:
        data: Directory of the artifact.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        dataset = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        self.classes: tuple[str, ...] = tuple(dataset["classes"])
        self.labels: npt.NDArray[np.int64] = np.load(data / "train_labels.npy")
        self._images: Image | None = None
        self.size: tuple[int, int] = self._opened().shape[1:3]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Image:
        """Returns an image (height, width, 3) uint8, RGB; not preprocessed where the artifact holds encoded ones."""
        return np.asarray(self._opened()[row])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_images": None}

    def _opened(self) -> Image:
        if self._images is None:
            self._images = np.load(self._data / "train_images.npy", mmap_mode="r")
        return self._images

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Returns what the source calls the images of these rows."""
        wanted = {int(row): position for position, row in enumerate(np.asarray(rows))}
        found = [""] * len(wanted)
        with (self._data / "index.jsonl").open(encoding="utf-8") as stream:
            for line in stream:
                record = json.loads(line)
                if record["split"] == "train" and record["row"] in wanted:
                    found[wanted[record["row"]]] = record["name"]
        return found

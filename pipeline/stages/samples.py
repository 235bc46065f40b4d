"""The data stage of a model that takes no labelled images: recorded arrays in, two splits of them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.samples import array_file
from pipeline.sources.samples import LABELS, TARGETS, ArraysConfig
from pipeline.stages.base import Stage, Tell


class SamplesStage(Stage):
    """Reads `.npz` arrays and writes each array once a split, and `dataset.json` with their names.

    Files: `train_inputs_0.npy`, ..., `test_inputs_0.npy`, ... in the order of `dataset.json`, `test_labels.npy` and
    `test_targets.npy` where there are any.
    """

    stage: ClassVar[str] = "data"
    runs_in_child: ClassVar[bool] = False
    tools: ClassVar[tuple[str, ...]] = ("numpy",)

    source: ArraysConfig

    def key_config(self) -> dict[str, Any]:
        """Leaves out where the file lies: the fingerprint says what is in it."""
        config = super().key_config()
        config["source"].pop("path", None)
        return config

    def fingerprint(self) -> str:
        """Stands for the file's content in the artifact's key.

        Raises:
            DataError: There is no file.
        """
        return self.source.fingerprint()

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Splits and writes the arrays.

        Raises:
            DataError: The file can't be used.
        """
        del inputs
        arrays = self.source.read()
        count = len(next(iter(arrays.values())))
        tell({"message": f"splitting {count} samples"})
        names = [name for name in arrays if name not in (LABELS, TARGETS)]
        splits = self.source.split(count)
        for split, rows in splits.items():
            for index, name in enumerate(names):
                np.save(out_dir / array_file(split, index), arrays[name][rows])
            for name in (LABELS, TARGETS):
                if name in arrays:
                    np.save(out_dir / f"{split}_{name}.npy", arrays[name][rows])
        described = {
            "schema_version": 1,
            "source": self.source.source,
            "inputs": [
                {"name": name, "dtype": arrays[name].dtype.name, "shape": list(arrays[name].shape[1:])}
                for name in names
            ],
            "classes": None,
            "preprocess": None,
        }
        (out_dir / "dataset.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        return {
            "num_inputs": len(names),
            "num_train_samples": len(splits["train"]),
            "num_test_samples": len(splits["test"]),
            "has_labels": LABELS in arrays,
            "has_targets": TARGETS in arrays,
        }

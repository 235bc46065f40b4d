"""Trains the network of a recipe on the training split and keeps the epoch that did best on validation.

This file and what it imports name no backend: Keras 3 runs on whichever `KERAS_BACKEND` says.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.errors import EdgeshipError
from pipeline.network import ModelConfig, save_network, weights_fingerprint
from pipeline.stages.base import RESUME, Stage, Tell
from pipeline.training.backends import check_backend, loads_keras, overlooked_gpu
from pipeline.training.checkpoint import CheckpointDirectory, TrainingState
from pipeline.training.config import RUNTIME_FIELDS, Backend, TrainConfig
from pipeline.training.distribution import check_same_data, cluster_error, set_up, shut_down
from pipeline.training.history import HISTORY_CSV_FILE, HISTORY_FILE, history_csv
from pipeline.training.images import TrainingImages

if TYPE_CHECKING:
    from pipeline.training.loop import Training


class TrainStage(Stage):
    """Reads `data`; writes the best weights, `network.json`, `history.json` and `history.csv`.

    Attributes:
        model: Which network.
        train: How it is trained.
        backend: On which Keras runs.
        on_gpu: Whether the backend is expected to compute on a GPU, with other arithmetic and, by `precision: auto`,
            in another precision than on a CPU (`pipeline.training.backends.expects_gpu`).
    """

    stage: ClassVar[str] = "train"
    resumable: ClassVar[bool] = True

    model: ModelConfig
    train: TrainConfig
    backend: Backend = "tensorflow"
    on_gpu: bool = False

    def tool_names(self) -> tuple[str, ...]:
        """Keras, grain and the backend."""
        return ("grain", "keras", "numpy", self.backend)

    def key_config(self) -> dict[str, Any]:
        """Leaves out where weights lie, for the fingerprint says what they are, and what only changes the speed."""
        config = super().key_config()
        config["model"]["weights"] = None
        for name in RUNTIME_FIELDS:
            del config["train"][name]
        if config["train"]["teacher"] is not None:
            del config["train"]["teacher"]["path"]
        return config

    def fingerprint(self) -> str:
        """Stands for the weights that training starts from, and for the teacher, in the artifact's key.

        Raises:
            InputError: There are none at the path.
        """
        weights = weights_fingerprint(self.model.weights) if self.model.weights is not None else ""
        if self.train.teacher is None:
            return weights
        from pipeline.training.distillation import teacher_fingerprint

        return f"{weights}+{teacher_fingerprint(self.train.teacher)}"

    def crash_error(self, end: str, last_words: str) -> EdgeshipError | None:
        """Of several processes that train together, the end of one is the end of all."""
        del end
        return cluster_error(last_words)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Trains, from the last checkpoint where an interrupted run left one.

        Raises:
            DataError: There are fewer images than one batch holds, or a label is no class.
            StageError: The loss ran away, memory is too small, the backend is not installed, the checkpoint is
                damaged, or processes that train together have other data or another network.
            StoreError: A checkpoint can't be written.
        """
        with loads_keras(self.backend):
            import keras  # noqa: F401 (is it there?)

            from pipeline.training.loop import Training
        distribution = set_up(self.train, self.backend)
        check_backend(self.backend, self.train.backend)
        warning = overlooked_gpu(self.backend)
        if warning is not None:
            tell({"warning": warning})
        data = inputs["data"]
        if distribution.process_count > 1:
            check_same_data(distribution, self._identity(data))
        images = TrainingImages(data)
        validation = (np.load(data / "validation_images.npy"), np.load(data / "validation_labels.npy"))
        checkpoints = CheckpointDirectory(out_dir / RESUME, recipe=self.key_config())
        training = Training(
            model=self.model,
            train=self.train,
            backend=self.backend,
            images=images,
            validation=validation,
            tell=tell,
            distribution=distribution,
        )
        resumed = checkpoints.state()
        try:
            state = training.run(checkpoints) if self.train.epochs else training.take_as_it_is()
        except EdgeshipError:
            raise
        except Exception as error:
            lost = cluster_error(str(error))
            if lost is not None:
                raise lost from error
            raise
        shut_down(distribution)
        without_weights = self.model.model_copy(update={"weights": None})
        save_network(training.exported, out_dir, config=without_weights, classes=images.classes)
        _replace_text(out_dir / HISTORY_FILE, json.dumps(state.history, indent=1) + "\n")
        _replace_text(out_dir / HISTORY_CSV_FILE, history_csv(state.history))
        return {
            **self._summary(training, state),
            "training_images": len(images),
            "resumed_after_epoch": resumed.epochs_done if resumed else None,
            "resumed_after_step": resumed.steps_done if resumed else None,
        }

    def _summary(self, training: Training, state: TrainingState) -> dict[str, Any]:
        """Returns the metrics of a training that has ended."""
        loaded = training.loaded
        rates = [record["images_per_second"] for record in state.history if record["images_per_second"]]
        return {
            "best_epoch": state.best_epoch,
            "validation_accuracy": state.best_accuracy,
            "validation_loss": state.best_loss,
            "parameters": int(training.exported.count_params()),
            "backend": self.backend,
            "precision": training.precision,
            "preset": self.train.preset,
            "averaged": self.train.averaging is not None,
            "learning_rate": self.train.peak_learning_rate(),
            "steps": state.history[-1]["step"] if state.history else 0,
            "stopped_early": state.stopped_early,
            "images_per_second": statistics.median(rates) if rates else None,
            "train_seconds": sum(record["seconds"] for record in state.history),
            "weights": None if loaded is None else {"source": loaded.source, "fresh_head": loaded.fresh_head},
        }

    def _identity(self, data: Path) -> str:
        """Returns what processes that train together must have in common beside the config of the training."""
        digest = hashlib.sha256(json.dumps([self.key_config()["model"], self.fingerprint()], sort_keys=True).encode())
        for name in ("dataset.json", "index.jsonl", "train_labels.npy"):
            digest.update((data / name).read_bytes())
        return digest.hexdigest()


def _replace_text(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")

"""Changes the weights of the calibrated network so that int8 hurts it less; all targets export the same result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.network import ModelConfig, load_network, save_network
from pipeline.quantization.bias_correction import correct_biases
from pipeline.quantization.config import FineTuneConfig
from pipeline.quantization.equalization import equalize, find_pairs
from pipeline.quantization.folded import fold, unfold
from pipeline.quantization.ranges import Range, estimate, observe
from pipeline.quantization.rounding import learn_rounding
from pipeline.samples import calibration_input_file
from pipeline.saved_model import write_saved_model
from pipeline.stages.base import Stage, Tell
from pipeline.training.images import TrainingImages

if TYPE_CHECKING:
    import keras

WeightRemedy = Literal["bias", "rounding", "training"]


class RemedyStage(Stage):
    """Reads `calibrate`, and for `training` also `data`; writes the network as the calibrate stage does.

    Attributes:
        remedy: What is done (`pipeline.quantization.remedies`).
        training: How the network is trained on, for `training`; None for the others.
    """

    stage: ClassVar[str] = "remedy"

    remedy: WeightRemedy
    training: FineTuneConfig | None = None
    backend: Literal["tensorflow"] = "tensorflow"

    def tool_names(self) -> tuple[str, ...]:
        """Keras, the backend, and the loader of images."""
        return ("grain", "keras", "numpy", self.backend)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Folds the batch normalizations, applies the remedy, and writes the result in the network's own layers.

        Raises:
            StageError: The training ran away.
            UnsupportedModelError: The network has a layer that can't be folded.
        """
        directory = inputs["calibrate"]
        network = load_network(directory)
        folded = fold(network)
        images = np.load(directory / calibration_input_file(0), mmap_mode="r")
        changed, metrics = self._changed(folded, images, inputs, tell)
        result = unfold(changed, network)
        description = json.loads((directory / "network.json").read_text(encoding="utf-8"))
        config = ModelConfig.model_validate(description["model"])
        save_network(result, out_dir, config=config, classes=description["classes"])
        write_saved_model(result, out_dir)
        return {"remedy": self.remedy, **metrics}

    def _changed(
        self, folded: keras.Model, images: Any, inputs: Mapping[str, Path], tell: Tell
    ) -> tuple[keras.Model, dict[str, Any]]:
        if self.remedy == "bias":
            equalized = equalize(folded, images)
            corrected = correct_biases(equalized, images, ranges_of(equalized, images), tell=tell)
            return corrected, {"equalized_pairs": len(find_pairs(folded))}
        ranges = ranges_of(folded, images)
        if self.remedy == "rounding":
            return learn_rounding(folded, images, ranges, tell=tell), {}
        from pipeline.quantization.training import fine_tune

        data = inputs["data"]
        validation = (np.load(data / "validation_images.npy"), np.load(data / "validation_labels.npy"))
        tuned = fine_tune(folded, TrainingImages(data), validation, ranges, self.training, tell=tell)
        return tuned.network, {"best_epoch": tuned.best_epoch, "history": tuned.history}


def ranges_of(folded: keras.Model, images: Any) -> dict[str, Range]:
    """Returns the ranges of a folded network's activations that leave the least squared error.

    Args:
        folded: Without batch normalizations.
        images: Calibration images (images, height, width, 3).
    """
    from pipeline.quantization.fake_quantization import activations, quantization_points

    points = quantization_points(folded)
    observations = observe(lambda: activations(folded, images, points))
    return {name: estimate(observation, "mse") for name, observation in observations.items()}

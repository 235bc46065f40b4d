"""A small student gains from a teacher: it has 100 labelled digits, the teacher learnt from all 1,169.

All labels are right. The student sees its own 100 images alone, with the teacher's answers beside their labels.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.executor import child_environment
from pipeline.sources.digits import DigitsConfig
from pipeline.stages.data import DataStage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS = 3
IMAGES_PER_CLASS = 10
"""What the student learns from."""

MARGIN = 0.03
"""Of the test accuracy, by which the mean over the seeds must be better."""

SCRIPT = """
import json, sys
from pathlib import Path
import keras
import numpy as np
import models
from pipeline.network import load_network, predict_logits
from pipeline.stages.train import TrainStage

data, out, seeds, images_per_class = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
layers = keras.layers


def small(name, *, input_shape, num_classes, **options):
    image = keras.Input(input_shape, dtype="uint8", name="image")
    x = layers.Rescaling(1 / 127.5, -1.0)(image)
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(num_classes, name="logits")(x), name="small")


models.build = small
images, labels = np.load(data / "train_images.npy"), np.load(data / "train_labels.npy")
test_images, test_labels = np.load(data / "test_images.npy"), np.load(data / "test_labels.npy")

keras.utils.set_random_seed(7)
teacher = keras.Sequential([
    keras.Input((20, 20, 3)),
    *(layer for filters in (32, 64) for layer in (
        layers.Conv2D(filters, 3, activation="relu"), layers.BatchNormalization(momentum=0.8), layers.MaxPooling2D())),
    layers.Flatten(), layers.Dropout(0.3), layers.Dense(10, activation="softmax"),
])
teacher.compile("adam", "sparse_categorical_crossentropy")


def seen(images):
    resized = keras.ops.image.resize(images.astype("float32"), (20, 20), antialias=True)
    return keras.ops.convert_to_numpy(resized) / 127.5 - 1.0


teacher.fit(seen(images), labels, batch_size=32, epochs=8, verbose=0)
found = {"teacher": float((teacher.predict(seen(test_images), verbose=0).argmax(1) == test_labels).mean())}
teacher.save(out / "teacher.keras")

kept = np.concatenate([np.flatnonzero(labels == label)[:images_per_class] for label in range(10)])
for name, values in {"images": images[kept], "labels": labels[kept]}.items():
    (data / f"train_{name}.npy").unlink()
    np.save(data / f"train_{name}.npy", values)
for name, section in {
    "alone": None,
    "taught": {
        "path": str(out / "teacher.keras"), "temperature": 4.0, "weight": 0.9, "scale": 1 / 127.5, "offset": -1.0
    },
}.items():
    found[name] = []
    for seed in range(seeds):
        folder = out / f"{name}{seed}"
        folder.mkdir()
        stage = TrainStage.model_validate({
            "model": {"name": "mobilenet_v2"},
            "train": {"epochs": 100, "batch_size": 20, "learning_rate": 0.01, "teacher": section, "seed": seed,
                      "workers": 0, "backend": "tensorflow"},
        })
        metrics = stage.run({"data": data}, folder, lambda event: None)
        logits = predict_logits(load_network(folder), test_images)
        found[name].append(float((logits.argmax(1) == test_labels).mean()))
        found[f"{name}_parameters"] = metrics["parameters"]
        found[f"{name}_size"] = (folder / "network.weights.h5").stat().st_size
(out / "found.json").write_text(json.dumps(found))
"""


def test_a_student_with_few_images_gains_from_a_teacher_that_had_more(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    DataStage(source=DigitsConfig(source="digits", size=(16, 16))).run({}, data, lambda _: None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data), str(out), str(SEEDS), str(IMAGES_PER_CLASS)],
        env=child_environment("tensorflow") | {"CUDA_VISIBLE_DEVICES": ""},
        check=False,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((out / "found.json").read_text())
    assert found["teacher"] > 0.95, found
    assert np.mean(found["taught"]) - np.mean(found["alone"]) > MARGIN, found
    assert found["taught_parameters"] == found["alone_parameters"] < 6000, "the teacher is not counted"
    assert found["taught_size"] == found["alone_size"], "the teacher is not saved"

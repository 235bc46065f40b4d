"""The distillation loss against NumPy, and which teachers are taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError, ModelFileError
from pipeline.network import ModelConfig, build_network, save_network
from pipeline.training.config import TeacherConfig
from pipeline.training.distillation import distillation_loss, load_teacher, teacher_fingerprint

CLASSES = ("a", "b", "c", "d")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_loss_is_that_of_the_paper(temperature: float) -> None:
    import keras

    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 5, (2, 7, 4))
    received = keras.ops.convert_to_numpy(distillation_loss(student, teacher, temperature))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis=-1)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
    assert received.shape == (7,)
    assert received.dtype == np.float32


def test_loss_of_extremes_is_finite_and_that_of_equals_nothing() -> None:
    import keras

    sure = np.array([[1000.0, -1000.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(distillation_loss(sure, sure, 2.0)), 0.0, atol=1e-6)
    apart = keras.ops.convert_to_numpy(distillation_loss(sure, -sure, 2.0))
    assert np.isfinite(apart).all()
    assert apart[0] > 1000
    half = keras.ops.cast(sure, "bfloat16")
    assert keras.backend.standardize_dtype(distillation_loss(half, half, 2.0).dtype) == "float32"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the train stage leaves of a network for images of 32x32."""
    folder = tmp_path_factory.mktemp("artifact")
    config = ModelConfig(name="mobilenet_v1", width=0.25, early_stride=False)
    save_network(build_network(config, (32, 32, 3), 4), folder, config=config, classes=CLASSES)
    return folder


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def outputs(model: Any, given: np.ndarray) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(model(given, training=True)))


def test_an_artifact_teaches_in_inference_mode(artifact: Path) -> None:
    from pipeline.network import load_network

    teacher = load_teacher(TeacherConfig(path=str(artifact)), classes=CLASSES, input_shape=(32, 32, 3))
    given = images(32, 32)
    expected = np.asarray(load_network(artifact)(given, training=False))
    before = [np.array(weight) for weight in teacher.get_weights()]
    np.testing.assert_allclose(outputs(teacher, given), expected, rtol=1e-5, atol=1e-6)
    assert not teacher.trainable_variables
    for weight, old in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize("shape", [(48, 40, 3), (None, None, 3)])
def test_an_artifact_gets_images_of_its_size(artifact: Path, shape: tuple[int | None, int | None, int]) -> None:
    from PIL import Image

    teacher = load_teacher(TeacherConfig(path=str(artifact)), classes=CLASSES, input_shape=shape)
    small = np.full((1, 48, 40, 3), 100, np.uint8)
    small[:, :24] = 200
    resized = np.asarray(Image.fromarray(small[0]).resize((32, 32), Image.Resampling.BILINEAR))[None]
    direct = load_teacher(TeacherConfig(path=str(artifact)), classes=CLASSES, input_shape=(32, 32, 3))
    expected = outputs(direct, resized)
    np.testing.assert_allclose(outputs(teacher, small), expected, atol=0.02 * max(np.ptp(expected), 1e-3))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", "b", "c"), "whose classes are 4"),
        (("a", "b", "d", "c"), "the same in another order"),
        (("a", "b", "c", "e"), r"does not know 1 \(e\)"),
    ],
)
def test_an_artifact_with_other_classes(artifact: Path, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_teacher(TeacherConfig(path=str(artifact)), classes=classes, input_shape=(32, 32, 3))


def saved(path: Path, *layers: Any, shape: tuple[int | None, ...] = (8, 8, 3), dtype: str = "float32") -> Any:
    import keras

    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    model.save(path)
    return model


def head(activation: str | None = None, units: int = 4) -> list[Any]:
    import keras

    return [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(units, activation=activation)]


def taught(path: Path, shape: tuple[int, ...] = (8, 8, 3), **options: Any) -> Any:
    return load_teacher(TeacherConfig(path=str(path), **options), classes=CLASSES, input_shape=shape)


def test_a_keras_file_with_logits_and_floats(tmp_path: Path) -> None:
    model = saved(tmp_path / "t.keras", *head())
    received = outputs(taught(tmp_path / "t.keras", scale=1 / 127.5, offset=-1.0), images(8, 8))
    expected = model(images(8, 8).astype(np.float32) / 127.5 - 1.0)
    np.testing.assert_allclose(received, np.asarray(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["activation", "layer", "nested", "reshaped", "said"])
def test_probabilities_become_logits(tmp_path: Path, how: str) -> None:
    import keras

    layers = {
        "activation": lambda: head("softmax"),
        "layer": lambda: [*head(), keras.layers.Softmax()],
        "nested": lambda: [keras.Sequential([keras.Input((8, 8, 3)), *head("softmax")])],
        "reshaped": lambda: [*head("softmax"), keras.layers.Reshape((4,))],
        "said": lambda: head("softmax"),
    }[how]()
    model = saved(tmp_path / "t.keras", *layers)
    options = {"outputs": "probabilities"} if how == "said" else {}
    received = outputs(taught(tmp_path / "t.keras", scale=0.01, **options), images(8, 8))
    expected = np.asarray(model(images(8, 8).astype(np.float32) * 0.01))
    np.testing.assert_allclose(softmax(received), expected, rtol=1e-4, atol=1e-6)
    assert received.min() < 0


def test_a_file_of_another_size_gets_resized_pixels(tmp_path: Path) -> None:
    import keras

    model = saved(tmp_path / "t.keras", *head(), shape=(4, 4, 3), dtype="uint8")
    flat = np.full((1, 8, 8, 3), 90, np.uint8)
    received = outputs(taught(tmp_path / "t.keras"), flat)
    np.testing.assert_allclose(received, np.asarray(model(flat[:, :4, :4])), rtol=1e-5)
    free = keras.Sequential([keras.Input((None, None, 3)), *head()])
    free.save(tmp_path / "free.keras")
    np.testing.assert_allclose(
        outputs(taught(tmp_path / "free.keras"), images(8, 8)), np.asarray(free(images(8, 8).astype("float32"))), 1e-4
    )


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    import keras

    layers = keras.layers
    saved(tmp_path / "five.keras", *head(units=5))
    with pytest.raises(InputError, match=r"gives \(None, 5\), but the data has 4 classes"):
        taught(tmp_path / "five.keras")
    saved(tmp_path / "map.keras", layers.Conv2D(4, 1))
    with pytest.raises(InputError, match="expected one output"):
        taught(tmp_path / "map.keras")
    saved(tmp_path / "gray.keras", *head(), shape=(8, 8, 1))
    with pytest.raises(InputError, match="Expected one input of RGB images"):
        taught(tmp_path / "gray.keras")
    saved(tmp_path / "nchw.keras", *head(), shape=(3, 8, 8))
    with pytest.raises(InputError, match="Expected one input of RGB images"):
        taught(tmp_path / "nchw.keras")
    saved(tmp_path / "sigmoid.keras", *head("sigmoid"))
    with pytest.raises(InputError, match=r"has the activation sigmoid.*train.teacher.outputs"):
        taught(tmp_path / "sigmoid.keras")
    taught(tmp_path / "sigmoid.keras", outputs="logits")


def test_code_in_a_file_is_refused(tmp_path: Path) -> None:
    import keras

    saved(tmp_path / "code.keras", keras.layers.Lambda(lambda x: x * 2), *head())
    with pytest.raises(ModelFileError, match=r"train.teacher.path is .* Python code in its layer"):
        taught(tmp_path / "code.keras")
    (tmp_path / "rubbish.keras").write_bytes(b"rubbish")
    with pytest.raises(ModelFileError, match=r"Expected a whole \.keras file"):
        taught(tmp_path / "rubbish.keras")


def test_nothing_there(tmp_path: Path, artifact: Path) -> None:
    for path in (tmp_path / "none.keras", tmp_path):
        with pytest.raises(InputError, match="Expected an artifact of train or calibrate"):
            taught(path)
        with pytest.raises(InputError, match="can't be read"):
            teacher_fingerprint(TeacherConfig(path=str(path)))
    half = Path(shutil.copytree(artifact, tmp_path / "half"))
    (half / "network.weights.h5").unlink()
    with pytest.raises(InputError, match=r"holds no network\.weights\.h5"):
        taught(half)


def test_the_fingerprint_is_that_of_the_files(artifact: Path, tmp_path: Path) -> None:
    first = teacher_fingerprint(TeacherConfig(path=str(artifact)))
    again = Path(shutil.copytree(artifact, tmp_path / "again"))
    assert teacher_fingerprint(TeacherConfig(path=str(again))) == first
    description = json.loads((again / "network.json").read_text())
    (again / "network.json").unlink()
    (again / "network.json").write_text(json.dumps(description))
    assert teacher_fingerprint(TeacherConfig(path=str(again))) != first

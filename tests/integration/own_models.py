"""Networks that are none of ours, with random weights that reach the outputs; run as a script by a test.

    python own_models.py DIRECTORY NAME...

writes for each a SavedModel `saved_model` with a free batch, its `signature.json`, `inputs.npz` with 32 samples for
each input, and `outputs.npz` with what Keras answers. Then it exports it by the plan of its name in `PLANS`, runs the
files through the board's runners, and writes a list of records into `results.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from devices.board.runners import RUNNERS
from pipeline.errors import StageError
from pipeline.model_source import Calibration, ModelSource
from pipeline.signature import InputTensor, OutputTensor, Signature, read_signature
from pipeline.targets import TARGETS

COUNT = 32


def application(name: str, size: int, *, num_channels: int = 3) -> Callable[[], Any]:
    """A classifier of `keras.applications`."""
    return lambda: getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, num_channels), classes=10, classifier_activation=None
    )


def convolution_1d() -> Any:
    """Over a time series: 64 steps of 6 values."""
    series = keras.Input((64, 6), name="series")
    x = keras.layers.Conv1D(16, 5, padding="same", activation="relu")(series)
    x = keras.layers.MaxPooling1D(2)(x)
    x = keras.layers.Conv1D(24, 3, dilation_rate=2, padding="causal")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU(6.0)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(series, keras.layers.Dense(5, name="scores")(x))


def gru() -> Any:
    """Over a time series of 24 steps; its state is a loop in the graph."""
    series = keras.Input((24, 6), name="series")
    x = keras.layers.GRU(16, return_sequences=True)(series)
    x = keras.layers.GRU(12)(x)
    return keras.Model(series, keras.layers.Dense(5, name="scores")(x))


def lstm() -> Any:
    """Over a time series, both ways."""
    series = keras.Input((24, 6), name="series")
    x = keras.layers.Bidirectional(keras.layers.LSTM(12))(series)
    return keras.Model(series, keras.layers.Dense(1, name="forecast")(x))


def autoencoder() -> Any:
    """A vector in, a vector out."""
    vector = keras.Input((64,), name="vector")
    x = vector
    for width in (48, 8, 48):
        x = keras.layers.Dense(width)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(vector, keras.layers.Dense(64, name="restored")(x))


def generator() -> Any:
    """An image from a latent vector."""
    latent = keras.Input((16,), name="latent")
    x = keras.layers.Dense(4 * 4 * 24)(latent)
    x = keras.layers.Reshape((4, 4, 24))(x)
    for width in (16, 12):
        x = keras.layers.Conv2DTranspose(width, 4, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.LeakyReLU(0.2)(x)
    x = keras.layers.Conv2DTranspose(3, 4, strides=2, padding="same")(x)
    return keras.Model(latent, keras.layers.Activation("tanh", name="image")(x))


def two_by_two() -> Any:
    """Two inputs and two outputs of the same shape each; to take one for the other changes every answer.

    The names are in an order that is neither that of the alphabet nor of their first use.
    """
    right = keras.Input((16, 16, 3), name="right")
    left = keras.Input((16, 16, 3), name="left")
    tower = keras.layers.Conv2D(8, 3, padding="same", activation="relu")
    to_unit = keras.layers.Rescaling(1 / 127.5, -1)
    y = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(to_unit(left))
    x = tower(to_unit(right))
    x = keras.layers.Subtract()([x, keras.layers.Conv2D(8, 1)(y)])
    summary = keras.layers.GlobalAveragePooling2D()(keras.layers.Concatenate()([x, y]))
    near = keras.layers.Dense(4, name="near")(summary)
    far = keras.layers.Dense(4, name="far", activation="sigmoid")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model([right, left], {"near": near, "far": far})


def with_operation(operation: Callable[[Any], Any]) -> Callable[[], Any]:
    """A small convolutional network with one operation that not all runtimes have."""

    def build() -> Any:
        image = keras.Input((16, 16, 3), name="image")
        x = keras.layers.Conv2D(8, 3, activation="tanh")(image)
        x = operation(x * 0.5)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(image, keras.layers.Dense(4, name="scores")(x))

    return build


MODELS: dict[str, Callable[[], Any]] = {
    "mobilenet_v3_small": application("MobileNetV3Small", 64),
    "efficientnet_b0": application("EfficientNetB0", 64),
    "nasnet_mobile": application("NASNetMobile", 64),
    "densenet121": application("DenseNet121", 64),
    "convnext_tiny": application("ConvNeXtTiny", 64),
    "convolution_1d": convolution_1d,
    "gru": gru,
    "lstm": lstm,
    "autoencoder": autoencoder,
    "generator": generator,
    "two_by_two": two_by_two,
    "erfinv": with_operation(keras.ops.erfinv),
}


def randomize(model: Any, rng: np.random.Generator) -> None:
    """Gives every weight a random value of about the size that keeps the activations' size (He et al., 2015).

    `normalize` must follow: without the statistics of a batch, gates and sums make deep networks' answers constant.
    """
    for layer in model._flatten_layers():
        for weight in layer._trainable_variables + layer._non_trainable_variables:
            if weight.name in ("gamma", "variance"):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif weight.name.endswith("kernel") and len(weight.shape) > 1:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D) or weight.name == "depthwise_kernel"
                fan_in = np.prod(weight.shape[:2] if depthwise else weight.shape[:-1])
                weight.assign(rng.normal(0, np.sqrt(2 / fan_in), weight.shape))
            elif weight.name in ("bias", "beta", "mean"):
                weight.assign(rng.normal(0, 0.1, weight.shape))


def normalize(model: Any, inputs: Any) -> None:
    """Gives batch norms the statistics of the samples, as training would."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(inputs, training=True)


def samples(shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Images in 0..255 with large and small structures, or normal values."""
    if len(shape) == 3:
        coarse = rng.uniform(0, 255, (COUNT, 4, 4, shape[2])).repeat(shape[0] // 4, 1).repeat(shape[1] // 4, 2)
        return np.clip(coarse + rng.normal(0, 30, (COUNT, *shape)), 0, 255).astype(np.float32)
    return rng.normal(0, 1, (COUNT, *shape)).astype(np.float32)


def write(name: str, directory: Path) -> None:
    """Writes one of `MODELS`."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    rng = np.random.default_rng(0)
    randomize(model, rng)
    inputs = {tensor.name: samples(tensor.shape[1:], rng) for tensor in model.inputs}
    fed = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    normalize(model, fed)
    model.export(str(directory / "saved_model"), verbose=False)
    answers = model(fed, training=False)
    answers = answers if isinstance(answers, dict) else {"output_0": answers}
    answers = {key: keras.ops.convert_to_numpy(rows) for key, rows in answers.items()}
    Signature(
        source="saved_model",
        model="saved_model",
        inputs=tuple(
            InputTensor(name=key, dtype="float32", shape=(1, *rows.shape[1:])) for key, rows in inputs.items()
        ),
        outputs=tuple(
            OutputTensor(name=key, dtype="float32", shape=(1, *rows.shape[1:])) for key, rows in answers.items()
        ),
    ).write(directory)
    np.savez(directory / "inputs.npz", **inputs)
    np.savez(directory / "outputs.npz", **answers)


RUNTIMES = ("litert", "onnxruntime", "openvino")
FLOATS = tuple(("saved_model", target, "float32") for target in RUNTIMES)
INTEGERS = tuple(("saved_model", target, "int8") for target in RUNTIMES)
FROM_FILES = (
    ("onnx", "onnxruntime", "float32"),
    ("onnx", "onnxruntime", "int8"),
    ("onnx", "openvino", "float32"),
    ("tflite", "litert", "float32"),
    ("tflite", "litert", "float16"),
    ("tflite", "litert", "int8"),
    ("tflite", "onnxruntime", "float32"),
    ("tflite", "openvino", "float32"),
    ("openvino", "openvino", "float32"),
    ("openvino", "openvino", "int8"),
)
BIG_FROM_FILES = (("onnx", "onnxruntime", "int8"), ("openvino", "openvino", "int8"))
AGAIN = tuple((f"again {source}", target, precision) for source, target, precision in (*FLOATS, *INTEGERS))

PLANS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "mobilenet_v3_small": (*FLOATS, ("saved_model", "litert", "int8"), *BIG_FROM_FILES),
    "efficientnet_b0": (*FLOATS, *BIG_FROM_FILES),
    "nasnet_mobile": FLOATS,
    "densenet121": FLOATS,
    "convnext_tiny": FLOATS,
    "convolution_1d": (*FLOATS, *INTEGERS, *FROM_FILES),
    "gru": (*FLOATS, *INTEGERS, ("onnx", "openvino", "float32"), ("tflite", "openvino", "float32")),
    "lstm": (*FLOATS, ("onnx", "openvino", "float32")),
    "autoencoder": (*FLOATS, *INTEGERS, *FROM_FILES),
    "generator": (*FLOATS, *INTEGERS, *FROM_FILES),
    "two_by_two": (*FLOATS, *INTEGERS, *FROM_FILES, *AGAIN),
    "erfinv": FLOATS,
}
"""For each: source format, target, precision. Files are the float32 exports; `again` exports a second time."""


def export(plan: tuple[str, str, str], directory: Path) -> dict[str, Any]:
    """Exports by one line of a plan and compares the answers with Keras's."""
    source_format, target, precision = plan
    signature = read_signature(directory)
    source = directory
    if source_format in ("onnx", "tflite", "openvino"):
        made_by = {"onnx": "onnxruntime", "tflite": "litert", "openvino": "openvino"}[source_format]
        source = directory / "exports" / "saved_model" / made_by / "float32"
        name = f"model{TARGETS[made_by].suffix}"
        signature = signature.model_copy(update={"source": source_format, "model": name})
    folder = directory / "exports" / source_format / target / precision
    folder.mkdir(parents=True)
    with np.load(directory / "inputs.npz") as archive:
        inputs = dict(archive)
    with np.load(directory / "outputs.npz") as archive:
        expected = dict(archive)
    record: dict[str, Any] = {"source": source_format, "target": target, "precision": precision}
    try:
        path = TARGETS[target].export(ModelSource(source, signature), precision, Calibration(signature, inputs), folder)
    except StageError as error:
        return {**record, "error": error.message}
    runner = RUNNERS[target]()
    runner.load(str(path), num_threads=1)
    described = runner.describe()
    answers: dict[str, list[Any]] = {tensor["name"]: [] for tensor in described["outputs"]}
    for row in range(8):
        fed = [np.ascontiguousarray(inputs[tensor["name"]][row : row + 1]) for tensor in described["inputs"]]
        for tensor, answer in zip(described["outputs"], runner.infer(fed), strict=True):
            answers[tensor["name"]].append(np.array(answer))
    differences = {name: np.concatenate(rows) - expected[name][:8] for name, rows in answers.items()}
    return {
        **record,
        "graph": TARGETS[target].inspect(path).to_dict(),
        "worst": max(float(np.abs(rows).max() / np.ptp(expected[name])) for name, rows in differences.items()),
        "noise": max(float(np.sqrt((rows**2).mean()) / np.ptp(expected[name])) for name, rows in differences.items()),
        "files": sorted(file.name for file in folder.iterdir()),
    }


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        place = Path(sys.argv[1]) / chosen
        place.mkdir(parents=True)
        write(chosen, place)
        (place / "results.json").write_text(json.dumps([export(line, place) for line in PLANS[chosen]]))

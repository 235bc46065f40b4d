"""Networks that are none of ours, with random weights that reach the outputs; run as a script by a test.

    python own_models.py DIRECTORY NAME...

writes for each a SavedModel `saved_model`, its `signature.json`, `inputs.npz` with 32 samples for each input, and
`outputs.npz` with what Keras answers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipeline.signature import InputTensor, OutputTensor, Signature

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


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        folder = Path(sys.argv[1]) / chosen
        folder.mkdir(parents=True)
        write(chosen, folder)

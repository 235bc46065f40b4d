"""Peak activation memory of graphs counted by hand; tests/integration/test_memory_arena.py has whole networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import models
from models.memory import Precision, file_size_bytes, memory_steps, peak_activation_bytes, peak_step

IMAGE = 8 * 8 * 3
SCALED = 4 * IMAGE


def image() -> Any:
    import keras

    return keras.Input((8, 8, 3), name="image", dtype="uint8")


def rescaled(pixels: Any) -> Any:
    import keras

    return keras.layers.Rescaling(1 / 127.5, -1, dtype="float32", name="rescaling")(pixels)


def steps(inputs: Any, outputs: Any, *, precision: Precision = "float32") -> list[tuple[str, int]]:
    import keras

    rows = memory_steps(keras.Model(inputs, outputs), precision=precision)
    return [(row.layer, row.alive_bytes) for row in rows]


def test_batch_normalization_and_relu_have_no_tensor_of_their_own() -> None:
    import keras

    pixels = image()
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv")(rescaled(pixels))
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.ReLU(max_value=6.0, name="relu6")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = keras.layers.Dropout(0.1, name="dropout")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(2, name="logits")(x)

    conv = 4 * 4 * 4 * 4
    # The image belongs to the caller and stays to the end.
    assert steps(pixels, x) == [
        ("rescaling", IMAGE + SCALED),
        ("conv", IMAGE + SCALED + conv),
        ("depthwise", IMAGE + conv + conv),
        ("logits", IMAGE + conv + 2 * 4),
    ]
    # The pixels become float32, and those int8; the logits are float32 again.
    assert steps(pixels, x, precision="int8") == [
        ("rescaling", IMAGE + SCALED),
        ("rescaling", IMAGE + SCALED + IMAGE),
        ("conv", IMAGE + IMAGE + conv // 4),
        ("depthwise", IMAGE + 2 * conv // 4),
        ("logits", IMAGE + conv // 4 + 2),
        ("logits", IMAGE + 2 + 2 * 4),
    ]


def test_another_activation_reads_one_tensor_and_writes_another() -> None:
    import keras

    features = keras.Input((10,), name="features")
    x = keras.layers.Dense(6, name="dense")(features)
    x = keras.layers.Activation("swish", name="swish")(x)
    x = keras.layers.Dense(2, activation="sigmoid", name="gate")(x)

    assert steps(features, x) == [
        ("dense", 40 + 24),
        ("swish", 40 + 24 + 24),
        ("gate", 40 + 24 + 8),
        ("gate", 40 + 8 + 8),
    ]


def test_float_features_of_an_int8_file_are_quantized_first() -> None:
    import keras

    features = keras.Input((10,), name="features")
    x = keras.layers.Dense(6, name="dense")(features)

    assert steps(features, x, precision="int8") == [
        ("features", 40 + 10),
        ("dense", 40 + 10 + 6),
        ("dense", 40 + 6 + 24),
    ]


def test_a_sum_writes_over_an_operand_that_is_not_needed_again() -> None:
    import keras

    features = keras.Input((10,), name="features")
    shortcut = keras.layers.Dense(6, name="shortcut")(features)
    branch = keras.layers.Dense(6, name="branch")(shortcut)
    total = keras.layers.Add(name="add")([shortcut, branch])

    assert steps(features, total) == [
        ("shortcut", 40 + 24),
        ("branch", 40 + 24 + 24),
        ("add", 40 + 24 + 24),
    ]
    # Both operands are needed afterwards.
    both = keras.layers.Concatenate(name="both")([shortcut, branch, total])
    assert steps(features, both)[2:] == [("add", 40 + 3 * 24), ("both", 40 + 3 * 24 + 72)]


def test_an_input_is_never_overwritten() -> None:
    import keras

    left, right = keras.Input((10,), name="left"), keras.Input((10,), name="right")
    assert steps([left, right], keras.layers.Add(name="add")([left, right])) == [("add", 3 * 40)]


def test_a_product_that_broadcasts_has_a_tensor_of_its_own() -> None:
    import keras

    features = keras.Input((4, 4, 8), name="features")
    x = keras.layers.Conv2D(8, 1, name="conv")(features)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    gated = keras.layers.Multiply(name="gated")([x, gate])

    assert steps(features, gated) == [
        ("conv", 512 + 512),
        ("pool", 512 + 512 + 32),
        ("gated", 512 + 512 + 32 + 512),
    ]


def test_normalization_that_nothing_takes_in_writes_over_its_input() -> None:
    import keras

    features = keras.Input((10,), name="features")
    x = keras.layers.Dense(6, activation="relu", name="dense")(features)
    x = keras.layers.BatchNormalization(name="bn")(x)
    assert steps(features, x) == [("dense", 40 + 24), ("bn", 40 + 24)]


def test_a_tensor_that_is_read_before_and_after_its_activation_stays() -> None:
    import keras

    features = keras.Input((10,), name="features")
    dense = keras.layers.Dense(6, name="dense")(features)
    relu = keras.layers.ReLU(name="relu")(dense)
    both = keras.layers.Concatenate(name="both")([dense, relu])
    assert steps(features, both) == [("dense", 64), ("relu", 64 + 24), ("both", 64 + 24 + 48)]


def test_attention_keeps_queries_keys_and_values() -> None:
    import keras

    features = keras.Input((4, 8), name="features")
    queries, keys, values = (keras.layers.Dense(8, name=name)(features) for name in ("query", "key", "value"))
    scores = keras.layers.Dot(axes=(2, 2), name="scores")([queries, keys])
    weights = keras.layers.Softmax(name="softmax")(scores)
    mixed = keras.layers.Dot(axes=(2, 1), name="mix")([weights, values])

    tensor, product = 4 * 8 * 4, 4 * 4 * 4
    rows = dict(steps(features, mixed))
    # The values are needed last, and computed last.
    assert rows["scores"] == 3 * tensor + product
    assert rows["mix"] == 3 * tensor + product


def test_an_output_stays_to_the_end() -> None:
    import keras

    features = keras.Input((10,), name="features")
    early = keras.layers.Dense(100, name="early")(features)
    late = keras.layers.Dense(2, name="late")(keras.layers.Dense(3, name="between")(early))
    assert steps(features, [early, late])[-1] == ("late", 40 + 400 + 12 + 8)
    assert steps(features, late)[-1] == ("late", 40 + 12 + 8)


def test_the_peak_is_the_first_of_the_largest_steps() -> None:
    network = models.without_weights(lambda: models.build("mobilenet_v2"))
    peak = peak_step(network)
    # The depthwise convolution of block 1: 112x112x96 in, 56x56x96 out, beside the image.
    assert peak.layer == "block_01_depthwise"
    assert peak.alive_bytes == peak_activation_bytes(network) == 4 * (112 * 112 * 96 + 56 * 56 * 96) + 224 * 224 * 3
    assert peak_activation_bytes(network, precision="int8") == 112 * 112 * 96 + 56 * 56 * 96 + 224 * 224 * 3


@dataclass(frozen=True)
class RefusedCase:
    id: str
    build: Callable[[], Any]
    message: str
    precision: Any = "float32"


def _nested() -> Any:
    import keras

    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="inner")
    features = keras.Input((4,))
    return keras.Model(features, inner(features))


def _shared() -> Any:
    import keras

    layer = keras.layers.Dense(4, name="shared")
    features = keras.Input((4,))
    return keras.Model(features, layer(layer(features)))


def _open() -> Any:
    import keras

    pixels = keras.Input((None, None, 3), name="image")
    return keras.Model(pixels, keras.layers.Conv2D(2, 1, name="conv")(pixels))


REFUSED = [
    RefusedCase("nested", _nested, "Layer 'inner' is a Sequential, which holds operations of its own"),
    RefusedCase("shared", _shared, "a flat model that calls each layer once"),
    RefusedCase("open size", _open, r"'image' has a tensor of shape \(None, None, 3\), expected fixed sizes"),
    RefusedCase("precision", _shared, "precision is 'int4', expected one of float32, int8", precision="int4"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_refused(case: RefusedCase) -> None:
    with pytest.raises(ValueError, match=case.message):
        memory_steps(case.build(), precision=case.precision)


def test_file_size() -> None:
    import keras

    features = keras.Input((4, 4, 8), name="features")
    x = keras.layers.Conv2D(6, 3, use_bias=False, name="conv")(features)
    x = keras.layers.BatchNormalization(name="bn")(x)
    network = keras.Model(features, keras.layers.Dense(2, name="dense")(x))
    weights = 3 * 3 * 8 * 6 + 6 * 2
    assert file_size_bytes(network, precision="float32") == 4 * (weights + 6 + 2)
    assert file_size_bytes(network, precision="int8") == weights + 28 * (6 + 2)
    with pytest.raises(ValueError, match="precision is 'int4'"):
        file_size_bytes(network, precision="int4")  # type: ignore[arg-type]

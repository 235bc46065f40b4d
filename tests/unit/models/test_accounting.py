"""Counts of parameters and multiply-adds; `test_published.py` holds them against what was published."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import models
from models.accounting import BatchNormCount, MultiplyAddCount, layer_table


@dataclass(frozen=True)
class ExactCase:
    name: str
    excluded: int
    folded: int
    trainable: int
    all: int
    multiply_adds: int


EXACT = [
    ExactCase("mobilenet_v2", 3_470_760, 3_487_816, 3_504_872, 3_538_984, 300_774_272),
    ExactCase("efficientnet_lite0", 4_609_992, 4_631_000, 4_652_008, 4_694_024, 385_187_552),
]


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_exact_counts_at_224_pixels_and_1000_classes(case: ExactCase) -> None:
    network = models.build(case.name, input_shape=(224, 224, 3), num_classes=1000)
    assert models.count_parameters(network, batch_norm="excluded") == case.excluded
    assert models.count_parameters(network, batch_norm="folded") == case.folded
    assert models.count_parameters(network, batch_norm="trainable") == case.trainable
    assert models.count_parameters(network, batch_norm="all") == case.all == network.count_params()
    assert models.count_multiply_adds(network) == case.multiply_adds


def test_layer_table_of_a_hand_counted_network() -> None:
    import keras

    image = keras.Input((8, 6, 3), name="image")
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv")(image)
    x = keras.layers.BatchNormalization(name="conv_bn")(x)
    x = keras.layers.DepthwiseConv2D(5, padding="same", name="depthwise")(x)
    x = keras.layers.Conv2D(4, 1, groups=2, use_bias=False, name="grouped")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    network = keras.Model(image, keras.layers.Dense(2, name="logits")(x))

    rows = {row.name: row for row in layer_table(network)}

    assert list(rows) == ["image", "conv", "conv_bn", "depthwise", "grouped", "pool", "logits"]
    assert rows["conv"].type == "Conv2D"
    assert rows["conv"].output_shape == (4, 3, 4)
    assert (rows["conv"].parameters, rows["conv"].multiply_adds) == (3 * 3 * 3 * 4, 4 * 3 * 3 * 3 * 3 * 4)
    assert (rows["conv_bn"].parameters, rows["conv_bn"].multiply_adds) == (2 * 4, 0)
    assert (rows["depthwise"].parameters, rows["depthwise"].multiply_adds) == (25 * 4 + 4, 12 * 25 * 4)
    assert (rows["grouped"].parameters, rows["grouped"].multiply_adds) == (2 * 4, 12 * 2 * 4)
    assert (rows["pool"].parameters, rows["pool"].multiply_adds) == (0, 0)
    assert (rows["logits"].parameters, rows["logits"].multiply_adds) == (4 * 2 + 2, 4 * 2)


def test_products_of_activations_are_counted() -> None:
    import keras

    queries, keys = keras.Input((12, 4), name="queries"), keras.Input((6, 4), name="keys")
    dot = keras.layers.Dot(axes=(2, 2), name="dot")([queries, keys])
    matmul = keras.ops.matmul(dot, keys)
    einsum = keras.ops.einsum("bqc,bkc->bqk", matmul, keys)
    rows = layer_table(keras.Model([queries, keys], keras.ops.add(einsum, 1.0)))
    assert [(row.type, row.output_shape, row.multiply_adds) for row in rows[2:]] == [
        ("Dot", (12, 6), 12 * 6 * 4),
        ("Matmul", (12, 4), 12 * 6 * 4),
        ("Einsum", (12, 6), 12 * 6 * 4),
        ("Add", (12, 6), 0),
    ]


@dataclass(frozen=True)
class ConventionCase:
    batch_norm: BatchNormCount
    per_channel: int


CONVENTIONS = [
    ConventionCase("excluded", 0),
    ConventionCase("folded", 1),
    ConventionCase("trainable", 2),
    ConventionCase("all", 4),
]


@pytest.mark.parametrize("case", CONVENTIONS, ids=lambda case: case.batch_norm)
def test_frozen_batch_normalization_counts_the_same(case: ConventionCase) -> None:
    import keras

    image = keras.Input((4, 4, 3), name="image")
    network = keras.Model(image, keras.layers.BatchNormalization(name="bn")(image))
    network.trainable = False
    assert models.count_parameters(network, batch_norm=case.batch_norm) == 3 * case.per_channel


@dataclass(frozen=True)
class MultiplyAddCase:
    convention: MultiplyAddCount
    per_value: float


@pytest.mark.parametrize(
    "case",
    [
        # A 1x1 convolution, then: 2 halves for the scaling, 6 or 4 for the normalization, 1 for the sum.
        MultiplyAddCase("folded", 3),
        MultiplyAddCase("evaluated", 3 + 2),
        MultiplyAddCase("profiled", 3 + 1 + 3 + 0.5),
    ],
    ids=lambda case: case.convention,
)
def test_conventions_of_multiply_adds(case: MultiplyAddCase) -> None:
    import keras

    image = keras.Input((4, 6, 3), name="image")
    x = keras.layers.Rescaling(2.0)(image)
    x = keras.layers.Conv2D(3, 1)(x)
    x = keras.layers.BatchNormalization()(x)
    network = keras.Model(image, keras.layers.ReLU()(keras.layers.Add()([image, x])))
    assert models.count_multiply_adds(network, convention=case.convention) == 4 * 6 * 3 * case.per_value


def test_an_unknown_convention_is_refused() -> None:
    network = models.build("mobilenet_v2", input_shape=(32, 32, 3), num_classes=2, width=0.35)
    with pytest.raises(ValueError, match="'gamma', expected one of excluded, folded, trainable, all"):
        models.count_parameters(network, batch_norm="gamma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'flops', expected one of folded, evaluated, profiled"):
        models.count_multiply_adds(network, convention="flops")  # type: ignore[arg-type]


def test_a_layer_that_cannot_be_counted_is_refused() -> None:
    import keras

    image = keras.Input((8, 8, 3), name="image")
    network = keras.Model(image, keras.layers.SeparableConv2D(4, 3, name="separable")(image))
    with pytest.raises(ValueError, match="'separable' is a SeparableConv2D with weights"):
        models.count_multiply_adds(network)


def test_an_open_image_size_is_refused() -> None:
    import keras

    image = keras.Input((None, None, 3), name="image")
    network = keras.Model(image, keras.layers.Conv2D(4, 3, name="conv")(image))
    with pytest.raises(ValueError, match="build the network with a fixed image size"):
        models.count_multiply_adds(network)


def test_describe_gives_the_published_accuracy_of_exactly_that_network() -> None:
    facts = models.describe("mobilenet_v2", input_shape=(96, 96, 3), width=0.35)
    assert facts["name"] == facts["family"] == "mobilenet_v2"
    assert facts["resolution"] == [96, 96]
    assert facts["parameters"] == 1_677_128
    assert facts["parameters_folded"] == 1_670_088
    assert facts["multiply_adds"] // 10**6 == 11
    assert facts["top1"] == 45.5
    assert "mobilenet/README.md" in facts["source"]


@dataclass(frozen=True)
class UnpublishedCase:
    id: str
    input_shape: tuple[int, int, int] = (96, 96, 3)
    num_classes: int = 1000
    width: float = 0.35
    early_stride: bool | None = None


UNPUBLISHED = [
    UnpublishedCase("resolution", input_shape=(100, 100, 3)),
    UnpublishedCase("not square", input_shape=(96, 128, 3)),
    UnpublishedCase("classes", num_classes=10),
    UnpublishedCase("width", width=0.36),
    UnpublishedCase("strides", early_stride=False),
]


@pytest.mark.parametrize("case", UNPUBLISHED, ids=lambda case: case.id)
def test_describe_gives_no_accuracy_for_another_network(case: UnpublishedCase) -> None:
    facts = models.describe(
        "mobilenet_v2",
        input_shape=case.input_shape,
        num_classes=case.num_classes,
        width=case.width,
        early_stride=case.early_stride,
    )
    assert facts["top1"] is None
    assert facts["source"].startswith("not published for this")


def test_describe_takes_the_networks_own_resolution() -> None:
    facts = models.describe("efficientnet_lite0")
    assert facts["resolution"] == [224, 224]
    assert facts["top1"] == 75.1

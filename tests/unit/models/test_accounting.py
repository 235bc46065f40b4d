"""The counts equal what the authors published."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

import models
from models.accounting import BatchNormCount, layer_table
from models.efficientnet_lite import build_variant


@dataclass(frozen=True)
class PublishedRow:
    width: float
    resolution: int
    mega_multiply_adds: int
    mega_parameters: float

    @property
    def id(self) -> str:
        return f"{self.width}_{self.resolution}"


# tensorflow/models, research/slim/nets/mobilenet/README.md.
MOBILENET_V2 = [
    PublishedRow(1.4, 224, 582, 6.06),
    PublishedRow(1.3, 224, 509, 5.34),
    PublishedRow(1.0, 224, 300, 3.47),
    PublishedRow(1.0, 192, 221, 3.47),
    PublishedRow(1.0, 160, 154, 3.47),
    PublishedRow(1.0, 128, 99, 3.47),
    PublishedRow(1.0, 96, 56, 3.47),
    PublishedRow(0.75, 224, 209, 2.61),
    PublishedRow(0.75, 192, 153, 2.61),
    PublishedRow(0.75, 160, 107, 2.61),
    PublishedRow(0.75, 128, 69, 2.61),
    PublishedRow(0.75, 96, 39, 2.61),
    PublishedRow(0.5, 224, 97, 1.95),
    PublishedRow(0.5, 192, 71, 1.95),
    PublishedRow(0.5, 160, 50, 1.95),
    PublishedRow(0.5, 128, 32, 1.95),
    PublishedRow(0.5, 96, 18, 1.95),
    PublishedRow(0.35, 224, 59, 1.66),
    PublishedRow(0.35, 192, 43, 1.66),
    PublishedRow(0.35, 160, 30, 1.66),
    PublishedRow(0.35, 128, 20, 1.66),
    PublishedRow(0.35, 96, 11, 1.66),
]


@pytest.mark.parametrize("row", MOBILENET_V2, ids=lambda row: row.id)
def test_mobilenet_v2_equals_its_published_row(row: PublishedRow) -> None:
    network = models.build(
        "mobilenet_v2", input_shape=(row.resolution, row.resolution, 3), num_classes=1000, width=row.width
    )
    # The table rounds its parameters and cuts its multiply-adds (300.8 is printed as 300, 11.9 as 11): with
    # that all rows are equal, and none needs a tolerance.
    parameters = models.count_parameters(network, batch_norm="excluded")
    assert round(parameters / 1e6, 2) == row.mega_parameters
    assert models.count_multiply_adds(network) // 10**6 == row.mega_multiply_adds


def test_every_published_mobilenet_v2_is_in_the_spec() -> None:
    stated = {(result.width, result.resolution) for result in models.MODELS["mobilenet_v2"].published}
    assert stated == {(row.width, row.resolution) for row in MOBILENET_V2}


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


@dataclass(frozen=True)
class LiteRow:
    id: str
    width_coefficient: float
    depth_coefficient: float
    resolution: int
    mega_parameters: float
    mega_multiply_adds: float
    printed_to: float


# tensorflow/tpu, models/official/efficientnet/lite/README.md and efficientnet_lite_builder.py.
EFFICIENTNET_LITE = [
    LiteRow("lite0", 1.0, 1.0, 224, 4.7, 407, 0.5),
    LiteRow("lite1", 1.0, 1.1, 240, 5.4, 631, 0.5),
    LiteRow("lite2", 1.1, 1.2, 260, 6.1, 899, 0.5),
    LiteRow("lite3", 1.2, 1.4, 280, 8.2, 1440, 5),
    LiteRow("lite4", 1.4, 1.8, 300, 13.0, 2640, 5),
]


@pytest.mark.parametrize("row", EFFICIENTNET_LITE, ids=lambda row: row.id)
def test_efficientnet_lite_against_its_published_row(row: LiteRow) -> None:
    """All five variants, though only lite0 can be built by name: they hold the scaling that it can't show."""
    config = models.resolve(models.find("efficientnet_lite0"), input_shape=(row.resolution, row.resolution, 3))
    network = build_variant(
        config,
        name=row.id,
        width_coefficient=row.width_coefficient,
        depth_coefficient=row.depth_coefficient,
    )
    parameters = models.count_parameters(network, batch_norm="trainable")
    assert round(parameters / 1e6, 1) == row.mega_parameters

    # The README's multiply-adds are 3 to 6 % above what the convolutions and the classifier do (lite0: 407 M
    # against 385.2 M), and above EfficientNet-B0's own 390 M, of which lite0 is a part. It does not say what
    # it adds; in every variant it is about three operations for each normalized value, which a board does not
    # do after folding. tests/integration/test_models_reference.py holds the graph itself.
    table = layer_table(network)
    normalized = sum(math.prod(r.output_shape) for r in table if r.type == "BatchNormalization") / 1e6
    counted = sum(r.multiply_adds for r in table) / 1e6
    assert row.mega_multiply_adds - row.printed_to > counted
    assert row.mega_multiply_adds == pytest.approx(counted + 3.0 * normalized, rel=0.005)


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


def test_an_unknown_convention_is_refused() -> None:
    network = models.build("mobilenet_v2", input_shape=(32, 32, 3), num_classes=2, width=0.35)
    with pytest.raises(ValueError, match="'gamma', expected one of excluded, folded, trainable, all"):
        models.count_parameters(network, batch_norm="gamma")  # type: ignore[arg-type]


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

"""Every published number of parameters and of multiply-adds, against what our networks have.

A number is held to its last printed digit. Sources count differently, and print differently: each claim says which
of the conventions in `models.accounting` it follows, in which unit, and whether it was rounded or cut. Where two
sources disagree, `note` says which one is followed and why; what was found by arithmetic is computed here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal
from typing import Any, Literal

import pytest

import models
from models.accounting import BatchNormCount, MultiplyAddCount, layer_table
from models.skeleton import without_weights

Printed = Literal["rounded", "cut"]
MEGA, GIGA, BINARY_MEGA, BINARY_GIGA = 10**6, 10**9, 2**20, 2**30

SLIM_V1 = "tensorflow/models, research/slim/nets/mobilenet_v1.md at 02c04f4"
SLIM = "tensorflow/models, research/slim/nets/mobilenet/README.md at 0ba83cf"
TIMM = "huggingface/pytorch-image-models, results at aa4b585"
KERAS = "keras-team/keras, keras.applications 3.15, count_params"
LITE = "tensorflow/tpu, models/official/efficientnet/lite/README.md at 7dc921f"
AUTOML = "google/automl, efficientnetv2/README.md at 6a54c87"
V4_PAPER = "arXiv:2404.10518, table 6"
TINY = "mlcommons/tiny, benchmark/training at bceb91c, count_params of the Keras models"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A published number of parameters.

    Args:
        printed: As the source prints it.
        unit: What it is printed in.
        counted: What the source counts of a batch normalization: a convention, or a number for each channel.
        extra: Parameters that the source has and our network does not, see `note`.
        source: Where it was read.
        note: What else there is to know.
        how: How the source shortened it.
    """

    printed: str
    counted: BatchNormCount | Literal[3]
    source: str
    unit: int = MEGA
    extra: int = 0
    note: str = ""
    how: Printed = "rounded"

    def of(self, network: Any) -> int:
        if self.counted == 3:
            excluded = models.count_parameters(network, batch_norm="excluded")
            return excluded + 3 * (models.count_parameters(network, batch_norm="folded") - excluded) + self.extra
        return models.count_parameters(network, batch_norm=self.counted) + self.extra


@dataclass(frozen=True, kw_only=True)
class MultiplyAdds:
    """A published number of multiply-adds; fields as in `Parameters`.

    Args:
        without: Layers that the source leaves out.
        within: How far off the source may be, as a share, where no digit can be held; None: to the last digit.
    """

    printed: str
    source: str
    counted: MultiplyAddCount = "folded"
    unit: int = MEGA
    extra: int = 0
    without: tuple[str, ...] = ()
    within: float | None = None
    note: str = ""
    how: Printed = "rounded"

    def of(self, network: Any) -> int:
        left_out = sum(row.multiply_adds for row in layer_table(network) if row.name in self.without)
        return models.count_multiply_adds(network, convention=self.counted) - left_out + self.extra


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network and what was published on it.

    Args:
        network: A key of `models.MODELS`.
        claims: What was published.
        width: Width multiplier.
        resolution: Side of the image in pixels; None for the network's own.
    """

    network: str
    claims: tuple[Parameters | MultiplyAdds, ...]
    width: float = 1.0
    resolution: int | None = None

    @property
    def id(self) -> str:
        resolution = "" if self.resolution is None else f"-{self.resolution}"
        return f"{self.network}-{self.width}{resolution}"


def mobilenet_v1(width: float, resolution: int, multiply_adds: str, parameters: str) -> Row:
    claims: list[Parameters | MultiplyAdds] = [
        Parameters(
            printed=parameters,
            counted=3,
            source=SLIM_V1,
            note="Three parameters for each normalized channel make all 16 rows; the paper prints 4.2, 2.6, 1.3, 0.5.",
        )
    ]
    if (width, resolution) == (0.25, 192):
        note = "The table has 34, out of line with its other resolutions: 41 M at 224 pixels make 30 M at 192."
        claims.append(MultiplyAdds(printed="30", source="41 M * (192 / 224)^2", note=note))
    elif (width, resolution) == (0.5, 224):
        note = "149.497 M: 149 in the paper's table 6, 150 in this one."
        claims.append(MultiplyAdds(printed=multiply_adds, source=SLIM_V1, within=0.005, note=note))
    else:
        stem = ("stem_conv",) if width == 0.75 else ()
        note = "The four rows of width 0.75 leave the first convolution out: 317 M, where the paper has 325 M."
        claims.append(MultiplyAdds(printed=multiply_adds, source=SLIM_V1, without=stem, note=note if stem else ""))
    return Row(network="mobilenet_v1", width=width, resolution=resolution, claims=tuple(claims))


def mobilenet_v2(width: float, resolution: int, multiply_adds: str, parameters: str) -> Row:
    return Row(
        network="mobilenet_v2",
        width=width,
        resolution=resolution,
        claims=(
            Parameters(printed=parameters, counted="excluded", source=SLIM),
            # The table cuts: 300.8 is printed as 300, 11.9 as 11.
            MultiplyAdds(printed=multiply_adds, source=SLIM, how="cut"),
        ),
    )


def mobilenet_v3_small(width: float, parameters: str, slim_parameters: str, channels: int, multiply_adds: str) -> Row:
    """SLIM's table has 2.9 M and 2.4 M parameters for networks that all implementations, and the paper, have smaller.

    Its figures are those of a last hidden layer of 1,280 channels, as the large network has, for 1,024.
    """
    wider = 256 * (channels + 1) + 256 * 1000
    note = "The paper's 2.5 M and 2.0 M and timm are followed. SLIM's 2.9 M and 2.4 M have a layer of 1,280 for 1,024."
    return Row(
        network="mobilenet_v3_small",
        width=width,
        claims=(
            Parameters(printed=parameters, counted="trainable", source=TIMM, note=note),
            Parameters(printed=slim_parameters, counted="trainable", source=SLIM, extra=wider, how="cut", note=note),
            MultiplyAdds(
                printed=multiply_adds,
                source=SLIM if width == 0.75 else "arXiv:1905.02244, table 3",
                extra=256 * channels + 256 * 1000 if width == 0.75 else 0,
                how="rounded" if width == 0.75 else "cut",
                note="The paper's 56 M is followed; SLIM prints 66 M. 44 M at width 0.75 has the layer of 1,280 too.",
            ),
        ),
    )


def efficientnet(number: int, parameters: int, giga_multiply_adds: str) -> Row:
    return Row(
        network=f"efficientnet_b{number}",
        claims=(
            Parameters(
                printed=str(parameters),
                unit=1,
                counted="all",
                extra=7,
                source=KERAS,
                note="Keras counts the 7 numbers of its Normalization layer; ours scales by constants.",
            ),
            MultiplyAdds(
                printed=giga_multiply_adds,
                unit=GIGA,
                counted="evaluated",
                source=TIMM,
                note="timm is followed. The paper prints 4.2 G and 9.9 G for B4 and B5, less than the convolutions of "
                "the published code at the published resolutions do (4.39 G and 10.27 G), and 37 G for B7 (37.7 G).",
            ),
        ),
    )


def efficientnet_lite(number: int, parameters: str, multiply_adds: str, unit: int) -> Row:
    return Row(
        network=f"efficientnet_lite{number}",
        claims=(
            Parameters(printed=parameters, counted="trainable", source=LITE),
            MultiplyAdds(
                printed=multiply_adds,
                unit=unit,
                counted="profiled",
                within=0.005 if number == 0 else None,
                source=LITE,
                note="The table follows TensorFlow 1's profiler; Lite0 alone is 406 M there, and 407 M in the table.",
            ),
        ),
    )


def efficientnet_v2(variant: str, parameters: str, giga_multiply_adds: str) -> Row:
    return Row(
        network=f"efficientnet_v2_{variant}",
        claims=(
            Parameters(printed=parameters, counted="trainable", source=AUTOML),
            MultiplyAdds(
                printed=giga_multiply_adds,
                unit=GIGA,
                source=AUTOML,
                note="At the resolution of evaluation (224, 240, 260, 300, 384 pixels), which is our networks' own.",
            ),
        ),
    )


def mobilenet_v4(variant: str, timm: str, paper: str, giga_multiply_adds: str) -> Row:
    small = variant == "conv_small"
    return Row(
        network=f"mobilenet_v4_{variant}",
        claims=(
            Parameters(printed=timm, counted="trainable", source=TIMM),
            Parameters(
                printed=paper,
                counted="folded",
                unit=MEGA if small else BINARY_MEGA,
                source=V4_PAPER,
                note="The paper counts what is left after folding, in units of 2^20, but for Conv-S in millions; so "
                "its numbers and timm's are of the same networks.",
            ),
            MultiplyAdds(
                printed=giga_multiply_adds,
                unit=BINARY_GIGA,
                source=V4_PAPER,
                note="In units of 2^30: in thousands of millions they would be 0.2, 1.1, 6.4, 1.3 and 7.7.",
            ),
        ),
    )


def tiny(name: str, parameters: int) -> Row:
    return Row(network=name, claims=(Parameters(printed=str(parameters), unit=1, counted="all", source=TINY),))


ROWS = [
    mobilenet_v1(1.0, 224, "569", "4.24"),
    mobilenet_v1(1.0, 192, "418", "4.24"),
    mobilenet_v1(1.0, 160, "291", "4.24"),
    mobilenet_v1(1.0, 128, "186", "4.24"),
    mobilenet_v1(0.75, 224, "317", "2.59"),
    mobilenet_v1(0.75, 192, "233", "2.59"),
    mobilenet_v1(0.75, 160, "162", "2.59"),
    mobilenet_v1(0.75, 128, "104", "2.59"),
    mobilenet_v1(0.5, 224, "150", "1.34"),
    mobilenet_v1(0.5, 192, "110", "1.34"),
    mobilenet_v1(0.5, 160, "77", "1.34"),
    mobilenet_v1(0.5, 128, "49", "1.34"),
    mobilenet_v1(0.25, 224, "41", "0.47"),
    mobilenet_v1(0.25, 192, "34", "0.47"),
    mobilenet_v1(0.25, 160, "21", "0.47"),
    mobilenet_v1(0.25, 128, "14", "0.47"),
    mobilenet_v2(1.4, 224, "582", "6.06"),
    mobilenet_v2(1.3, 224, "509", "5.34"),
    mobilenet_v2(1.0, 224, "300", "3.47"),
    mobilenet_v2(1.0, 192, "221", "3.47"),
    mobilenet_v2(1.0, 160, "154", "3.47"),
    mobilenet_v2(1.0, 128, "99", "3.47"),
    mobilenet_v2(1.0, 96, "56", "3.47"),
    mobilenet_v2(0.75, 224, "209", "2.61"),
    mobilenet_v2(0.75, 192, "153", "2.61"),
    mobilenet_v2(0.75, 160, "107", "2.61"),
    mobilenet_v2(0.75, 128, "69", "2.61"),
    mobilenet_v2(0.75, 96, "39", "2.61"),
    mobilenet_v2(0.5, 224, "97", "1.95"),
    mobilenet_v2(0.5, 192, "71", "1.95"),
    mobilenet_v2(0.5, 160, "50", "1.95"),
    mobilenet_v2(0.5, 128, "32", "1.95"),
    mobilenet_v2(0.5, 96, "18", "1.95"),
    mobilenet_v2(0.35, 224, "59", "1.66"),
    mobilenet_v2(0.35, 192, "43", "1.66"),
    mobilenet_v2(0.35, 160, "30", "1.66"),
    mobilenet_v2(0.35, 128, "20", "1.66"),
    mobilenet_v2(0.35, 96, "11", "1.66"),
    Row(
        network="mobilenet_v3_large",
        claims=(
            Parameters(printed="5.48", counted="trainable", source=TIMM),
            Parameters(printed="5.4", counted="trainable", source=SLIM, how="cut"),
            MultiplyAdds(printed="217", source=SLIM),
        ),
    ),
    Row(
        network="mobilenet_v3_large",
        width=0.75,
        claims=(
            Parameters(printed="3.99", counted="trainable", source=TIMM),
            Parameters(printed="4.0", counted="trainable", source=SLIM),
            MultiplyAdds(printed="155", source=SLIM),
        ),
    ),
    mobilenet_v3_small(1.0, "2.54", "2.9", 576, "56"),
    mobilenet_v3_small(0.75, "2.04", "2.4", 432, "44"),
    Row(
        network="mobilenet_v3_large_minimalistic",
        claims=(
            Parameters(printed="3.92", counted="trainable", source=TIMM),
            Parameters(printed="3.9", counted="trainable", source=SLIM),
            MultiplyAdds(printed="209", source=SLIM),
        ),
    ),
    Row(
        network="mobilenet_v3_small_minimalistic",
        claims=(
            Parameters(printed="2.04", counted="trainable", source=TIMM),
            Parameters(printed="2.0", counted="trainable", source=SLIM),
            MultiplyAdds(
                printed="52",
                source="the published code, counted here",
                note="SLIM prints 65 M, beside 66 M for the small network, of which the paper has 56 M and which this "
                "one is a part of: without gates, and with 3x3 kernels for 5x5.",
            ),
        ),
    ),
    efficientnet(0, 5_330_571, "0.40"),
    efficientnet(1, 7_856_239, "0.71"),
    efficientnet(2, 9_177_569, "1.02"),
    efficientnet(3, 12_320_535, "1.87"),
    efficientnet(4, 19_466_823, "4.49"),
    efficientnet(5, 30_562_527, "10.46"),
    efficientnet(6, 43_265_143, "19.40"),
    efficientnet(7, 66_658_687, "38.33"),
    efficientnet_lite(0, "4.7", "407", MEGA),
    efficientnet_lite(1, "5.4", "631", MEGA),
    efficientnet_lite(2, "6.1", "899", MEGA),
    efficientnet_lite(3, "8.2", "1.44", GIGA),
    efficientnet_lite(4, "13.0", "2.64", GIGA),
    efficientnet_v2("b0", "7.1", "0.72"),
    efficientnet_v2("b1", "8.1", "1.2"),
    efficientnet_v2("b2", "10.1", "1.7"),
    efficientnet_v2("b3", "14.4", "3.0"),
    efficientnet_v2("s", "21.5", "8.4"),
    mobilenet_v4("conv_small", "3.77", "3.8", "0.2"),
    mobilenet_v4("conv_medium", "9.72", "9.2", "1.0"),
    mobilenet_v4("conv_large", "32.59", "31.0", "5.9"),
    mobilenet_v4("hybrid_medium", "11.07", "10.5", "1.2"),
    mobilenet_v4("hybrid_large", "37.76", "35.9", "7.2"),
    tiny("resnet8", 78_666),
    tiny("ds_cnn", 24_908),
    tiny("mobilenet_v1_025_96", 221_794),
    tiny("dense_autoencoder", 269_992),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_equals_what_was_published(row: Row) -> None:
    shape = None if row.resolution is None else (row.resolution, row.resolution, 3)
    network = without_weights(lambda: models.build(row.network, width=row.width, input_shape=shape))
    for claim in row.claims:
        count = claim.of(network)
        if isinstance(claim, MultiplyAdds) and claim.within is not None:
            assert count == pytest.approx(float(claim.printed) * claim.unit, rel=claim.within), claim
            continue
        rounding = ROUND_HALF_EVEN if claim.how == "rounded" else ROUND_DOWN
        exact = Decimal(count) / claim.unit
        assert str(exact.quantize(Decimal(claim.printed), rounding=rounding)) == claim.printed, (claim, count)


def test_every_network_is_in_the_table() -> None:
    assert {row.network for row in ROWS} == set(models.MODELS)


def test_every_published_accuracy_has_a_row() -> None:
    images = {name: spec for name, spec in models.MODELS.items() if spec.input_kind == "image"}
    stated = {
        (name, result.width, result.resolution) for name, spec in images.items() for result in spec.published
    }  # fmt: skip
    rows = {
        (row.network, row.width, row.resolution or models.MODELS[row.network].resolution)
        for row in ROWS
        if row.network in images
    }
    assert stated == rows

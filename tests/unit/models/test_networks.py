"""What every network promises, and what is refused. A new family is one more line in FAMILIES."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models

Pixel = float | tuple[float, float, float]

SIGNED_UNIT = (-1.0, 1.0)
LITE = (-127 / 128, 1.0)
V2_SMALL = (-1.0, 127 / 128)
IMAGENET: tuple[Pixel, Pixel] = (
    (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    (0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225),
)


@dataclass(frozen=True)
class FamilyCase:
    """A network, and what its authors chose.

    `pixels` are the values that its scaling maps black and white to; `gates` the number of blocks that it gates, and
    `optional_gates` that it gates if asked to; `fused` the blocks without a depthwise convolution.
    """

    name: str
    num_blocks: int
    pixels: tuple[Pixel, Pixel]
    default_momentum: float
    dropout: float
    gates: int = 0
    optional_gates: int = 0
    fused: int = 0


FAMILIES = [
    FamilyCase("mobilenet_v1", 13, SIGNED_UNIT, 0.99, 0.001, optional_gates=13),
    FamilyCase("mobilenet_v2", 17, SIGNED_UNIT, 0.999, 0.2, optional_gates=17),
    FamilyCase("mobilenet_v3_small", 11, SIGNED_UNIT, 0.999, 0.2, gates=9),
    FamilyCase("mobilenet_v3_large", 15, SIGNED_UNIT, 0.999, 0.2, gates=8),
    FamilyCase("mobilenet_v3_small_minimalistic", 11, SIGNED_UNIT, 0.999, 0.2, optional_gates=9),
    FamilyCase("mobilenet_v3_large_minimalistic", 15, SIGNED_UNIT, 0.999, 0.2, optional_gates=8),
    FamilyCase("efficientnet_b0", 16, IMAGENET, 0.99, 0.2, gates=16),
    FamilyCase("efficientnet_b1", 23, IMAGENET, 0.99, 0.2, gates=23),
    FamilyCase("efficientnet_b2", 23, IMAGENET, 0.99, 0.3, gates=23),
    FamilyCase("efficientnet_b3", 26, IMAGENET, 0.99, 0.3, gates=26),
    FamilyCase("efficientnet_b4", 32, IMAGENET, 0.99, 0.4, gates=32),
    FamilyCase("efficientnet_b5", 39, IMAGENET, 0.99, 0.4, gates=39),
    FamilyCase("efficientnet_b6", 45, IMAGENET, 0.99, 0.5, gates=45),
    FamilyCase("efficientnet_b7", 55, IMAGENET, 0.99, 0.5, gates=55),
    FamilyCase("efficientnet_lite0", 16, LITE, 0.99, 0.2, optional_gates=16),
    FamilyCase("efficientnet_lite1", 21, LITE, 0.99, 0.2, optional_gates=21),
    FamilyCase("efficientnet_lite2", 21, LITE, 0.99, 0.3, optional_gates=21),
    FamilyCase("efficientnet_lite3", 24, LITE, 0.99, 0.3, optional_gates=24),
    FamilyCase("efficientnet_lite4", 30, LITE, 0.99, 0.3, optional_gates=30),
    FamilyCase("efficientnet_v2_b0", 21, IMAGENET, 0.9, 0.2, gates=16, fused=5),
    FamilyCase("efficientnet_v2_b1", 27, IMAGENET, 0.9, 0.2, gates=19, fused=8),
    FamilyCase("efficientnet_v2_b2", 28, IMAGENET, 0.9, 0.3, gates=20, fused=8),
    FamilyCase("efficientnet_v2_b3", 32, IMAGENET, 0.9, 0.3, gates=24, fused=8),
    FamilyCase("efficientnet_v2_s", 40, V2_SMALL, 0.9, 0.2, gates=30, fused=10),
]
ONE_OF_EACH = [
    case
    for case in FAMILIES
    if case.name
    in (
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large_minimalistic",
        "efficientnet_b0",
        "efficientnet_lite0",
        "efficientnet_v2_b0",
    )
]
"""A network of each design, for what the others of the family share with it."""

ALL = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.num_blocks > 25 else []) for case in FAMILIES]


@cache
def small_default(name: str) -> Any:
    """A small network that no test changes."""
    return small(name)


def small(name: str, **changes: Any) -> Any:
    """A small network, cheap to build."""
    arguments: dict[str, Any] = {"input_shape": (40, 48, 3), "num_classes": 7}
    return models.build(name, **(arguments | changes))


ELSEWHERE = {"mobilenet_v4": "test_mobilenet_v4.py", "mlperf_tiny": "test_mlperf_tiny.py"}
"""Families of other blocks, with other names, which have a file of their own."""


def test_every_family_has_a_case() -> None:
    elsewhere = [name for name, spec in models.MODELS.items() if spec.family in ELSEWHERE]
    assert sorted([case.name for case in FAMILIES] + elsewhere) == sorted(models.MODELS)
    assert all(Path(__file__).with_name(file).is_file() for file in ELSEWHERE.values())


def test_every_network_is_listed_under_its_own_name() -> None:
    assert {key: spec.name for key, spec in models.MODELS.items()} == {key: key for key in models.MODELS}


@pytest.mark.parametrize("case", ALL)
def test_contract(case: FamilyCase) -> None:
    import keras

    network = small_default(case.name)

    [image] = network.inputs
    assert (image.name, image.dtype, image.shape) == ("image", "uint8", (None, 40, 48, 3))
    [logits] = network.outputs
    assert (logits.dtype, logits.shape) == ("float32", (None, 7))
    last = network.layers[-1]
    assert (last.name, type(last), last.activation) == (
        "logits",
        keras.layers.Dense,
        keras.activations.linear,
    )

    names = [layer.name for layer in network.layers]
    assert names[:4] == ["image", "rescaling", "stem_conv", "stem_conv_bn"]
    assert names[-2:] == ["head_dropout", "logits"]
    assert "head_pool" in names
    blocks = [name for name in names if name.endswith(("_depthwise", "_fused"))]
    kinds = ["fused"] * case.fused + ["depthwise"] * (case.num_blocks - case.fused)
    assert blocks == [f"block_{index:02d}_{kind}" for index, kind in enumerate(kinds)]
    assert sum(name.endswith("_squeeze_gate") for name in names) == case.gates

    types = [type(layer).__name__ for layer in network.layers]
    assert not {"ZeroPadding2D", "Normalization", "Reshape", "Flatten"} & set(types)
    convolutions = types.count("Conv2D") + types.count("DepthwiseConv2D") - 2 * case.gates
    assert types.count("BatchNormalization") == convolutions


@pytest.mark.parametrize("case", ALL)
def test_scaling_is_inside(case: FamilyCase) -> None:
    import keras

    network = small_default(case.name)
    scaling = keras.Model(network.input, network.get_layer("rescaling").output)
    pixels = np.zeros((2, 40, 48, 3), np.uint8)
    pixels[1] = 255
    black, white = keras.ops.convert_to_numpy(scaling(pixels))
    np.testing.assert_allclose(black, np.broadcast_to(case.pixels[0], black.shape), atol=1e-6)
    np.testing.assert_allclose(white, np.broadcast_to(case.pixels[1], white.shape), atol=1e-6)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_logits_are_float32_under_mixed_precision(case: FamilyCase) -> None:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = small(case.name)
    finally:
        keras.config.set_dtype_policy(before)
    assert network.get_layer("rescaling").compute_dtype == "float32"
    assert network.get_layer("block_08_depthwise").compute_dtype == "bfloat16"
    assert network.output.dtype == "float32"


@pytest.mark.parametrize("case", ALL)
def test_batch_norm_and_dropout(case: FamilyCase) -> None:
    default = small_default(case.name)
    assert default.get_layer("stem_conv_bn").momentum == case.default_momentum
    assert default.get_layer("stem_conv_bn").epsilon == 1e-3
    assert default.get_layer("head_dropout").rate == case.dropout


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_batch_norm_momentum_and_dropout_can_be_chosen(case: FamilyCase) -> None:
    default = small_default(case.name)
    changed = small(case.name, batch_norm_momentum=0.9, dropout=0.0)
    momenta = {layer.momentum for layer in changed.layers if layer.name.endswith("_bn")}
    assert momenta == {0.9}
    assert changed.get_layer("head_dropout").rate == 0.0
    assert [layer.name for layer in changed.layers] == [layer.name for layer in default.layers]


def nonlinearities(network: Any) -> set[str]:
    """What stands in a network, by the names of Keras."""
    import keras

    found = {layer.activation.__name__ for layer in network.layers if hasattr(layer, "activation")} - {"linear"}
    relus = [layer for layer in network.layers if isinstance(layer, keras.layers.ReLU)]
    return found | {"relu6" if layer.max_value == 6.0 else "relu" for layer in relus}


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_a_network_that_quantizes_well(case: FamilyCase) -> None:
    network = small(case.name, activation="relu6", squeeze_excite=False)
    early = {"relu"} if "v3" in case.name else set()
    assert nonlinearities(network) == {"relu6"} | early
    assert not any("squeeze" in layer.name for layer in network.layers)


KERAS_NAMES = {"relu": "relu", "relu6": "relu6", "hard_swish": "hard_silu", "swish": "silu"}


@pytest.mark.parametrize("activation", [pytest.param("relu", marks=pytest.mark.slow), "hard_swish", "swish"])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_activation(case: FamilyCase, activation: Any) -> None:
    network = small(case.name, activation=activation, squeeze_excite=True)
    gate = {"hard_sigmoid", "relu"} if "v3" in case.name else {"sigmoid"}
    assert nonlinearities(network) == {KERAS_NAMES[activation]} | gate
    gates = [layer for layer in network.layers if layer.name.endswith("_squeeze_gate")]
    assert len(gates) == (case.gates or case.optional_gates)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_activation_replaces_hard_swish_only(name: str) -> None:
    spec = models.MODELS[name]
    paper, changed = small(name), small(name, activation="relu6")
    places = {layer.name.removesuffix("_relu6") for layer in changed.layers if layer.name.endswith("_relu6")}
    assert places == {
        layer.name.removesuffix("_hard_swish") for layer in paper.layers if layer.name.endswith("_hard_swish")
    }
    assert {"stem_conv", "head_conv", "head_dense"} <= places
    assert (spec.activation, spec.squeeze_excite) == ("hard_swish", True)


def test_a_minimalistic_network_with_everything_is_the_full_one_with_smaller_kernels() -> None:
    full = small("mobilenet_v3_large")
    other = small("mobilenet_v3_large_minimalistic", activation="hard_swish", squeeze_excite=True)
    assert [layer.name for layer in other.layers] == [layer.name for layer in full.layers]
    depthwise = [layer for layer in other.layers if layer.name.endswith("_depthwise")]
    assert {layer.kernel_size for layer in depthwise} == {(3, 3)}


def gate_sizes(network: Any) -> dict[str, int]:
    return {layer.name: layer.filters for layer in network.layers if layer.name.endswith("_squeeze_reduce")}


def test_gates_of_networks_that_have_none_in_the_paper() -> None:
    sizes = gate_sizes(small("mobilenet_v1", squeeze_excite=True))
    assert (len(sizes), sizes["block_00_squeeze_reduce"], sizes["block_12_squeeze_reduce"]) == (13, 8, 256)
    sizes = gate_sizes(small("mobilenet_v2", squeeze_excite=True))
    assert (len(sizes), sizes["block_00_squeeze_reduce"], sizes["block_02_squeeze_reduce"]) == (17, 8, 6)
    lite, b0 = small("efficientnet_lite0", squeeze_excite=True), small_default("efficientnet_b0")
    assert gate_sizes(lite) == gate_sizes(b0)


def drop_paths(network: Any) -> dict[str, float]:
    return {layer.name: layer.rate for layer in network.layers if layer.name.endswith("_drop_path")}


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "efficientnet_v2_b0"])
def test_drop_path_grows_with_the_block_and_ends_with_training(name: str) -> None:
    [num_blocks] = [case.num_blocks for case in FAMILIES if case.name == name]
    network = small(name, drop_path=0.8, dropout=0.0)
    rates = drop_paths(network)
    added = [layer.name.removesuffix("_add") for layer in network.layers if layer.name.endswith("_add")]
    assert rates == {f"{block}_drop_path": pytest.approx(0.8 * int(block[-2:]) / num_blocks) for block in added}
    assert len(rates) > num_blocks / 3
    default = drop_paths(small_default(name))
    assert default == {layer: pytest.approx(rate / 4) for layer, rate in rates.items()}
    assert not drop_paths(small(name, drop_path=0.0))

    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    first, second = (np.asarray(network(pixels, training=False)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    last = network.get_layer(list(rates)[-1])
    ones = np.ones((400, 1, 1, 1), np.float32)
    kept = np.asarray(last(ones, training=True)).ravel()
    assert 0.4 < float((kept == 0).mean()) < 0.95
    np.testing.assert_array_equal(np.asarray(last(ones, training=False)), ones)


@dataclass(frozen=True)
class FeatureMapCase:
    """Which last feature map an image leads to."""

    resolution: tuple[int, int]
    early_stride: bool | None
    feature_map: tuple[int, int]
    name: str = "mobilenet_v2"

    @property
    def id(self) -> str:
        strides = {None: "default", True: "paper", False: "small"}[self.early_stride]
        return f"{self.name}-{self.resolution[0]}x{self.resolution[1]}-{strides}"


FEATURE_MAPS = [
    FeatureMapCase((32, 32), None, (4, 4)),
    FeatureMapCase((32, 32), True, (1, 1)),
    FeatureMapCase((48, 48), None, (6, 6)),
    FeatureMapCase((64, 64), None, (4, 4)),
    FeatureMapCase((64, 64), True, (2, 2)),
    FeatureMapCase((96, 96), None, (3, 3)),
    FeatureMapCase((96, 96), False, (6, 6)),
    FeatureMapCase((97, 129), None, (4, 5)),
    *(
        FeatureMapCase(size, None, feature_map, case.name)
        for case in ONE_OF_EACH
        if case.name != "mobilenet_v2"
        for size, feature_map in (((32, 32), (4, 4)), ((64, 64), (4, 4)), ((97, 97), (4, 4)))
    ),
]


@pytest.mark.parametrize("case", FEATURE_MAPS, ids=lambda case: case.id)
def test_last_feature_map(case: FeatureMapCase) -> None:
    network = small(case.name, input_shape=(*case.resolution, 3), early_stride=case.early_stride)
    assert network.get_layer("head_pool").input.shape[1:3] == case.feature_map


def test_width_scales_channels_but_never_narrows_the_head() -> None:
    narrow, wide = small("mobilenet_v2", width=0.35), small("mobilenet_v2", width=1.4)
    assert narrow.get_layer("stem_conv").filters == 16
    assert narrow.get_layer("head_conv").filters == 1280
    assert wide.get_layer("stem_conv").filters == 48
    assert wide.get_layer("head_conv").filters == 1792


def test_width_of_mobilenet_v1_scales_everything() -> None:
    network = small("mobilenet_v1", width=0.25)
    assert network.get_layer("stem_conv").filters == 8
    assert network.get_layer("block_12_pointwise").filters == 256


def test_width_of_mobilenet_v3_leaves_the_stem() -> None:
    narrow, wide = small("mobilenet_v3_small", width=0.75), small("mobilenet_v3_small", width=1.5)
    assert (narrow.get_layer("stem_conv").filters, wide.get_layer("stem_conv").filters) == (16, 16)
    assert (narrow.get_layer("head_dense").units, wide.get_layer("head_dense").units) == (1024, 1536)
    assert narrow.get_layer("head_conv").filters == 6 * 72


@pytest.mark.slow
def test_compound_coefficients_between_the_published_ones() -> None:
    """Width and depth multiply the variant's own: B0 at B2's coefficients is B2."""
    as_b2, b2 = small("efficientnet_b0", width=1.1, depth=1.2), small_default("efficientnet_b2")
    assert [weight.shape for weight in as_b2.weights] == [weight.shape for weight in b2.weights]
    between = small("efficientnet_b0", width=1.15, depth=1.3)
    assert between.get_layer("stem_conv").filters == 40
    assert between.get_layer("head_conv").filters == 1472
    # 1, 2, 2, 3, 3, 4, 1 blocks times 1.3, rounded up.
    assert sum(layer.name.endswith("_depthwise") for layer in between.layers) == 2 + 3 + 3 + 4 + 4 + 6 + 2
    as_v2_b3, v2_b3 = small("efficientnet_v2_b0", width=1.2, depth=1.4), small_default("efficientnet_v2_b3")
    assert [weight.shape for weight in as_v2_b3.weights] == [weight.shape for weight in v2_b3.weights]


@dataclass(frozen=True)
class ErrorCase:
    id: str
    message: str
    name: str = "mobilenet_v2"
    changes: dict[str, Any] = field(default_factory=dict)


ERRORS = [
    ErrorCase("unknown name", "Unknown network 'mobilenetv2'.*Did you mean 'mobilenet_v2'", name="mobilenetv2"),
    ErrorCase(
        "a family's name",
        r"Unknown network 'mobilenet_v3_s'\. Did you mean 'mobilenet_v3_small' or 'mobilenet_v3_small_minimalistic'\?",
        name="mobilenet_v3_s",
    ),
    ErrorCase(
        "nothing close",
        r"Unknown network 'zzz'\. There are \d+, of the families mobilenet_v1, .*efficientnet_v2",
        name="zzz",
    ),
    ErrorCase("small image", "at least 32 whole pixels", changes={"input_shape": (32, 31, 3)}),
    ErrorCase("fractional size", "at least 32 whole pixels", changes={"input_shape": (32.5, 32, 3)}),
    ErrorCase("grey image", r"expected \(height, width, 3\)", changes={"input_shape": (32, 32, 1)}),
    ErrorCase("no channels", r"expected \(height, width, 3\)", changes={"input_shape": (32, 32)}),
    ErrorCase("one number", r"expected \(height, width, 3\)", changes={"input_shape": (32,)}),
    ErrorCase("width zero", "width is 0, expected a number above 0", changes={"width": 0}),
    ErrorCase("width negative", "width is -1.0", changes={"width": -1.0}),
    ErrorCase("width not a number", "width is nan", changes={"width": float("nan")}),
    ErrorCase("one class", "num_classes is 1, expected", changes={"num_classes": 1}),
    ErrorCase("dropout", r"dropout is 1.0, expected a number in \[0, 1\)", changes={"dropout": 1.0}),
    ErrorCase("momentum", "batch_norm_momentum is 1.0", changes={"batch_norm_momentum": 1.0}),
    ErrorCase(
        "no width multiplier",
        r"width is 0.5, but 'efficientnet_lite0' has no width multiplier.*\(mobilenet_v1, mobilenet_v2, ",
        name="efficientnet_lite0",
        changes={"width": 0.5},
    ),
    ErrorCase(
        "no depth multiplier",
        r"depth is 1.1, but 'mobilenet_v2' has no depth multiplier.*\(efficientnet, efficientnet_v2\)",
        changes={"depth": 1.1},
    ),
    ErrorCase(
        "no drop path",
        r"drop_path is 0.2, but 'mobilenet_v3_small' has no stochastic depth",
        name="mobilenet_v3_small",
        changes={"drop_path": 0.2},
    ),
    ErrorCase("activation", "activation is 'tanh', expected one of relu, relu6", changes={"activation": "tanh"}),
]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.id)
def test_refused(case: ErrorCase) -> None:
    with pytest.raises(ValueError, match=case.message):
        small(case.name, **case.changes)


@dataclass(frozen=True)
class ImportCase:
    """Modules, and what they must not load."""

    modules: str
    heavy: str


IMPORTS = [
    ImportCase("models, models.accounting, models.blocks", "h5py jax keras numpy tensorflow torch"),
    ImportCase("models.pretrained, models.reference", "h5py jax keras tensorflow torch"),
]


@pytest.mark.parametrize("case", IMPORTS, ids=lambda case: case.modules)
def test_importing_models_loads_no_heavy_package(case: ImportCase) -> None:
    script = (
        f"import sys, {case.modules}\n"
        f"heavy = set('{case.heavy}'.split()) & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

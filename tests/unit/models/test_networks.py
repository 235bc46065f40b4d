"""What every network promises, and what is refused. A new family is one more line in FAMILIES."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

import models


@dataclass(frozen=True)
class FamilyCase:
    """A family, and the pixel values that its scaling maps to -1 and 1 (or next to them)."""

    name: str
    num_blocks: int
    black: float
    white: float
    default_momentum: float


FAMILIES = [
    FamilyCase("mobilenet_v2", 17, -1.0, 1.0, 0.999),
    FamilyCase("efficientnet_lite0", 16, -127 / 128, 1.0, 0.99),
]


@cache
def small_default(name: str) -> Any:
    """A small network that no test changes."""
    return small(name)


def small(name: str, **changes: Any) -> Any:
    """A small network, cheap to build."""
    arguments: dict[str, Any] = {"input_shape": (32, 32, 3), "num_classes": 10}
    return models.build(name, **(arguments | changes))


def test_every_family_has_a_case() -> None:
    assert [case.name for case in FAMILIES] == list(models.MODELS)


def test_every_network_is_listed_under_its_own_name() -> None:
    assert {key: spec.name for key, spec in models.MODELS.items()} == {key: key for key in models.MODELS}


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_contract(case: FamilyCase) -> None:
    import keras

    network = small(case.name, input_shape=(40, 48, 3), num_classes=7)

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
    assert names[-3:] == ["head_pool", "head_dropout", "logits"]
    depthwise = [name for name in names if name.endswith("_depthwise")]
    assert depthwise == [f"block_{index:02d}_depthwise" for index in range(case.num_blocks)]

    types = [type(layer).__name__ for layer in network.layers]
    assert "ZeroPadding2D" not in types
    assert types.count("BatchNormalization") == types.count("Conv2D") + types.count("DepthwiseConv2D")


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_scaling_is_inside(case: FamilyCase) -> None:
    import keras

    network = small_default(case.name)
    scaling = keras.Model(network.input, network.get_layer("rescaling").output)
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    pixels[1] = 255
    black, white = keras.ops.convert_to_numpy(scaling(pixels))
    np.testing.assert_allclose(black, case.black, atol=1e-6)
    np.testing.assert_allclose(white, case.white, atol=1e-6)


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_logits_are_float32_under_mixed_precision(case: FamilyCase) -> None:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = small(case.name)
    finally:
        keras.config.set_dtype_policy(before)
    assert network.get_layer("rescaling").compute_dtype == "float32"
    assert network.get_layer("block_03_expand").compute_dtype == "bfloat16"
    assert network.output.dtype == "float32"


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_batch_norm_momentum_and_dropout(case: FamilyCase) -> None:
    default = small_default(case.name)
    assert default.get_layer("stem_conv_bn").momentum == case.default_momentum
    assert default.get_layer("stem_conv_bn").epsilon == 1e-3
    assert default.get_layer("head_dropout").rate == 0.2

    changed = small(case.name, batch_norm_momentum=0.9, dropout=0.0)
    momenta = {layer.momentum for layer in changed.layers if layer.name.endswith("_bn")}
    assert momenta == {0.9}
    assert changed.get_layer("head_dropout").rate == 0.0
    assert [layer.name for layer in changed.layers] == [layer.name for layer in default.layers]


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
    FeatureMapCase((32, 32), None, (4, 4), "efficientnet_lite0"),
    FeatureMapCase((64, 64), None, (4, 4), "efficientnet_lite0"),
    FeatureMapCase((97, 97), None, (4, 4), "efficientnet_lite0"),
]


@pytest.mark.parametrize("case", FEATURE_MAPS, ids=lambda case: case.id)
def test_last_feature_map(case: FeatureMapCase) -> None:
    network = small(case.name, input_shape=(*case.resolution, 3), early_stride=case.early_stride)
    assert network.get_layer("head_conv").output.shape[1:3] == case.feature_map


def test_width_scales_channels_but_never_narrows_the_head() -> None:
    narrow, wide = small("mobilenet_v2", width=0.35), small("mobilenet_v2", width=1.4)
    assert narrow.get_layer("stem_conv").filters == 16
    assert narrow.get_layer("head_conv").filters == 1280
    assert wide.get_layer("stem_conv").filters == 48
    assert wide.get_layer("head_conv").filters == 1792


@dataclass(frozen=True)
class ErrorCase:
    id: str
    message: str
    name: str = "mobilenet_v2"
    changes: dict[str, Any] = field(default_factory=dict)


ERRORS = [
    ErrorCase("unknown name", "Unknown network 'mobilenetv2'.*Did you mean 'mobilenet_v2'", name="mobilenetv2"),
    ErrorCase(
        "nothing close",
        r"Unknown network 'zzz', expected one of efficientnet_lite0, mobilenet_v2\.$",
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
        r"width is 0.5, but 'efficientnet_lite0' has no width multiplier.*\(mobilenet_v2\)",
        name="efficientnet_lite0",
        changes={"width": 0.5},
    ),
]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.id)
def test_refused(case: ErrorCase) -> None:
    with pytest.raises(ValueError, match=case.message):
        small(case.name, **case.changes)


def test_importing_models_loads_no_heavy_package() -> None:
    script = (
        "import sys, models.accounting, models.blocks, models.efficientnet_lite, models.mobilenet_v2\n"
        "heavy = {'jax', 'keras', 'numpy', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

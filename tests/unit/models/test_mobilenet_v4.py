"""MobileNetV4's blocks, and the network without its scales."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from models.folding import fold_for_inference
from models.skeleton import without_weights


def small(name: str, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"input_shape": (32, 32, 3), "num_classes": 10}
    return models.build(name, **(arguments | changes))


@pytest.fixture(scope="module")
def hybrid() -> Any:
    """With scales and normalizations that do something."""
    network = small("mobilenet_v4_hybrid_medium", input_shape=(40, 48, 3), width=0.5)
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if weight.name in ("gamma", "moving_variance") or "layer_scale" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "moving_mean"):
            weight.assign(rng.normal(0, 0.2, weight.shape))
        elif weight.name == "kernel":  # large enough for the image to reach the logits
            rows = weight.shape[:2] if "depthwise" in weight.path else weight.shape[:-1]
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(rows)), weight.shape))
    for layer in network.layers:  # and small enough for the softmax to weigh
        if layer.name.endswith("_bn"):
            layer.momentum = 0.0
    network(rng.integers(0, 256, (8, 40, 48, 3), dtype=np.uint8), training=True)
    return network


@dataclass(frozen=True)
class BlockCase:
    """The layers with weights of one block."""

    network: str
    block: int
    layers: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.network}-{self.block}"


START, EXPAND, MIDDLE, PROJECT = "start_depthwise", "expand", "depthwise", "project"
ATTENTION = ("attention_bn", "query", "key", "value", "output", "layer_scale")
BLOCKS = [
    BlockCase("conv_small", 0, ("conv",)),
    BlockCase("conv_small", 4, (START, EXPAND, MIDDLE, PROJECT)),
    BlockCase("conv_small", 5, (EXPAND, MIDDLE, PROJECT)),
    BlockCase("conv_small", 9, (START, EXPAND, PROJECT)),
    BlockCase("conv_medium", 0, ("fused", PROJECT)),
    BlockCase("conv_medium", 9, (EXPAND, PROJECT)),
    BlockCase("hybrid_medium", 3, (START, EXPAND, MIDDLE, PROJECT, "layer_scale")),
    BlockCase(
        "hybrid_medium",
        7,
        ("attention_bn", "query", "key_depthwise", "key", "value_depthwise", "value", "output", "layer_scale"),
    ),
    BlockCase("hybrid_medium", 23, ATTENTION),
    BlockCase("hybrid_large", 28, ATTENTION),
]


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.id)
def test_blocks(case: BlockCase) -> None:
    network = without_weights(lambda: models.build(f"mobilenet_v4_{case.network}"))
    prefix = f"block_{case.block:02d}_"
    names = {
        layer.name.removeprefix(prefix)
        for layer in network.layers
        if layer.name.startswith(prefix) and layer.trainable_variables
    }
    normalized = {f"{name}_bn" for name in case.layers if "depth" in name or name in ("conv", "fused", EXPAND, PROJECT)}
    assert names == {*case.layers, *normalized}


@dataclass(frozen=True)
class VariantCase:
    variant: str
    num_blocks: int
    num_attentions: int
    last_map: tuple[int, int]
    activation: str
    dropout: float
    epsilon: float


VARIANTS = [
    VariantCase("conv_small", 16, 0, (7, 7), "relu", 0.3, 1e-6),
    VariantCase("conv_medium", 22, 0, (8, 8), "relu", 0.2, 1e-3),
    VariantCase("conv_large", 27, 0, (12, 12), "relu", 0.2, 1e-3),
    VariantCase("hybrid_medium", 31, 8, (8, 8), "relu", 0.2, 1e-3),
    VariantCase("hybrid_large", 36, 8, (12, 12), "gelu", 0.2, 1e-3),
]


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: case.variant)
def test_variants(case: VariantCase) -> None:
    network = without_weights(lambda: models.build(f"mobilenet_v4_{case.variant}"))
    names = [layer.name for layer in network.layers]
    assert max(int(name[6:8]) for name in names if name.startswith("block_")) == case.num_blocks - 1
    assert sum(name.endswith("_softmax") for name in names) == case.num_attentions
    assert network.get_layer("body_conv").output.shape[1:] == (*case.last_map, 960)
    assert f"stem_conv_{case.activation}" in names
    assert network.get_layer("head_dropout").rate == case.dropout
    assert network.get_layer("stem_conv_bn").epsilon == case.epsilon


def test_no_activation_after_the_first_depthwise_convolution_and_the_projection() -> None:
    names = [layer.name for layer in without_weights(lambda: small("mobilenet_v4_conv_small")).layers]
    assert "block_04_expand_relu" in names
    assert "block_04_depthwise_relu" in names
    assert not [name for name in names if "start_depthwise_relu" in name or "project_relu" in name]


def test_the_depthwise_convolution_in_the_middle_carries_the_stride() -> None:
    network = without_weights(lambda: models.build("mobilenet_v4_conv_small"))
    assert network.get_layer("block_04_start_depthwise").strides == (1, 1)
    assert network.get_layer("block_04_depthwise").strides == (2, 2)


def test_attention_equals_its_formula(hybrid: Any) -> None:
    import keras

    name = "block_07"
    names = [f"{name}_query", f"{name}_key", f"{name}_value", f"{name}_mix_map"]
    probe = keras.Model(hybrid.input, [hybrid.get_layer(layer).output for layer in names])
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    query, key, value, mixed = (keras.ops.convert_to_numpy(tensor) for tensor in probe(images))
    heads, key_dim = 4, 64
    query = query.reshape(2, -1, heads, key_dim)
    key, value = key.reshape(2, -1, key_dim), value.reshape(2, -1, key_dim)
    assert query.shape[1] > key.shape[1]
    scores = np.einsum("bqhd,bkd->bqhk", query, key) / np.sqrt(key_dim)
    assert 0.1 < scores.std() < 10
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bqhk,bkd->bqhd", weights, value).reshape(mixed.shape)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)


def test_layer_scales_start_at_1e_5() -> None:
    network = without_weights(lambda: small("mobilenet_v4_hybrid_medium"))
    scales = [layer for layer in network.layers if layer.name.endswith("_layer_scale")]
    assert len(scales) == 30
    assert {layer.depthwise_initializer.value for layer in scales} == {1e-5}


@pytest.mark.slow
def test_folding_scales_changes_nothing(hybrid: Any) -> None:
    folded = fold_for_inference(hybrid)
    names = {layer.name for layer in folded.layers}
    removed = {layer.name for layer in hybrid.layers} - names
    assert len(removed) == sum(name.endswith("_layer_scale") for name in removed) + 8
    assert {name.split("_", 2)[2] for name in removed} == {"layer_scale", "key_scale"}
    images = np.random.default_rng(1).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    expected = hybrid.predict_on_batch(images)
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.ptp(expected)
    np.testing.assert_allclose(folded.predict_on_batch(images), expected, rtol=0, atol=1e-4 * np.ptp(expected))


@pytest.mark.slow
def test_it_loads_without_our_code(hybrid: Any, tmp_path: Path) -> None:
    import keras

    hybrid.save(tmp_path / "hybrid.keras")
    loaded = keras.saving.load_model(tmp_path / "hybrid.keras", safe_mode=True)
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    np.testing.assert_allclose(loaded.predict_on_batch(images), hybrid.predict_on_batch(images), rtol=1e-5)


@dataclass(frozen=True)
class OptionCase:
    id: str
    options: dict[str, Any]
    layer: str


OPTIONS = [
    OptionCase("activation", {"activation": "hard_swish"}, "block_04_expand_hard_swish"),
    OptionCase("squeeze_excite", {"squeeze_excite": True}, "block_04_squeeze_hard_sigmoid"),
    OptionCase("drop_path", {"drop_path": 0.2}, "block_05_drop_path"),
]


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.id)
def test_options(case: OptionCase) -> None:
    plain = without_weights(lambda: small("mobilenet_v4_conv_small"))
    changed = without_weights(lambda: small("mobilenet_v4_conv_small", **case.options))
    assert case.layer in {layer.name for layer in changed.layers}
    assert case.layer not in {layer.name for layer in plain.layers}


@pytest.mark.parametrize(
    ("size", "last_map"), [((32, 32), (4, 4)), ((64, 64), (4, 4)), ((97, 129), (4, 5))], ids=str
)  # fmt: skip
@pytest.mark.parametrize("variant", ["conv_small", "hybrid_medium"])
def test_last_feature_map(variant: str, size: tuple[int, int], last_map: tuple[int, int]) -> None:
    network = without_weights(lambda: small(f"mobilenet_v4_{variant}", input_shape=(*size, 3)))
    assert network.get_layer("body_conv").output.shape[1:3] == last_map


def test_width_never_narrows_the_head() -> None:
    network = without_weights(lambda: small("mobilenet_v4_conv_small", width=0.5))
    assert network.get_layer("stem_conv").filters == 16
    assert network.get_layer("body_conv").filters == 480
    assert network.get_layer("head_conv").filters == 1280

"""The networks compute what the reference implementations compute from the same weights."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import models
from models import reference as references
from models.reference import build_reference, copy_from_reference, weighted_layers

TOLERANCE_OF_RANGE = 1e-4


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    import keras

    yield
    keras.backend.clear_session()


def fan_in(layer: Any) -> int:
    """Number of inputs that one output of the layer sums over."""
    shape = layer.kernel.shape
    return math.prod(shape[:2] if type(layer).__name__ == "DepthwiseConv2D" else shape[:-1])


def randomize(network: Any, rng: np.random.Generator) -> None:
    """Gives every weight a random value, batch-norm statistics included, that keeps the logits alive.

    The summands of residuals are small, as in trained networks: else gates saturate in deep networks, and the
    rounding of one backend's operation decides the logits.
    """
    names = {layer.name for layer in network.layers}
    for layer in weighted_layers(network):
        is_summand = f"{re.split('project|fused', layer.name)[0]}add" in names
        for weight in layer.weights:
            match weight.name:
                case "gamma" if is_summand:
                    weight.assign(rng.uniform(0.1, 0.3, weight.shape))
                case "gamma" | "moving_variance":
                    weight.assign(rng.uniform(0.5, 1.5, weight.shape))
                case "beta" | "moving_mean" | "bias":
                    weight.assign(rng.normal(0.0, 0.2, weight.shape))
                case "kernel":
                    weight.assign(rng.normal(0.0, math.sqrt(2.0 / fan_in(layer)), weight.shape))
                case other:
                    raise AssertionError(f"unexpected weight {other!r} in {layer.name!r}")


def logits_of(network: Any, pixels: np.ndarray) -> np.ndarray:
    """Logits of a batch; one call costs less than compiling the network for `predict`."""
    import keras

    result: np.ndarray = keras.ops.convert_to_numpy(network(pixels, training=False))
    return result


def copy_weights(source: Any, target: Any) -> None:
    """Layer by layer in the order of the graph; kinds and shapes have to agree."""
    for ours, theirs in zip(weighted_layers(source), weighted_layers(target), strict=True):
        assert type(ours).__name__ == type(theirs).__name__
        theirs.set_weights(ours.get_weights())


def difference_of_range(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, as a share of the range of the expected values."""
    assert ours.shape == theirs.shape
    spread = float(np.ptp(theirs))
    between_images = float(np.ptp(theirs, axis=0).max())
    assert between_images > 0.01 * spread > 0.001, "logits that hardly differ say nothing when they are equal"
    return float(np.abs(ours - theirs).max()) / spread


@dataclass(frozen=True)
class ReferenceCase:
    name: str
    resolution: tuple[int, int]
    width: float = 1.0
    slow: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}-{self.width}-{self.resolution[0]}x{self.resolution[1]}"

    @property
    def marked(self) -> Any:
        return pytest.param(self, id=self.id, marks=[pytest.mark.slow] if self.slow else [])


# Sides that stay even down to the last stride for MobileNetV1: at odd ones `keras.applications` pads on one side
# where "same", which the authors' code has, pads on both.
CASES = [
    ReferenceCase("mobilenet_v1", (224, 224)),
    ReferenceCase("mobilenet_v1", (96, 64), 0.25),
    ReferenceCase("mobilenet_v1", (64, 64), 0.75),
    ReferenceCase("mobilenet_v2", (224, 224)),
    ReferenceCase("mobilenet_v2", (96, 96), 0.35),
    ReferenceCase("mobilenet_v2", (97, 97), 0.75),
    ReferenceCase("mobilenet_v2", (130, 101), 1.4),
    ReferenceCase("mobilenet_v3_small", (224, 224)),
    ReferenceCase("mobilenet_v3_small", (97, 75), 0.75),
    ReferenceCase("mobilenet_v3_large", (224, 224)),
    ReferenceCase("mobilenet_v3_large", (97, 75), 0.75, slow=True),
    ReferenceCase("mobilenet_v3_large", (64, 64), 1.25, slow=True),
    ReferenceCase("mobilenet_v3_small_minimalistic", (97, 75)),
    ReferenceCase("mobilenet_v3_large_minimalistic", (97, 75), slow=True),
    ReferenceCase("efficientnet_b0", (224, 224), slow=True),
    ReferenceCase("efficientnet_b0", (97, 75)),
    ReferenceCase("efficientnet_b1", (64, 64), slow=True),
    ReferenceCase("efficientnet_b2", (64, 64), slow=True),
    ReferenceCase("efficientnet_b3", (64, 64), slow=True),
    ReferenceCase("efficientnet_b4", (64, 64), slow=True),
    ReferenceCase("efficientnet_b5", (64, 64), slow=True),
    ReferenceCase("efficientnet_b6", (64, 64), slow=True),
    ReferenceCase("efficientnet_b7", (64, 64), slow=True),
    ReferenceCase("efficientnet_v2_b0", (97, 75)),
    ReferenceCase("efficientnet_v2_b1", (64, 64), slow=True),
    ReferenceCase("efficientnet_v2_b2", (64, 64), slow=True),
    ReferenceCase("efficientnet_v2_b3", (64, 64), slow=True),
    ReferenceCase("efficientnet_v2_s", (64, 64), slow=True),
]


def test_every_counterpart_is_compared() -> None:
    assert {case.name for case in CASES} == set(references.REFERENCES)
    assert set(references.REFERENCES) <= set(models.MODELS)


def for_reference(pixels: np.ndarray, name: str) -> np.ndarray:
    """Pixels as the users of `keras.applications` have to hand them over."""
    external = references.REFERENCES[name].external
    return pixels.astype(np.float32) * np.float32(external.scale) + np.float32(external.offset)


@pytest.mark.parametrize("case", [case.marked for case in CASES])
def test_equals_keras_applications(case: ReferenceCase, record_property: Any) -> None:
    rng = np.random.default_rng(0)
    shape = (*case.resolution, 3)
    theirs = build_reference(case.name, input_shape=shape, num_classes=20, width=case.width)
    ours = models.build(case.name, input_shape=shape, num_classes=20, width=case.width, early_stride=True)
    randomize(theirs, rng)

    num_tensors = copy_from_reference(theirs, ours, case.name)

    assert num_tensors == len(ours.weights)
    pixels = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    expected = logits_of(theirs, for_reference(pixels, case.name))
    difference = difference_of_range(logits_of(ours, pixels), expected)
    record_property("difference_of_range", difference)
    assert difference <= TOLERANCE_OF_RANGE


LITE0 = [(224, 224), (97, 97), (96, 130)]


@pytest.mark.parametrize("resolution", LITE0, ids=lambda sides: f"{sides[0]}x{sides[1]}")
def test_efficientnet_lite0_equals_efficientnet_b0_with_lites_changes(resolution: tuple[int, int]) -> None:
    """Keras' EfficientNet-B0 without squeeze-and-excite and with ReLU6 is Lite0: neither scales anything."""
    import keras
    from keras.src.applications import efficientnet

    rng = np.random.default_rng(0)
    shape = (*resolution, 3)
    blocks = copy.deepcopy(efficientnet.DEFAULT_BLOCKS_ARGS)
    for block in blocks:
        block["se_ratio"] = 0
    theirs = efficientnet.EfficientNet(
        1.0,
        1.0,
        224,
        activation=keras.ops.relu6,
        blocks_args=blocks,
        weights=None,
        input_shape=shape,
        classes=20,
        classifier_activation=None,
    )
    ours = models.build("efficientnet_lite0", input_shape=shape, num_classes=20)
    randomize(ours, rng)
    copy_weights(ours, theirs)

    pixels = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    # Their first layers divide by 255 and normalize with mean 0 and variance 1.
    scaled = (pixels.astype(np.float32) - 127.0) / 128.0 * 255.0
    assert difference_of_range(logits_of(ours, pixels), logits_of(theirs, scaled)) <= TOLERANCE_OF_RANGE


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("block_01_project", "block_02_project"), ("block_04_squeeze", "block_05_squeeze")])
def test_a_swapped_layer_shows(pair: tuple[str, str]) -> None:
    """Two layers of the same shapes, exchanged: the comparison above is fine enough to tell."""
    rng = np.random.default_rng(0)
    theirs = build_reference("efficientnet_b0", input_shape=(64, 64, 3), num_classes=20)
    ours = models.build("efficientnet_b0", input_shape=(64, 64, 3), num_classes=20, early_stride=True)
    randomize(theirs, rng)
    copy_from_reference(theirs, ours, "efficientnet_b0")
    first, second = (ours.get_layer(f"{name}_bn" if "project" in name else f"{name}_reduce") for name in pair)
    kept = first.get_weights()
    first.set_weights(second.get_weights())
    second.set_weights(kept)

    pixels = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = logits_of(theirs, for_reference(pixels, "efficientnet_b0"))
    assert difference_of_range(logits_of(ours, pixels), expected) > 10 * TOLERANCE_OF_RANGE


@dataclass(frozen=True)
class MisfitCase:
    """Two networks that don't fit, and what the error says."""

    id: str
    message: str
    reference: str = "mobilenet_v2"
    name: str = "mobilenet_v2"
    changes: dict[str, Any] = field(default_factory=dict)


MISFITS = [
    MisfitCase(
        "classes",
        r"Layer 'predictions' has weights of the shapes \(1280, 20\).*same number of classes",
        changes={"num_classes": 7},
    ),
    MisfitCase(
        "width",
        r"Layer 'Conv1' has weights of the shapes \(3, 3, 3, 32\), but 'stem_conv' of \(3, 3, 3, 16\)",
        changes={"width": 0.5},
    ),
    MisfitCase(
        "gates that they lack",
        "Layer 'block_00_squeeze_reduce' of 'mobilenet_v2' gets no weights",
        changes={"squeeze_excite": True},
    ),
    MisfitCase(
        "gates that we lack",
        "Layer 'expanded_conv_squeeze_excite_conv' .* is left over",
        "mobilenet_v3_small",
        "mobilenet_v3_small",
        {"squeeze_excite": False},
    ),
    MisfitCase(
        "less depth",
        "Layer 'block2b_dwconv' has weights of the shapes",
        "efficientnet_b0",
        "efficientnet_b0",
        {"depth": 0.5},
    ),
    MisfitCase("another family", "Layer 'conv' .* is left over: it has no counterpart here", "mobilenet_v3_small"),
    MisfitCase(
        "no counterpart",
        "keras.applications has no counterpart of 'efficientnet_lite0', only of mobilenet_v1",
        name="efficientnet_lite0",
    ),
]


@pytest.mark.parametrize("case", MISFITS, ids=lambda case: case.id)
def test_misfits_are_named_and_change_nothing(case: MisfitCase) -> None:
    theirs = build_reference(case.reference, input_shape=(32, 32, 3), num_classes=20)
    ours = models.build(case.name, **({"input_shape": (32, 32, 3), "num_classes": 20} | case.changes))
    before = ours.get_weights()
    with pytest.raises(ValueError, match=case.message):
        copy_from_reference(theirs, ours, case.name)
    for old, new in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_other_classes_leave_the_head_fresh() -> None:
    theirs = build_reference("mobilenet_v3_small", input_shape=(32, 32, 3), num_classes=20)
    ours = models.build("mobilenet_v3_small", input_shape=(48, 32, 3), num_classes=7)
    fresh = ours.get_layer("logits").get_weights()
    num_tensors = copy_from_reference(theirs, ours, "mobilenet_v3_small", head=False)
    assert num_tensors == len(ours.weights) - 2
    np.testing.assert_array_equal(ours.get_layer("logits").kernel, fresh[0])
    np.testing.assert_array_equal(ours.get_layer("stem_conv").kernel, theirs.get_layer("conv").kernel)


def test_other_scaling_of_pixels_is_refused() -> None:
    theirs = build_reference("efficientnet_b0", input_shape=(32, 32, 3), num_classes=20)
    ours = models.build("efficientnet_b0", input_shape=(32, 32, 3), num_classes=20)
    for layer in theirs.layers:
        if type(layer).__name__ == "Normalization":
            layer.set_weights([np.zeros(3), np.ones(3), np.zeros((), np.int32)])
            layer.finalize_state()
    with pytest.raises(ValueError, match=r"makes \[0.0, 0.0, 0.0\] of a pixel of 0 .*the weights don't mean the same"):
        copy_from_reference(theirs, ours, "efficientnet_b0")


def test_a_width_that_keras_does_not_build_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width is 1.1, but keras.applications builds 'efficientnet_b0' at width 1.0"):
        build_reference("efficientnet_b0", input_shape=(32, 32, 3), width=1.1)

"""Small networks for the remedies: of the families, by hand, and trained on digits."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import models
from pipeline.network import predict_logits
from tests.random_weights import randomize

SIZE = 32

FAMILIES: dict[str, dict[str, Any]] = {
    "mobilenet_v1": {"width": 0.25},
    "mobilenet_v2": {"width": 0.35},
    "mobilenet_v3_small": {"width": 0.5},
    "mobilenet_v3_small_minimalistic": {"width": 0.5},
    "mobilenet_v4_conv_small": {"width": 0.25},
    "mobilenet_v4_hybrid_medium": {"width": 0.25},
    "efficientnet_b0": {"width": 0.25, "depth": 0.5},
    "efficientnet_lite0": {},
    "efficientnet_v2_b0": {"width": 0.25, "depth": 0.5},
    "resnet8": {},
    "mobilenet_v1_025_96": {},
}


def build(name: str, **options: Any) -> Any:
    """A small network of a family with random weights, as in tests/integration/families.py."""
    keras.utils.set_random_seed(0)
    arguments = {"input_shape": (SIZE, SIZE, 3), "num_classes": 10, "dropout": 0.0, "drop_path": 0.0}
    network = models.build(name, **(arguments | FAMILIES.get(name, {}) | options))
    return randomize(network, images(16, seed=1), np.random.default_rng(0))


def images(count: int, *, seed: int = 0, size: int = SIZE) -> NDArray[np.uint8]:
    """Images with large and small structures."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return np.clip(coarse + rng.normal(0, 30, (count, size, size, 3)), 0, 255).astype(np.uint8)


def features(count: int, *shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal values."""
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def snr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Signal-to-noise ratio in decibels, of the values' deviation from their mean."""
    signal = np.square(expected - expected.mean(axis=0)).sum()
    return float(10 * np.log10(signal / max(np.square(expected - found).sum(), 1e-30)))


def logits_snr_db(network: Any, quantized: Any, inputs: NDArray[Any]) -> float:
    """The same of the logits of two networks."""
    return snr_db(predict_logits(network, inputs), predict_logits(quantized, inputs))

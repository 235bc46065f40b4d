"""Training with rounding in the network brings back what coarse integers lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.executor import child_environment
from pipeline.metrics import count_correct
from pipeline.network import predict_logits
from pipeline.quantization.arithmetic import channel_axes, round_weights
from pipeline.quantization.config import FineTuneConfig, IntegerArithmetic
from pipeline.quantization.fake_quantization import fake_quantized, observed_ranges
from pipeline.quantization.graph import linear_layers
from pipeline.quantization.training import fine_tune
from pipeline.training.config import AugmentationConfig

sys.path.insert(0, str(Path(__file__).parent))

from digits import Digits, trained_network

COARSE = IntegerArithmetic(weight_bits=2, activation_bits=4)
PLAIN = AugmentationConfig(shift=0.0)


@pytest.fixture(scope="module")
def network() -> Any:
    return trained_network()


def accuracy(network: Any, digits: Digits) -> float:
    return count_correct(predict_logits(network, digits.pixels), digits.labels) / len(digits)


def config(**options: Any) -> FineTuneConfig:
    defaults: dict[str, Any] = {"epochs": 4, "learning_rate": 0.01, "augmentation": PLAIN, "workers": 0}
    return FineTuneConfig(**(defaults | options))


@pytest.mark.slow
@pytest.mark.parametrize("learned", [True, False], ids=["learned ranges", "fixed ranges"])
def test_training_regains_accuracy(network: Any, learned: bool) -> None:
    train, validation, test = Digits(0, 1200), Digits(1200, 1500), Digits(1500, 1797)
    ranges = observed_ranges(network, train.pixels[:128])
    before = network.get_weights()
    events: list[dict[str, Any]] = []
    found = fine_tune(
        network,
        train,
        (validation.pixels, validation.labels),
        ranges,
        config(learned_ranges=learned),
        arithmetic=COARSE,
        tell=events.append,
    )
    hurt = accuracy(fake_quantized(network, ranges, COARSE), test)
    mended = accuracy(fake_quantized(found.network, found.ranges, COARSE), test)
    assert accuracy(network, test) > 0.85
    assert mended > hurt + 0.3
    assert [record["epoch"] for record in found.history] == [0, 1, 2, 3, 4]
    best = found.history[found.best_epoch]
    assert best["validation_accuracy"] == max(record["validation_accuracy"] for record in found.history)
    assert [event["epoch_done"]["epoch"] for event in events if "epoch_done" in event] == [1, 2, 3, 4]
    for kept, weight in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, weight)
    # What is handed on is what was judged.
    again = fake_quantized(found.network, found.ranges, COARSE)
    assert accuracy(again, validation) == pytest.approx(best["validation_accuracy"], abs=0.011)
    for name in linear_layers(network):
        kernel = found.network.get_layer(name).get_weights()[0]
        axes = channel_axes(kernel, depthwise=name == "depthwise")
        np.testing.assert_allclose(round_weights(kernel, axes, 2), kernel, rtol=2e-6, atol=1e-7)
    moved = [abs(found.ranges[name][1] - ranges[name][1]) / ranges[name][1] for name in ranges]
    assert (max(moved) > 0.1) == learned


def test_training_twice_gives_the_same(network: Any) -> None:
    train, validation = Digits(0, 256), Digits(1200, 1300)
    ranges = observed_ranges(network, train.pixels[:64])
    shifted = config(epochs=1, augmentation=AugmentationConfig(shift=0.1))
    one, other, third = (
        fine_tune(network, train, (validation.pixels, validation.labels), ranges, each, arithmetic=COARSE)
        for each in (shifted, shifted, shifted.model_copy(update={"seed": 1}))
    )
    assert one.ranges == other.ranges != third.ranges
    for first, second in zip(one.network.get_weights(), other.network.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_where_nothing_gets_better_the_start_is_kept(network: Any) -> None:
    train, validation = Digits(0, 128), Digits(1200, 1300)
    ranges = observed_ranges(network, train.pixels)
    ruinous = config(epochs=1, learning_rate=5.0, teacher_weight=0, clip_norm=None)
    found = fine_tune(network, train, (validation.pixels, validation.labels), ranges, ruinous)
    assert found.best_epoch == 0
    assert accuracy(fake_quantized(found.network, found.ranges), validation) == pytest.approx(
        found.history[0]["validation_accuracy"], abs=0.011
    )


def test_a_loss_that_is_no_number_is_an_error(network: Any) -> None:
    train, validation = Digits(0, 128), Digits(1200, 1300)
    ranges = observed_ranges(network, train.pixels)
    teacher = trained_network(epochs=1)
    teacher.get_layer("logits").bias.assign(np.full(10, np.nan, np.float32))
    with pytest.raises(StageError, match=r"became nan in step 1 of epoch 1\. Lower its learning_rate"):
        fine_tune(network, train, (validation.pixels, validation.labels), ranges, config(), teacher=teacher)


@pytest.mark.slow
def test_the_remedies_on_jax(tmp_path: Path) -> None:
    """The same network and images on another backend, in a process of its own."""
    environment = child_environment("jax")
    script = Path(__file__).with_name("remedies_child.py")
    subprocess.run([sys.executable, script, tmp_path / "jax.npz"], env=environment, check=True, timeout=280)
    with np.load(tmp_path / "jax.npz") as found:
        facts = json.loads(str(found["facts"]))
        network = trained_network(epochs=1)
        network.set_weights([found[f"weight_{place}"] for place in range(len(network.weights))])
        digits = Digits(0, 64)
        quantized = fake_quantized(network, {name: tuple(each) for name, each in facts["ranges"].items()}, COARSE)
        ours, theirs = predict_logits(quantized, digits.pixels), found["logits"]
    assert facts["backend"] == "jax"
    # A value halfway between two levels may go either way.
    assert np.median(np.abs(ours - theirs)) < 0.02 * np.ptp(theirs)
    assert facts["rounding_errors"][0] < 0.9 * facts["nearest_errors"][0]
    assert facts["losses"][-1] < facts["losses"][0]
    assert facts["moved_ranges"] > 0

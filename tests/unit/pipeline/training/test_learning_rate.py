from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.training.config import TrainConfig
from pipeline.training.learning_rate import Explosion, draw, smoothed, suggest, sweep
from pipeline.training.words import augmentation_words, extra_words


def valley(rates: np.ndarray, *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A loss that falls around 0.003, is lowest at 0.1 and rises after it."""
    position = np.log10(rates)
    loss = 2.3 - 1.5 / (1 + np.exp(-4 * (position + 2.5))) + np.exp(6 * (position + 0.2))
    return loss + noise * np.random.default_rng(seed).normal(size=len(rates))


def test_rates_grow_by_the_same_factor() -> None:
    rates = sweep(1e-6, 10.0, 141)

    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(10.0)
    assert np.ptp(rates[1:] / rates[:-1]) < 1e-12


def test_smoothing_keeps_a_line_inside_and_shifts_no_minimum() -> None:
    line = np.linspace(3.0, 1.0, 60)
    assert smoothed(line)[15:-15] == pytest.approx(line[15:-15])
    dip = np.abs(np.arange(61) - 30.0)
    assert smoothed(dip).argmin() == 30


@pytest.mark.parametrize("seed", range(5))
def test_the_suggestion_stands_a_decade_below_the_floor(seed: int) -> None:
    rates = sweep(1e-6, 1.0, 120)
    found = suggest(rates, valley(rates, noise=0.05, seed=seed))

    assert 0.004 < found.lowest < 0.2
    assert found.suggested == pytest.approx(found.lowest / 10)
    assert 0.0008 < found.steepest < 0.02
    assert found.fell


def test_a_ragged_floor_counts_from_its_beginning() -> None:
    """Two dips of about the same depth: which is lower is chance, and the higher rate is the more dangerous one."""
    rates = sweep(1e-4, 1.0, 80)
    losses = np.full(80, 2.0)
    losses[:20] = 2.5
    losses += 0.1 * np.random.default_rng(0).normal(size=80)
    losses[70] -= 0.1

    assert suggest(rates, losses).lowest < 0.02


def test_a_loss_that_does_not_fall_is_told() -> None:
    rates = sweep(1e-6, 1.0, 100)
    losses = 2.3 + 0.1 * np.random.default_rng(1).normal(size=100)

    assert not suggest(rates, losses).fell


@pytest.mark.parametrize(
    "losses",
    [[2.0, math.nan], [2.0, math.inf], [2.0, 99.0], [2.3] * 9 + [0.2] * 60 + [1.5] * 40, [2.0] * 20 + [3.0] * 30],
    ids=["nan", "inf", "jump", "far-above-the-lowest", "worse-than-untrained"],
)  # fmt: skip
def test_an_explosion_is_seen(losses: list[float]) -> None:
    explosion = Explosion()
    seen = [explosion.has_come(loss) for loss in losses]

    assert any(seen)
    assert not seen[0]


def test_noise_is_no_explosion() -> None:
    explosion = Explosion()
    losses = 2.3 + 0.3 * np.random.default_rng(0).normal(size=200) - np.linspace(0, 1, 200)

    assert not any(explosion.has_come(loss) for loss in losses.tolist())


def test_the_picture_shows_the_curve_and_three_rates(tmp_path: Path) -> None:
    rates = sweep(1e-6, 1.0, 100)
    losses = valley(rates)
    draw(tmp_path / "curve.png", rates, losses.tolist(), suggest(rates, losses), recipe=0.003)
    draw(tmp_path / "curve.svg", rates, losses.tolist(), suggest(rates, losses), recipe=0.003)

    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (1200, 675)
        colors = {color[:3] for _, color in picture.convert("RGB").getcolors(2**20) or ()}
    assert {(0x1F, 0x4E, 0x79), (0x2E, 0x7D, 0x32), (0xC0, 0x5A, 0x00)} <= colors
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_a_train_section_in_words() -> None:
    plain = TrainConfig(epochs=4)
    assert augmentation_words(plain.augmentation) == ["shift by 10 %"]
    assert extra_words(plain) == []
    rich = TrainConfig.model_validate(
        {
            "epochs": 10,
            "clip_norm": 5.0,
            "sampling": "balanced",
            "averaging": {"decay": 0.99},
            "freeze": {"until": "head", "epochs": 2},
            "early_stopping": {"patience_epochs": 3},
            "progressive": {"stages": 2},
            "teacher": {"path": "teacher.keras", "temperature": 2.0},
            "augmentation": {
                "shift": 0.0,
                "flip": True,
                "crop": {"min_area": 0.25},
                "rand_augment": {"num_ops": 2, "magnitude": 9},
                "mixup": 0.2,
                "brightness": 0.4,
            },
        }
    )
    assert augmentation_words(rich.augmentation) == [
        "crop from 25 % of the area",
        "flip",
        "brightness 0.4",
        "RandAugment 2 x 9",
        "mixup 0.2",
    ]
    assert extra_words(rich) == [
        "averaged weights (decay 0.99)",
        "gradients clipped at 5",
        "balanced sampling",
        "layers up to head frozen for 2 epochs",
        "2 stages of growing images",
        "distilled from teacher.keras (temperature 2)",
        "ends after 3 epochs without a better result",
    ]

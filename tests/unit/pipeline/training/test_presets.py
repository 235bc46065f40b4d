"""Presets: the papers' numbers, and what a recipe says beside them holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

import models
from pipeline.errors import RecipeError
from pipeline.network import ModelConfig
from pipeline.recipe import Recipe, load_recipes
from pipeline.training.config import TrainConfig
from pipeline.training.presets import PRESET_MODELS, PRESETS, PresetName

RECIPE = """\
name: small
data: {source: digits, size: [32, 32]}
model: {name: efficientnet_b0}
train: {preset: efficientnet_paper}
"""


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipes(path, overrides)[0]


def test_every_name_has_its_values() -> None:
    assert set(PRESETS) == set(PRESET_MODELS) == set(get_args(PresetName))


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_a_training(name: PresetName) -> None:
    config = TrainConfig(preset=name)
    assert config.preset == name
    for key, value in PRESETS[name].items():
        if not isinstance(value, dict):
            assert getattr(config, key) == value
    for network in ("mobilenet_v2", "efficientnet_b0", "mobilenet_v4_conv_small"):
        known = {key: value for key, value in PRESET_MODELS[name].items() if key != "drop_path"}
        ModelConfig(name=network, **known)


@pytest.mark.parametrize(
    ("preset", "batch", "peak"),
    [
        ("mobilenet_v2_paper", 768, 0.36),  # 8 GPUs
        ("efficientnet_paper", 2048, 0.128),
        ("mobilenet_v4_paper", 4096, 0.004),
        ("finetune", 512, 0.001),
        ("quick", 64, 0.003),
    ],
)
def test_the_papers_batch_gives_the_papers_learning_rate(preset: PresetName, batch: int, peak: float) -> None:
    assert TrainConfig(preset=preset, batch_size=batch).peak_learning_rate() == pytest.approx(peak)
    summed = TrainConfig(preset=preset, batch_size=batch // 4, accumulate_steps=4)
    assert summed.peak_learning_rate() == pytest.approx(peak)


def test_what_is_given_beside_a_preset_holds() -> None:
    config = TrainConfig.model_validate(
        {
            "preset": "efficientnet_paper",
            "epochs": 12,
            "averaging": None,
            "augmentation": {"flip": False, "crop": {"min_area": 0.5}},
        }
    )
    assert config.epochs == 12
    assert config.averaging is None
    assert config.augmentation.flip is False
    assert config.augmentation.crop is not None
    assert config.augmentation.crop.min_area == 0.5
    assert config.augmentation.rand_augment is not None, "the preset's other values stay"
    assert config.optimizer == "rmsprop"


def test_another_optimizer_does_not_take_over_what_belongs_to_the_preset_s() -> None:
    config = TrainConfig(preset="mobilenet_v2_paper", optimizer="adamw")
    assert config.epsilon is None
    assert config.weight_decay == 4e-5
    assert TrainConfig(preset="mobilenet_v2_paper", optimizer="rmsprop").epsilon == 1.0


def test_the_model_section_takes_what_belongs_to_the_training(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    assert isinstance(recipe.model, ModelConfig)
    assert (recipe.model.drop_path, recipe.model.batch_norm_momentum) == (0.2, 0.99)
    assert recipe.train.learning_rate == 0.016
    given = load(tmp_path, RECIPE, "model.drop_path=0.1", "model.batch_norm_momentum=null", "train.epochs=7")
    assert isinstance(given.model, ModelConfig)
    assert (given.model.drop_path, given.model.batch_norm_momentum, given.train.epochs) == (0.1, None, 7)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0"])
def test_networks_take_what_they_have(tmp_path: Path, name: str) -> None:
    recipe = load(tmp_path, RECIPE, f"model.name={name}")
    assert isinstance(recipe.model, ModelConfig)
    assert (recipe.model.drop_path is not None) == (models.find(name).drop_path is not None)
    assert recipe.model.batch_norm_momentum == 0.99


@pytest.mark.parametrize("model", ["{family: mobilenet_v2, budget: {parameters: 5M}}", "{name: fake}"])
def test_other_forms_of_the_model_section(tmp_path: Path, model: str) -> None:
    targets = "export: {targets: [fake]}\ndevices: [fake]\n" if "fake" in model else ""
    recipe = load(tmp_path, RECIPE.replace("{name: efficientnet_b0}", model) + targets)
    values = recipe.model.model_dump()
    assert values["batch_norm_momentum"] == (None if "fake" in model else 0.99)


def test_a_recipe_without_a_preset_is_left_alone(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE.replace("{preset: efficientnet_paper}", "{epochs: 3}"))
    assert isinstance(recipe.model, ModelConfig)
    assert recipe.model.options() == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("efficientnet_paper", "efficientnet_papers", "train.preset"),
        ("efficientnet_b0", "efficientnet_zero", "model.name"),
        ("{preset: efficientnet_paper}", "{preset: efficientnet_paper, epochs: 4}", "warmup_epochs is 5, but"),
    ],
)
def test_bad_values_are_still_found(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, RECIPE.replace(old, new))


def test_recipe_show_prints_the_resolved_values(workplace: Any) -> None:
    (workplace.directory / "preset.yaml").write_text(RECIPE)
    outcome = workplace.edgeship("recipe", "show", "preset.yaml", "--json")
    assert outcome.code == 0, outcome.stderr
    shown: dict[str, Any] = json.loads(outcome.stdout)
    assert shown["train"]["decay_rate"] == 0.97
    assert shown["train"]["averaging"]["decay"] == 0.9999
    assert shown["model"]["drop_path"] == 0.2

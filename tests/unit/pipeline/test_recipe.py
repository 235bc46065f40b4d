"""Recipes: what is refused at load time, and that the message says where and what to do."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.errors import RecipeError
from pipeline.model_config import BudgetModelConfig, OwnModelConfig
from pipeline.recipe import Recipe, load_recipes, recipe_schema
from pipeline.recipe_matrix import MAX_MATRIX

SHIPPED = sorted((Path(__file__).parents[3] / "models" / "recipes").glob("*.yaml"))

BASE = """\
name: small
data:
  source: digits
  size: [32, 32]
model:
  name: mobilenet_v2
  width: 0.35
"""
FAKE = BASE.replace("mobilenet_v2\n  width: 0.35", "fake") + "export:\n  targets: [fake]\n"


def load(folder: Path, text: str | bytes, *overrides: str) -> list[Recipe]:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipes(path, overrides)


def message_of(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *overrides)
    return caught.value.message.replace(str(folder / "r.yaml"), "r.yaml")


@dataclasses.dataclass(frozen=True)
class Refused:
    """A text, or overrides of the base recipe, and what the message must hold."""

    id: str
    text: str | bytes
    parts: Sequence[str]
    overrides: Sequence[str] = ()


OWN = """\
name: own
model:
  path: net.onnx
"""
BUDGET = """\
name: fitted
data: {source: digits, size: [32, 32]}
model:
  family: mobilenet_v2
  budget: {multiply_adds: 60M}
"""

UNKNOWN_KEYS = [
    Refused("top", BASE + "trian:\n  epochs: 3\n", ["r.yaml, line 8", "unknown key trian", "Did you mean train?"]),
    Refused("data", BASE.replace("  size", "  sedd: 1\n  size"), ["line 4", "data.sedd", "Did you mean seed?"]),
    Refused("model", BASE + "  widht: 1\n", ["line 8", "model.widht", "Did you mean width?"]),
    Refused("train", BASE + "train:\n  epoch: 3\n", ["line 9", "train.epoch", "Did you mean epochs?"]),
    Refused(
        "augmentation",
        BASE + "train:\n  augmentation:\n    shfit: 0.1\n",
        ["line 10", "train.augmentation.shfit", "Did you mean shift?"],
    ),
    Refused("calibrate", BASE + "calibrate:\n  metod: none\n", ["line 9", "calibrate.metod", "Did you mean method?"]),
    Refused(
        "quantization",
        BASE + "quantization:\n  calibration_image: 64\n",
        ["line 9", "Did you mean calibration_images?"],
    ),
    Refused("export", BASE + "export:\n  target: [litert]\n", ["line 9", "Did you mean targets?"]),
    Refused("benchmark", BASE + "benchmark:\n  min_cout: 10\n", ["line 9", "Did you mean min_count?"]),
    Refused("gates", BASE + "gates:\n  min_acc: 0.9\n", ["line 9", "Did you mean min_accuracy?"]),
    Refused(
        "gates.int8", BASE + "gates:\n  int8:\n    max_acc_drop: 0.1\n", ["line 10", "Did you mean max_accuracy_drop?"]
    ),
    Refused("select", BASE + "select:\n  objectiv: size_bytes\n", ["line 9", "Did you mean objective?"]),
    Refused("nothing close", BASE + "zzz: 1\n", ["line 8", "Known here: name, data, model", "matrix"]),
    Refused("number as key", BASE + "train:\n  3: 4\n", ["line 9", "unknown key train.3"]),
    Refused("of another source", BASE.replace("  size", "  path: x\n  size"), ["line 4", "unknown key data.path"]),
]

UNKNOWN_KEYS += [
    Refused("own model", OWN + "  metrik: mse\n", ["line 4", "model.metrik", "Did you mean metric?"]),
    Refused("own input", OWN + "  inputs: [{nam: x}]\n", ["line 4", "model.inputs.0.nam"]),
    Refused("budget model", BUDGET + "  width: 0.5\n", ["line 6", "model.width"]),
    Refused("budget", BUDGET.replace("multiply_adds", "mutiply_adds"), ["line 5", "Did you mean multiply_adds?"]),
]

WRONG_TYPES = [
    Refused("text for a whole number", BASE + 'train:\n  epochs: "3"\n', ['line 9: train.epochs is "3"', "a whole"]),
    Refused("float for a whole number", BASE + "train:\n  epochs: 3.0\n", ["line 9: train.epochs is 3.0", "a whole"]),
    Refused("bool for a whole number", BASE + "train:\n  epochs: true\n", ["train.epochs is true"]),
    Refused("text for a number", BASE + "train:\n  learning_rate: 1/127.5\n", ['learning_rate is "1/127.5"', "number"]),
    Refused("text for a bool", BASE + "train:\n  augmentation:\n    flip: no\n", ['flip is "no"', "true or false"]),
    Refused("number for text", BASE.replace("small", "3"), ["line 1: name is 3", "text", 'in quotes: "3"']),
    Refused("text for a list", BASE + "export:\n  targets: litert\n", ['targets is "litert": expected a list']),
    Refused("null for a section", BASE + "train:\n", ["line 8: train is null: expected a mapping"]),
    Refused("list for a section", BASE + "train: [1]\n", ["line 8: train is [1]: expected a mapping"]),
    Refused("NaN", BASE + "train:\n  learning_rate: .nan\n", ["line 9", "finite"]),
    Refused("infinity", BASE + "train:\n  learning_rate: .inf\n", ["line 9", "finite"]),
    Refused("three sizes", BASE.replace("[32, 32]", "[32, 32, 3]"), ["line 4", "data.size"]),
    Refused("too small", BASE + "train:\n  epochs: -1\n", ["train.epochs is -1", "greater than or equal to 0"]),
    Refused("long value is cut", BASE + f"train:\n  epochs: {'x' * 500}\n", ["x...: expected a whole number"]),
    Refused("tag", BASE + "train: !!python/object:os.system {}\n", ["line 8", "train is tagged", "python/object"]),
    Refused("tagged scalar", BASE + "train:\n  epochs: !foo 3\n", ["line 9", "train.epochs is tagged !foo"]),
    Refused("bytes", BASE + "devices: [!!binary aGVsbG8=]\n", ["line 8", "devices.0"]),
]

MISSING = [
    Refused("name", BASE.replace("name: small\n", ""), ["name is missing", "--set name=VALUE"]),
    Refused("model", BASE.partition("model")[0], ["model is missing"]),
    Refused("model.name", BASE.replace("  name: mobilenet_v2\n", ""), ["line 5", "model.name is missing"]),
    Refused("data.size", BASE.replace("  size: [32, 32]\n", ""), ["line 2", "data.size is missing"]),
    Refused("data.source", BASE.replace("  source: digits\n", ""), ["line 2", "data.source is missing"]),
]

MISSING += [
    Refused("data of a network", BASE.replace("data:\n  source: digits\n  size: [32, 32]\n", ""), ["data is missing"]),
    Refused("budget", BUDGET.replace("  budget: {multiply_adds: 60M}\n", ""), ["model.budget is missing"]),
    Refused("family", BUDGET.replace("  family: mobilenet_v2\n", ""), ["model.family is missing"]),
]

MODEL_FORMS = [
    Refused("train of one's own", OWN + "train: {epochs: 9}\n", ["line 4", "train is given, but model.path"]),
    Refused("calibrate of one's own", OWN + "calibrate: {method: none}\n", ["calibrate is given"]),
    Refused("calibration method", BASE + "calibrate: {method: platt}\n", ["calibrate.method", "isotonic", "vector"]),
    Refused(
        "the key before there were methods",
        BASE + "calibrate:\n  temperature: true\n",
        ["line 9", "calibrate.temperature is now calibrate.method", "method: temperature", "method: none"],
    ),
    Refused("metric on random data", OWN + "  metric: mse\n", ["model.metric is mse", "source: arrays"]),
    Refused(
        "accuracy of int8 on arrays",
        OWN + "data: {source: arrays, path: x.npz}\nquantization: {accuracy: {}}\n",
        ["quantization.accuracy is judged on validation images"],
    ),
    Refused("fake target", OWN + "export: {targets: [fake]}\n", ["export.targets names fake"]),
    Refused("two unnamed inputs", OWN + "  inputs: [{}, {}]\n", ["model.inputs has 2 entries", "needs a name"]),
    Refused("layout", OWN + "  inputs: [{layout: CHWN}]\n", ["model.inputs.0.layout"]),
    Refused(
        "arrays for a network", BASE.replace("digits\n  size: [32, 32]", "arrays\n  path: x.npz"), ["serves a model"]
    ),
    Refused("random range", OWN + "data: {source: random, low: 2, high: 1}\n", ["high is 1, but low is 2"]),
    Refused("no limit", BUDGET.replace("{multiply_adds: 60M}", "{}"), ["sets no limit", "size_bytes"]),
    Refused("no amount", BUDGET.replace("60M", "sixty"), ["model.budget.multiply_adds", "'sixty' is no amount"]),
    Refused("unknown family", BUDGET.replace("mobilenet_v2", "mobilnet_v2"), ["model.family", "mean 'mobilenet_v2'?"]),
    Refused("phi without compound scaling", BASE.replace("width: 0.35", "phi: 1"), ["no compound scaling"]),
    Refused("depth", BASE.replace("width: 0.35", "depth: 2.0"), ["depth is 2.0", "no depth multiplier"]),
    Refused("no epochs, no weights", BASE + "train: {epochs: 0}\n", ["train.epochs is 0", "not given"]),
    Refused("activation", BASE.replace("width: 0.35", "activation: mish"), ["model.activation", "hard_swish"]),
]


@pytest.mark.parametrize("case", MODEL_FORMS, ids=lambda case: case.id)
def test_model_section_refused(tmp_path: Path, case: Refused) -> None:
    message = message_of(tmp_path, case.text, *case.overrides)
    for part in case.parts:
        assert part in message, message


def test_a_model_of_ones_own_needs_no_data(tmp_path: Path) -> None:
    (recipe,) = load(tmp_path, OWN)
    assert (recipe.data.source, type(recipe.model).__name__) == ("random", "OwnModelConfig")


def test_several_inputs_are_described(tmp_path: Path) -> None:
    text = OWN + "  inputs: [{name: a, shape: [1, 8], dtype: int32}, {name: b, scale: [1, 2, 3], layout: NCHW}]\n"
    (recipe,) = load(tmp_path, text)
    assert isinstance(recipe.model, OwnModelConfig)
    assert recipe.model.inputs[0].shape == (1, 8)
    assert recipe.model.inputs[1].scale == (1.0, 2.0, 3.0)


def test_a_budget_is_read_in_its_units(tmp_path: Path) -> None:
    (recipe,) = load(tmp_path, BUDGET.replace("{multiply_adds: 60M}", "{parameters: 1.5M, size_bytes: 2MiB}"))
    assert isinstance(recipe.model, BudgetModelConfig)
    assert recipe.model.budget.limits() == {"parameters": 1_500_000, "size_bytes": 2 * 2**20}


UNKNOWN_NAMES = [
    Refused("source", BASE.replace("digits", "digit"), ["data.source is 'digit'", "image_folder", "mean digits?"]),
    Refused("network", BASE.replace("net_v2", "net_v3"), ["line 6", "'mobilenet_v3'", "mean 'mobilenet_v3_small' or"]),
    Refused("target", BASE + "export:\n  targets: [litrt]\n", ["line 9", '"litrt"', "Did you mean litert?"]),
    Refused("precision", BASE + "export:\n  precisions: [int16]\n", ["line 9", "Did you mean int16x8?"]),
    Refused("optimizer", BASE + "train:\n  optimizer: adam\n", ["line 9", "Did you mean adamw?"]),
    Refused("backend", BASE + "train:\n  backend: tensorflo\n", ["line 9", "Did you mean tensorflow?"]),
    Refused("objective", BASE + "select:\n  objective: latency_p9_ms\n", ["line 9", "Did you mean latency_p99_ms?"]),
]

COMBINATIONS = [
    Refused("warm-up", BASE + "train:\n  epochs: 2\n", ["line 8: warmup_epochs is 2", "2 epochs"]),
    Refused("warm-up by --set", BASE, ["--set train.epochs=1: warmup_epochs is 2"], ["train.epochs=1"]),
    Refused(
        "warm-up in the file, --set beside it",
        BASE + "train:\n  warmup_epochs: 5\n",
        ["line 9 (with --set train.epochs=4): warmup_epochs is 5"],
        ["train.epochs=4"],
    ),
    Refused(
        "warm-up of quantization-aware training",
        BASE + "quantization: {accuracy: {training: {epochs: 1, warmup_epochs: 3}}}\n",
        ["warmup_epochs is 3, but quantization-aware training has 1 epochs"],
    ),
    Refused("momentum", BASE + "train:\n  momentum: 0.9\n", ["line 9: momentum belongs to optimizer: sgd"]),
    Refused("width", BASE.replace("mobilenet_v2", "efficientnet_lite0"), ["line 7: width is 0.35", "no width"]),
    Refused("fake network, real target", BASE.replace("mobilenet_v2\n  width: 0.35", "fake"), ["set export.targets"]),
    Refused("fake target, real network", BASE + "export:\n  targets: [fake]\n", ["line 9: export.targets names fake"]),
    Refused(
        "fake target among real ones", BASE + "export:\n  targets: [litert, fake]\n", ["line 9: export.targets names"]
    ),
    Refused("fake network, option", FAKE.replace("fake\n", "fake\n  dropout: 0.1\n", 1), ["line 7: dropout belongs"]),
    Refused("image size", BASE.replace("[32, 32]", "[32, 31]"), ["line 4: data.size is [32, 31]", "at least 32"]),
    Refused(
        "target twice", BASE + "export:\n  targets: [litert, litert]\n", ["line 9: export.targets names one twice"]
    ),
    Refused("precision twice", BASE + "export:\n  precisions: [int8, int8]\n", ["export.precisions names one twice"]),
    Refused("device twice", BASE + "devices: [local, local]\n", ["line 8: devices names one twice"]),
    Refused("device twice, fake", FAKE + "devices: [fake, fake]\n", ["devices names one twice"]),
    Refused("no device", BASE + "devices: []\n", ["line 8: devices is []", "at least one"]),
    Refused("empty device", BASE + "devices: ['']\n", ["line 8", "devices.0"]),
    Refused("no target", BASE + "export:\n  targets: []\n", ["export.targets is empty"]),
    Refused("no precision", BASE + "export:\n  precisions: []\n", ["export.precisions is empty"]),
    Refused("calibration", BASE + "quantization:\n  calibration_images: 63\n", ["line 9", "is 63", "equal to 64"]),
    Refused("times", BASE + "benchmark:\n  max_time_s: 0.5\n", ["line 9: benchmark.max_time_s (0.5) is shorter"]),
    Refused("fractions", BASE.replace("  size", "  test_fraction: 0.9\n  size"), ["leave no images for training"]),
    Refused("gate above 1", BASE + "gates:\n  min_accuracy: 97\n", ["gates.min_accuracy is 97", "equal to 1"]),
    Refused("name with a path", BASE.replace("small", "../x"), ["line 1", '"../x"', "pattern"]),
    Refused("name with a line end", BASE.replace("small", '"a\\n"'), ["line 1", "pattern"]),
    Refused("long name", BASE.replace("small", "a" * 101), ["line 1", "100"]),
]

BAD_TEXT = [
    Refused("key twice", BASE + "name: b\n", ["line 8", 'duplicate key "name"', "only once"]),
    Refused("nested key twice", BASE + "train:\n  epochs: 3\n  epochs: 4\n", ["line 10", 'duplicate key "epochs"']),
    Refused("tab", BASE + "train:\n\tepochs: 3\n", ["line 9", "no valid YAML"]),
    Refused("open bracket", BASE + "devices: [a\n", ["no valid YAML"]),
    Refused("empty", "", ["holds nothing", "expected a mapping"]),
    Refused("only a comment", "# x\n", ["holds nothing"]),
    Refused("list", "- a\n", ["holds a list"]),
    Refused("text", "hello\n", ["holds the text 'hello'"]),
    Refused("not UTF-8", BASE.encode() + b"# \xff\n", ["can't be read", "UTF-8"]),
    Refused("NUL", BASE.encode() + b"x: \x00\n", ["no valid YAML"]),
    Refused("two documents", BASE + "---\nname: b\n", ["line 8", "another document"]),
    Refused("unknown alias", BASE + "train: *t\n", ["line 8", "undefined alias"]),
    Refused("deep", "a: " + "[" * 500 + "]" * 500, ["nested too deeply"]),
]

OVERRIDES = [
    Refused("no value", BASE, ["--set train.epochs: expected KEY=VALUE"], ["train.epochs"]),
    Refused("no key", BASE, ["--set =3: expected KEY=VALUE"], ["=3"]),
    Refused("empty part", BASE, ["--set train..epochs=3: expected"], ["train..epochs=3"]),
    Refused("unknown key", BASE, ["--set train.epoch=3", "Did you mean epochs?"], ["train.epoch=3"]),
    Refused("unknown section", BASE, ["--set trian.epochs=3", "Did you mean train?"], ["trian.epochs=3"]),
    Refused("wrong type", BASE, ['--set train.epochs=x: train.epochs is "x"'], ["train.epochs=x"]),
    Refused("nothing", BASE, ["--set train.epochs=: train.epochs is null"], ["train.epochs="]),
    Refused("entry of a list", BASE, ["--set export.targets=[litrt]", "mean litert?"], ["export.targets=[litrt]"]),
    Refused("no YAML", BASE, ["--set devices=[a: this is no YAML value"], ["devices=[a"]),
    Refused("deep", BASE, ["nested too deeply"], ["train=" + "[" * 500]),
    Refused("below text", BASE, ['--set name.x=3: name is "small", which has no keys'], ["name.x=3"]),
    Refused("below a list", BASE + "devices: [local]\n", ["--set devices.0=fake: devices is"], ["devices.0=fake"]),
]


@pytest.mark.parametrize(
    "case",
    [*UNKNOWN_KEYS, *WRONG_TYPES, *MISSING, *UNKNOWN_NAMES, *COMBINATIONS, *BAD_TEXT, *OVERRIDES],
    ids=lambda case: case.id,
)
def test_refused_with_a_message(tmp_path: Path, case: Refused) -> None:
    message = message_of(tmp_path, case.text, *case.overrides)
    for part in case.parts:
        assert part in message
    assert len(message) < 500


def test_every_problem_is_named(tmp_path: Path) -> None:
    message = message_of(tmp_path, BASE + "train:\n  epoch: 3\n  seed: x\n")
    assert sorted(re.findall(r"line \d+: [a-z ]*train\.\w+", message)) == [
        "line 10: train.seed",
        "line 9: unknown key train.epoch",
    ]


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(BASE)
    with pytest.raises(RecipeError, match=r"There is no recipe .*none\.yaml.*other\.yaml"):
        load_recipes(tmp_path / "none.yaml")


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipes(tmp_path)


def test_exponents_and_whole_numbers_are_floats(tmp_path: Path) -> None:
    (recipe,) = load(tmp_path, BASE + "train:\n  learning_rate: 1e-3\n  weight_decay: 0\n")
    assert recipe.train.learning_rate == 0.001
    assert recipe.train.weight_decay == 0.0


def test_words_stay_text(tmp_path: Path) -> None:
    """YAML 1.1 reads `no` as false and `01` as 1; a device or a class of that name is text."""
    (recipe,) = load(tmp_path, BASE + "devices: [no, off, y, '01', 2024-01-02]\n")
    assert recipe.devices == ("no", "off", "y", "01", "2024-01-02")
    assert "in quotes" in message_of(tmp_path, BASE + "devices: [01]\n")


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = BASE + "gates:\n  float16: &half\n    min_snr_db: 20\n  int8:\n    <<: *half\n    max_accuracy_drop: 0.1\n"
    (recipe,) = load(tmp_path, text)
    assert recipe.gates.int8.min_snr_db == 20
    assert recipe.gates.int8.max_accuracy_drop == 0.1


def test_alias_inside_itself_is_refused(tmp_path: Path) -> None:
    assert message_of(tmp_path, BASE + "devices: &d [*d]\n")


def test_frozen(tmp_path: Path) -> None:
    (recipe,) = load(tmp_path, BASE)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "x"
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.epochs = 3


def test_overrides(tmp_path: Path) -> None:
    overrides = [
        "train.epochs=3",
        "train.augmentation.flip=true",
        "export.targets=[litert, openvino]",
        "name=other",
        "gates={min_accuracy: 0.5}",
        "gates.int8.min_snr_db=-1.5",
    ]
    (recipe,) = load(tmp_path, BASE + "train:\n  epochs: 9\n", *overrides)
    assert recipe.train.epochs == 3
    assert recipe.train.augmentation.flip is True
    assert recipe.export.targets == ("litert", "openvino")
    assert recipe.name == "other"
    assert (recipe.gates.min_accuracy, recipe.gates.int8.min_snr_db) == (0.5, -1.5)


def test_the_last_override_wins(tmp_path: Path) -> None:
    (recipe,) = load(tmp_path, BASE, "train.epochs=3", "train.epochs=4")
    assert recipe.train.epochs == 4


def test_override_below_an_empty_section(tmp_path: Path) -> None:
    (recipe,) = load(tmp_path, BASE + "train:\n", "train.epochs=3")
    assert recipe.train.epochs == 3


def test_override_with_equal_signs(tmp_path: Path) -> None:
    text = BASE.replace("digits", "image_folder\n  path: x")
    (recipe,) = load(tmp_path, text, "data.path=a=b/c d")
    assert str(recipe.data.path) == "a=b/c d"


def test_matrix_expands_in_order(tmp_path: Path) -> None:
    recipes = load(tmp_path, BASE + "matrix:\n  train.seed: [1, 2]\n  model.width: [0.35, 0.5]\n")
    assert [(r.train.seed, r.model.width) for r in recipes] == [(1, 0.35), (1, 0.5), (2, 0.35), (2, 0.5)]
    assert [r.name for r in recipes] == [
        "small-seed_1-width_0.35",
        "small-seed_1-width_0.5",
        "small-seed_2-width_0.35",
        "small-seed_2-width_0.5",
    ]


def test_matrix_of_lists_sections_and_negative_numbers(tmp_path: Path) -> None:
    text = BASE + (
        "matrix:\n  export.targets: [[litert], [litert, openvino]]\n  gates.int8: [{min_snr_db: 1}]\n"
        "  gates.float16.min_snr_db: [-1, 1]\n"
    )
    recipes = load(tmp_path, text)
    assert [r.name for r in recipes] == [
        "small-targets_litert-int8_min_snr_db_1-min_snr_db_-1",
        "small-targets_litert-int8_min_snr_db_1-min_snr_db_1",
        "small-targets_litert_openvino-int8_min_snr_db_1-min_snr_db_-1",
        "small-targets_litert_openvino-int8_min_snr_db_1-min_snr_db_1",
    ]


def test_matrix_names_tell_keys_and_values_apart(tmp_path: Path) -> None:
    text = BASE + "matrix:\n  gates.int8.min_snr_db: [1]\n  gates.float16.min_snr_db: [2]\n  devices: [[a_b], [a, b]]\n"
    assert [r.name for r in load(tmp_path, text)] == [
        "small-int8.min_snr_db_1-float16.min_snr_db_2-devices_a_b",
        "small-int8.min_snr_db_1-float16.min_snr_db_2-devices_a_b_2",
    ]


def test_override_fixes_what_the_matrix_varies(tmp_path: Path) -> None:
    text = BASE + "matrix:\n  train.seed: [1, 2]\n  model.width: [0.35, 0.5]\n"
    recipes = load(tmp_path, text, "train.seed=7")
    assert [(r.name, r.train.seed) for r in recipes] == [("small-seed_7-width_0.35", 7), ("small-seed_7-width_0.5", 7)]


def test_override_of_the_matrix(tmp_path: Path) -> None:
    text = BASE + "matrix:\n  train.seed: [1, 2]\n"
    assert [r.train.seed for r in load(tmp_path, text, "matrix.train.seed=[3, 4, 5]")] == [3, 4, 5]
    assert [r.model.width for r in load(tmp_path, BASE, "matrix={model.width: [0.35, 1.0]}")] == [0.35, 1.0]


MATRIX_ERRORS = [
    Refused("number", "\n  train.seed: 1\n", ["line 9: matrix.train.seed is 1", "a list of values"]),
    Refused("empty list", "\n  train.seed: []\n", ["matrix.train.seed is []"]),
    Refused("empty", " {}\n", ["line 8: matrix is {}"]),
    Refused("null", "\n", ["line 8: matrix is null"]),
    Refused("list", " [1]\n", ["matrix is [1]"]),
    Refused("unknown key", "\n  train.sede: [1]\n", ["line 9: unknown key train.sede", "Did you mean seed?"]),
    Refused("wrong type", "\n  train.seed: [1, x]\n", ['train.seed is "x"', "the combination seed_x"]),
    Refused("combination", "\n  train.epochs: [5, 1]\n", ["line 9: warmup_epochs is 2", "combination epochs_1"]),
    Refused("below text", "\n  data.source.x: [1]\n", ["line 9", 'data.source is "digits"', "no keys"]),
    Refused("name", "\n  name: [a, b]\n", ["line 9: the matrix can't vary name"]),
    Refused("itself", "\n  matrix: [1]\n", ["the matrix can't vary matrix"]),
    Refused("overlap", "\n  train: [{epochs: 5}]\n  train.seed: [1]\n", ["varies train and, inside it, train.seed"]),
    Refused("empty part", "\n  train..seed: [1]\n", ["'train..seed'; expected a dotted key"]),
    Refused("value twice", "\n  train.seed: [1, 2, 1]\n", ["matrix.train.seed names 1 twice"]),
    Refused("too large", f"\n  train.seed: {list(range(MAX_MATRIX + 1))}\n", [f"at most {MAX_MATRIX}"]),
    Refused("--set around", "\n  train.seed: [1]\n", ["--set train={}: the matrix of"], ["train={}"]),
    Refused("--set inside", "\n  train: [{epochs: 5}]\n", ["varies train. Set that key"], ["train.seed=1"]),
]


@pytest.mark.parametrize("case", MATRIX_ERRORS, ids=lambda case: case.id)
def test_matrix_refused_with_a_message(tmp_path: Path, case: Refused) -> None:
    message = message_of(tmp_path, f"{BASE}matrix:{case.text}", *case.overrides)
    for part in case.parts:
        assert part in message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_fit_the_schema(path: Path) -> None:
    overrides = ["data.path=images"] if "image_folder" in path.stem else []
    (recipe,) = load_recipes(path, overrides)
    assert recipe.name == path.stem
    data = json.loads(json.dumps(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))))
    for override in overrides:
        data["data"]["path"] = override.partition("=")[2]
    check_against_schema(data, recipe_schema(), recipe_schema()["$defs"])


def check_against_schema(value: Any, schema: Any, definitions: Any) -> None:
    """Follows the parts of JSON Schema that describe mappings: every key is known, every required key is there."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "oneOf" in schema:
        if "discriminator" in schema:
            chosen = schema["discriminator"]["mapping"][value[schema["discriminator"]["propertyName"]]]
            schema = definitions[chosen.rpartition("/")[2]]
        else:
            members = [definitions[member["$ref"].rpartition("/")[2]] for member in schema["oneOf"]]
            (schema,) = [member for member in members if set(member["required"]) <= set(value)]
    if schema.get("type") == "object" and "properties" in schema:
        assert schema["additionalProperties"] is False
        assert set(value) <= set(schema["properties"])
        assert set(schema.get("required", ())) <= set(value)
        for key, item in value.items():
            check_against_schema(item, schema["properties"][key], definitions)
    elif "enum" in schema:
        assert value in schema["enum"]
    elif schema.get("type") == "array":
        assert isinstance(value, list)
        for item in value:
            check_against_schema(item, schema.get("items") or {}, definitions)


def test_schema_says_what_fields_mean() -> None:
    schema = recipe_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert {"matrix", *Recipe.model_fields} == set(schema["properties"])
    described = schema["$defs"]["TrainConfig"]["properties"]
    assert described["epochs"]["description"].startswith("Passes over the training split")
    for name in ("TrainConfig", "ExportConfig", "BenchmarkConfig", "GatesConfig", "ParityGates", "ModelConfig"):
        for key, field in schema["$defs"][name]["properties"].items():
            assert field.get("description") or "$ref" in field, f"{name}.{key}"


finite = st.floats(min_value=1e-6, max_value=1e6, allow_nan=False)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    epochs = draw(st.integers(1, 500))
    optimizer = draw(st.sampled_from(["adamw", "sgd"]))
    train = {
        "epochs": epochs,
        "warmup_epochs": draw(st.floats(0, epochs, exclude_max=True)),
        "optimizer": optimizer,
        "learning_rate": draw(finite),
        "seed": draw(st.integers(0, 2**31 - 1)),
    }
    if optimizer == "sgd" and draw(st.booleans()):
        train["momentum"] = draw(st.floats(0, 1, exclude_max=True))
    return {
        "name": draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,99}", fullmatch=True)),
        "data": {"source": "digits", "size": [draw(st.integers(32, 512)), draw(st.integers(32, 512))]},
        "model": {"name": "mobilenet_v2", "width": draw(st.floats(0.01, 4)), "early_stride": draw(st.booleans())},
        "train": train,
        "export": {
            "targets": draw(st.lists(st.sampled_from(["litert", "onnxruntime", "openvino"]), min_size=1, unique=True)),
            "precisions": draw(st.lists(st.sampled_from(["float32", "float16", "int8"]), min_size=1, unique=True)),
        },
        "gates": {"min_accuracy": draw(st.none() | st.floats(0, 1)), "int8": {"min_snr_db": draw(st.none() | finite)}},
        "devices": draw(st.lists(st.text("abno019.-", min_size=1), min_size=1, max_size=3, unique=True)),
    }


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=recipes())
def test_a_recipe_dumps_and_loads_to_itself(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "r.yaml"
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(data, stream)
    (recipe,) = load_recipes(path)
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(recipe.model_dump(mode="json"), stream)
    assert load_recipes(path) == [recipe]

"""`edgeship models`: what it prints for people and for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import models
from pipeline.cli import main
from pipeline.model_tables import readable_bytes, readable_count

WIDTH = 120
ROW_FIELDS = {"name", "family", "variant", "parameters", "multiply_adds", "peak_activation_bytes", "resolution", "top1",
              "source"}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands choose a backend; the other tests keep theirs."""
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def edgeship(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def answer(*arguments: str | Path) -> dict[str, Any]:
    result = edgeship(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_list_json_of_a_family() -> None:
    rows = answer("list", "--family", "mobilenet_v3")["models"]
    assert [row["name"] for row in rows] == [
        name for name, spec in models.MODELS.items() if spec.family == "mobilenet_v3"
    ]
    for row in rows:
        assert set(row) >= ROW_FIELDS
        assert row["resolution"] == [224, 224]
        assert row["peak_activation_bytes"] > row["peak_activation_bytes_int8"] > 0
    [large] = [row for row in rows if row["name"] == "mobilenet_v3_large"]
    assert (large["variant"], large["top1"], large["dataset"]) == ("large", 75.2, "ImageNet")
    assert large["multiply_adds"] == 216_589_760


def test_list_of_an_unknown_family() -> None:
    result = edgeship("list", "--family", "resnet")
    assert result.exit_code == 2
    assert "no family 'resnet', expected one of" in result.stderr
    assert "mobilenet_v2" in result.stderr


def test_list_fits_a_terminal_and_names_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """All networks, with the costs of one of the largest."""
    costs = models.describe("mobilenet_v3_large_minimalistic")

    def quick(name: str, **options: Any) -> dict[str, Any]:
        spec = models.MODELS[name]
        image = spec.input_kind == "image"
        return {
            **costs,
            "name": name,
            "family": spec.family,
            "input_shape": list(spec.input_shape),
            "resolution": list(spec.input_shape[:2]) if image else None,
            "top1": spec.top1,
            "source": spec.source,
            "dataset": spec.dataset,
        }

    monkeypatch.setattr(models, "describe", quick)
    result = edgeship("list")

    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    for name, spec in models.MODELS.items():
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        shape = spec.input_shape[:2] if spec.input_kind == "image" else spec.input_shape
        assert "x".join(map(str, shape)) in line
        source = f"{spec.dataset}: {spec.source}"
        number = line.split()[-1]
        assert " ".join(f"{number}  {source}".split()) in " ".join(result.stdout.split())
    assert max(map(len, lines)) <= WIDTH


def test_show_json_has_the_layers_and_the_paper() -> None:
    facts = answer("show", "mobilenet_v2", "--size", "96", "96", "--width", "0.35")
    assert set(facts) >= ROW_FIELDS | {"paper", "options", "layers"}
    assert facts["top1"] == 45.5
    assert "arXiv:1801.04381, table 2" in facts["paper"]
    assert facts["options"]["width"] is True
    assert facts["options"]["depth"] == "no depth multiplier"
    layers = {layer["name"]: layer for layer in facts["layers"]}
    assert set(layers["logits"]) == {"name", "type", "output_shape", "parameters", "multiply_adds", "alive_bytes"}
    assert sum(layer["multiply_adds"] for layer in facts["layers"]) == facts["multiply_adds"]
    assert sum(layer["parameters"] for layer in facts["layers"]) == facts["parameters"]
    alive = {name: layer["alive_bytes"] for name, layer in layers.items() if layer["alive_bytes"] is not None}
    assert alive[facts["peak_activation_layer"]] == max(alive.values()) == facts["peak_activation_bytes"]
    assert layers["stem_conv_bn"]["alive_bytes"] is None


def test_show_takes_every_option() -> None:
    arguments = ("--size", 64, 48, "--width", 0.5, "--classes", 7, "--activation", "hard_swish", "--squeeze-excite")
    facts = answer("show", "mobilenet_v2", *map(str, arguments), "--no-early-stride")
    assert facts["resolution"] == [64, 48]
    assert facts["input_shape"] == [64, 48, 3]
    assert (facts["width"], facts["num_classes"], facts["activation"]) == (0.5, 7, "hard_swish")
    assert (facts["squeeze_excite"], facts["early_stride"], facts["top1"]) == (True, False, None)
    assert facts["variant"] == "0.5"
    assert facts["source"].startswith("not published for this")
    deeper = answer("show", "efficientnet_b0", "--size", "64", "64", "--depth", "1.1")
    assert deeper["variant"] == "b0 depth 1.1"


def test_show_prints_facts_and_layers() -> None:
    result = edgeship("show", "mobilenet_v2", "--size", "96", "96", "--width", "0.35")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "published top-1 45.5 % on ImageNet; tensorflow/models" in text
    assert "without depth (no depth multiplier), drop_path (no stochastic depth)" in text
    assert "block_03_expand" in text
    assert max(map(len, result.stdout.splitlines())) <= WIDTH


def test_features_have_a_shape_and_no_size() -> None:
    names = [name for name, spec in models.MODELS.items() if spec.input_kind == "features"]
    assert names
    for name in names:
        facts = answer("show", name)
        assert facts["resolution"] is None
        assert facts["input_shape"] == list(models.MODELS[name].input_shape)
        refused = edgeship("show", name, "--size", "96", "96")
        assert refused.exit_code == 2
        assert "takes features of the shape" in refused.stderr


@dataclass(frozen=True)
class RefusedCase:
    id: str
    arguments: tuple[str, ...]
    message: str


REFUSED = [
    RefusedCase("unknown", ("show", "mobilenet_v22"), "Did you mean 'mobilenet_v2'?"),
    RefusedCase("depth", ("show", "mobilenet_v2", "--depth", "2"), "has no depth multiplier"),
    RefusedCase("activation", ("show", "mobilenet_v2", "--activation", "tanh"), "activation is 'tanh'"),
    RefusedCase("size", ("show", "mobilenet_v2", "--size", "8", "8"), "at least 32 whole pixels"),
    RefusedCase("neither", ("scale", "efficientnet"), "either --phi or limits"),
    RefusedCase("both", ("scale", "efficientnet", "--phi", "1", "--parameters", "1M"), "either --phi or limits"),
    RefusedCase("no amount", ("scale", "efficientnet", "--parameters", "many"), "'many' is no amount"),
    RefusedCase("no compound scaling", ("scale", "mobilenet_v2", "--phi", "1"), "no compound scaling"),
    RefusedCase("too little", ("scale", "mobilenet_v2", "--parameters", "1k"), "No member of 'mobilenet_v2'"),
    RefusedCase("not .keras", ("save", "mobilenet_v2", "--out", "model.h5"), "end it in .keras"),
    RefusedCase(
        "no folder", ("save", "mobilenet_v2", "--size", "32", "32", "--out", "none/x.keras"), "can't be written"
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_refused(case: RefusedCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = edgeship(*case.arguments)
    assert result.exit_code == 2, result.output
    assert case.message in result.stderr
    assert result.stdout == ""


def test_scale_by_a_compound_coefficient() -> None:
    member = answer("scale", "efficientnet", "--phi", "0", "--resolution", "64", "--classes", "10")
    assert (member["name"], member["phi"], member["input_shape"]) == ("efficientnet_b0", 0.0, [64, 64, 3])
    assert (member["width"], member["depth"], member["num_classes"]) == (1.0, 1.0, 10)


def test_scale_to_a_budget() -> None:
    member = answer("scale", "mobilenet_v3", "--multiply-adds", "20M", "--size-bytes", "2.2MiB", "--resolution", "96")
    assert member["multiply_adds"] <= 20_000_000
    assert member["size_bytes"] <= 2.2 * 2**20
    printed = edgeship("scale", "mobilenet_v3", "--multiply-adds", "20M", "--size-bytes", "2.2MiB",
                       "--resolution", "96").stdout  # fmt: skip
    assert member["name"] in printed
    assert f"{member['multiply_adds']:,}" in printed


@pytest.mark.slow
def test_save_writes_a_file_that_keras_loads(tmp_path: Path) -> None:
    import keras
    import numpy as np

    options = ("--size", "32", "32", "--width", "0.35", "--classes", "4")
    saved = answer("save", "mobilenet_v2", *options, "--out", tmp_path / "a.keras")
    network = keras.models.load_model(tmp_path / "a.keras")

    assert saved["size_bytes"] == (tmp_path / "a.keras").stat().st_size
    assert saved["parameters"] == network.count_params()
    assert (network.input_shape, network.output_shape) == ((None, 32, 32, 3), (None, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["a.keras"]

    answer("save", "mobilenet_v2", *options, "--out", tmp_path / "same.keras")
    answer("save", "mobilenet_v2", *options, "--seed", "1", "--out", tmp_path / "other.keras")
    first, same, other = (
        keras.models.load_model(tmp_path / f"{name}.keras").get_layer("stem_conv").get_weights()[0]
        for name in ("a", "same", "other")
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_save_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "trained.keras"
    path.write_text("trained for days")
    result = edgeship("save", "mobilenet_v2", "--out", path)
    assert result.exit_code == 2
    assert "is there already and may be trained" in result.stderr
    assert path.read_text() == "trained for days"


@dataclass(frozen=True)
class NumberCase:
    value: int
    count: str
    size: str


NUMBERS = [
    NumberCase(7, "7", "7 B"),
    NumberCase(3_504_872, "3.50 M", "3.3 MiB"),
    NumberCase(300_774_272, "300.8 M", "286.8 MiB"),
    NumberCase(999_999, "1.00 M", "976.6 KiB"),
    NumberCase(37_745_884_192, "37.7 G", "35.2 GiB"),
]


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: case.count)
def test_numbers_for_people(case: NumberCase) -> None:
    assert (readable_count(case.value), readable_bytes(case.value)) == (case.count, case.size)

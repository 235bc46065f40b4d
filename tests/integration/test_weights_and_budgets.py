"""Recipes that start from weights, and recipes that name a budget instead of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """\
name: {name}
data: {{source: digits, size: [32, 32]}}
model: {model}
train: {{epochs: {epochs}, warmup_epochs: 0, batch_size: 64, learning_rate: 0.01}}
export: {{targets: [litert], precisions: [float32]}}
"""


def run(workplace: Any, name: str, model: str, *, epochs: int, code: int = 0) -> Any:
    (workplace.directory / f"{name}.yaml").write_text(RECIPE.format(name=name, model=model, epochs=epochs))
    done = workplace.execute(workplace.command("run", f"{name}.yaml", "--until", "train", "--json"), timeout_s=600)
    assert done.code == code, done.stderr[-3000:]
    return done if code else done.json()


@pytest.fixture(scope="module")
def trained(module_workplace: Any) -> dict[str, Any]:
    found: dict[str, Any] = run(
        module_workplace, "first", "{name: mobilenet_v2, width: 0.35, batch_norm_momentum: 0.9}", epochs=1
    )
    return found


def artifact_of(workplace: Any, name: str) -> Path:
    return (workplace.runs / name / "artifacts" / "train").resolve()


def test_weights_of_an_artifact_are_taken_as_they_are(module_workplace: Any, trained: dict[str, Any]) -> None:
    path = artifact_of(module_workplace, "first")
    model = f"{{name: mobilenet_v2, width: 0.35, weights: '{path}'}}"
    report = run(module_workplace, "second", model, epochs=0)
    assert report["network"]["validation_accuracy"] == pytest.approx(trained["network"]["validation_accuracy"])
    assert report["network"]["weights"]["fresh_head"] is False
    description = json.loads((artifact_of(module_workplace, "second") / "network.json").read_text())
    assert description["model"]["weights"] is None
    again = run(module_workplace, "second", model, epochs=0)
    assert all(stage["cached"] for stage in again["stages"])


def test_training_goes_on_from_weights(module_workplace: Any, trained: dict[str, Any]) -> None:
    path = artifact_of(module_workplace, "first") / "network.weights.h5"
    model = f"{{name: mobilenet_v2, width: 0.35, batch_norm_momentum: 0.9, weights: '{path}'}}"
    report = run(module_workplace, "third", model, epochs=1)
    assert report["network"]["validation_loss"] < trained["network"]["validation_loss"]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("{{name: mobilenet_v2, width: 0.5, weights: '{path}'}}", ["block_01_project", "width"]),
        ("{{name: efficientnet_lite0, weights: '{path}'}}", ["mobilenet_v2", "efficientnet_lite0"]),
        ("{{name: mobilenet_v2, width: 0.35, weights: nothing.keras}}", ["nothing.keras", "can't be read"]),
        ("{{name: resnet8, weights: imagenet}}", ["resnet8", "ImageNet"]),
    ],
    ids=["another width", "another network", "no file", "no such weights"],
)
def test_weights_that_do_not_fit(module_workplace: Any, trained: dict[str, Any], model: str, parts: list[str]) -> None:
    text = model.format(path=artifact_of(module_workplace, "first"))
    done = run(module_workplace, "refused", text, epochs=1, code=2)
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr[-2000:]


def test_a_budget_becomes_a_network(module_workplace: Any) -> None:
    model = "{family: mobilenet_v2, budget: {multiply_adds: 20M, parameters: 1M}}"
    report = run(module_workplace, "fitted", model, epochs=1)
    found = report["network"]["fitted"]
    assert found["model"]["name"] == "mobilenet_v2"
    # The smallest published width is 0.35; the next step of 0.05 costs more than the budget allows.
    assert 15_000_000 < found["multiply_adds"] <= 20_000_000
    assert found["parameters"] <= 1_000_000
    assert report["network"]["parameters"] >= found["parameters"]  # with the moving statistics
    again = run(module_workplace, "fitted", model, epochs=1)
    assert all(stage["cached"] for stage in again["stages"])


def test_a_budget_that_nothing_keeps(module_workplace: Any) -> None:
    done = run(module_workplace, "small", "{family: mobilenet_v2, budget: {parameters: 1k}}", epochs=1, code=2)
    assert "the smallest, mobilenet_v2 at width 0.35" in done.stderr

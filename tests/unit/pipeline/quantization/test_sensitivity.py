"""Which layers int8 hurts, on networks that numpy runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.model_source import Sample
from pipeline.quantization.quantizer import Quantizer, SignalToNoise
from pipeline.quantization.ranges import estimate, observe
from pipeline.quantization.sensitivity import (
    LayerSensitivity,
    measure_sensitivity,
    read_sensitivity,
    short_name,
    write_sensitivity,
)
from tests.unit.pipeline.quantization import fake_quantizer

QUANTIZER: Quantizer = fake_quantizer
SAMPLES: list[Sample] = [{"x": np.abs(row[None]) * (np.arange(12) != 1)} for row in
                         np.random.default_rng(0).normal(size=(16, 12))]  # fmt: skip


def network(directory: Path, *, bad: str | None = None) -> Path:
    """Three layers whose second channel is always zero; the bad one has large weights for it, and so a coarse grid."""
    generator = np.random.default_rng(1)
    weights = {name: generator.normal(size=(12, 12)) for name in ("first", "second", "third")}
    for name in ("first", "second"):
        weights[name][:, 1] = -1e-3  # negative for what is positive, which ReLU makes zero
    if bad is not None:
        weights[bad][1] = 300.0
    path = directory / "network.npz"
    fake_quantizer.write(path, weights)
    return path


def ranges_of(path: Path) -> dict[str, tuple[float, float]]:
    found = observe(lambda: QUANTIZER.activations(path, SAMPLES, QUANTIZER.observed(path)))
    return {name: estimate(observation, "min_max") for name, observation in found.items()}


def measured(path: Path, scratch: Path) -> dict[str, LayerSensitivity]:
    scratch.mkdir()
    steps: list[tuple[int, int]] = []
    found = measure_sensitivity(
        QUANTIZER,
        path,
        scheme="plain",
        ranges=ranges_of(path),
        samples=SAMPLES,
        output="third:out",
        scratch=scratch,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert [layer.layer for layer in found] == ["first", "second", "third"]
    return {layer.layer: layer for layer in found}


@pytest.mark.parametrize("bad", ["first", "second", "third"])
def test_the_layer_that_8_bits_hurt_is_the_most_sensitive(tmp_path: Path, bad: str) -> None:
    good = measured(network(tmp_path), tmp_path / "good")
    found = measured(network(tmp_path, bad=bad), tmp_path / "bad")
    assert all(layer.alone_db is not None and layer.alone_db > 30 for layer in good.values())
    assert min(found, key=lambda name: found[name].alone_db or 0) == bad


def test_noise_adds_up_from_layer_to_layer(tmp_path: Path) -> None:
    found = measured(network(tmp_path), tmp_path / "scratch")
    ratios = [layer.output_db for layer in found.values()]
    assert all(ratio is not None for ratio in ratios)
    assert ratios == sorted(ratios, key=lambda ratio: -(ratio or 0))
    assert (found["third"].output_db or 0) < min(layer.alone_db or 0 for layer in found.values())


def test_the_files_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    layers = [LayerSensitivity("a/Conv2D;b", 30.0, None), LayerSensitivity("c" * 60, 12.5, 20.0)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_sensitivity(layers, tmp_path / name, title="litert int8")
    for file in ("sensitivity.json", "sensitivity.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    listed = json.loads((tmp_path / "one" / "sensitivity.json").read_text())
    assert listed["layers"][0] == {"layer": "a/Conv2D;b", "alone_db": 30.0, "output_db": None}
    assert read_sensitivity(tmp_path / "one") == tuple(layers)
    assert read_sensitivity(tmp_path) == ()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("first", "first"),
        ("network/stem/Conv2D/WithoutBiases", "stem"),
        ("network/stem_bn/batchnorm/add_1;network/stem/convolution;network/stem_bn/batchnorm/sub", "stem"),
        ("network/dense/MatMul;network/dense/BiasAdd", "dense"),
        ("/block/expand/Conv", "expand"),
        ("Conv", "Conv"),
        ("c" * 60, "…" + "c" * 39),
    ],
)
def test_layers_have_names_that_people_can_read(name: str, short: str) -> None:
    assert short_name(name) == short


def test_the_ratio_in_decibels() -> None:
    ratio = SignalToNoise()
    ratio.add(np.array([3.0, 4.0]), np.array([3.0, 4.0]))
    assert ratio.decibels() == float("inf")
    ratio.add(np.array([3.0, 4.0]), np.array([3.3, 4.4]))
    assert ratio.decibels() == pytest.approx((140 + 20) / 2), "the mean of both samples; equal is float32's own noise"


def test_samples_without_a_signal_count_where_there_are_no_others() -> None:
    zero = SignalToNoise()
    zero.add(np.array([0.0]), np.array([0.0]))
    assert zero.decibels() == float("inf")
    zero.add(np.array([0.0]), np.array([1.0]))
    assert zero.decibels() == float("-inf")
    zero.add(np.array([1.0]), np.array([0.9]))
    assert zero.decibels() == pytest.approx(20.0)


def test_a_sample_far_out_counts_as_one() -> None:
    """One that is large and close must not hide that all others are noise; one that is large and lost not that they
    are close."""
    usual, far = np.ones(4), np.full(4, 1000.0)
    hidden, lost = SignalToNoise(), SignalToNoise()
    for _ in range(99):
        hidden.add(usual, usual * 2)
        lost.add(usual, usual * 1.1)
    hidden.add(far, far * 1.1)
    lost.add(far, far * 0)
    assert hidden.decibels() == pytest.approx(0.2)
    assert lost.decibels() == pytest.approx(19.8)

"""The search for the fastest way to int8: what it is keyed by, and the order that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from devices.profile import load_profile
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.network import ModelConfig
from pipeline.quantization.report import search_lines
from pipeline.stages.search import SearchStage, schemes_by_speed


def rows(**medians: float | None) -> list[dict[str, Any]]:
    return [
        {"scheme": name, "latency_ms": None if median is None else {"p50": median}, "error": None}
        for name, median in medians.items()
    ]


@dataclass(frozen=True)
class Case:
    id: str
    candidates: list[dict[str, Any]]
    order: tuple[str, ...]


CASES = [
    Case("fastest-first", rows(a=3.0, b=1.0, c=2.0), ("b", "c", "a")),
    Case("as-fast-keeps-the-order", rows(a=1.015, b=1.0, c=1.03), ("a", "b", "c")),
    Case("not-measured", rows(a=None, b=1.0), ("b",)),
    Case("none", rows(a=None), ()),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_order(case: Case) -> None:
    assert schemes_by_speed(case.candidates) == case.order


def stage(**changes: Any) -> SearchStage:
    values: dict[str, Any] = {
        "target": "litert",
        "model": ModelConfig(name="mobilenet_v2", width=0.35),
        "image_size": (32, 32),
        "num_classes": 10,
        "benchmark": BenchmarkConfig(),
        "profile": load_profile("local"),
        "host": {"cpu": "X", "features": ["avx2"]},
    }
    return SearchStage(**(values | changes))


def test_weights_are_not_in_the_key_and_the_structure_and_the_processor_are() -> None:
    key = stage().key_config()
    assert stage(model=ModelConfig(name="mobilenet_v2", width=0.35, weights="/some/where.keras")).key_config() == key
    for change in (
        {"model": ModelConfig(name="mobilenet_v2", width=0.5)},
        {"image_size": (64, 64)},
        {"num_classes": 11},
        {"host": {"cpu": "X", "features": ["avx2", "avx512_vnni"]}},
        {"reduce_range": True},
    ):
        assert stage(**change).key_config() != key
    assert {"ai-edge-litert", "ai-edge-quantizer"} <= set(stage().tool_names())


def test_every_way_is_told() -> None:
    candidates = [*rows(delegated=1.0, converter=3.0), {"scheme": "odd", "latency_ms": None, "error": "refused."}]
    search = {
        "target": "litert", "device": "local", "mode": "measured", "float32_latency_ms": {"p50": 2.0},
        "candidates": candidates, "schemes": ["delegated", "converter"],
    }  # fmt: skip
    assert search_lines({"searches": [search]}) == [
        "Ways to int8 in litert on local (measured): delegated 1.000 ms, converter 3.000 ms; float32 2.000 ms.",
        "litert odd could not be measured: refused.",
    ]
    assert search_lines({}) == []

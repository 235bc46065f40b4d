"""Pins the key function: whoever changes it makes every published artifact unreachable.

`pytest tests/golden --regenerate` writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.keys import artifact_key, canonical_json

GOLDEN = Path(__file__).parent / "data" / "keys.json"
CASES: dict[str, dict[str, Any]] = {
    "least": {"stage": "data", "config": {}, "inputs": {}, "code": "", "tools": {}},
    "data": {
        "stage": "data",
        "config": {"source": {"source": "digits", "size": [32, 32], "seed": 0, "validation_fraction": 0.15}},
        "inputs": {},
        "code": "c0de",
        "tools": {"numpy": "2.3.5", "pillow": "12.0.0"},
        "fingerprint": "f1",
    },
    "export": {
        "stage": "export",
        "config": {"target": "litert", "precision": "int8", "reduce_range": False},
        "inputs": {"calibrate": "0123456789abcdef0123456789abcdef"},
        "code": "c0de",
        "tools": {"tensorflow": "2.21.0", "ai-edge-litert": "2.3.0"},
    },
    "values": {
        "stage": "train",
        "config": {
            "text": "größe \u2028 \U0001f600",
            "none": None,
            "small": 1e-07,
            "whole": 1.0,
            "nested": [[1], {"a": {}}],
        },
        "inputs": {"data": "d" * 32, "extra/role": "e" * 32},
        "code": "",
        "tools": {"absent-one": "absent"},
        "fingerprint": "",
    },
}


def rest(case: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in case.items() if field not in {"stage", "config"}}


def computed() -> dict[str, Any]:
    return {
        name: {
            "canonical": canonical_json({field: value for field, value in case.items() if field != "stage"}),
            "key": artifact_key(case["stage"], case["config"], **rest(case)),
        }
        for name, case in CASES.items()
    }


def test_keys_are_the_pinned_ones(regenerate: bool) -> None:
    found = computed()
    if regenerate:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        pytest.skip(f"wrote {GOLDEN.name}")

    assert found == json.loads(GOLDEN.read_text())

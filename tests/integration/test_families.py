"""Every family through all three runtimes, in float32 and int8.

`pytest tests/integration/test_families.py --regenerate` writes the golden counts of left-over operations anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from devices.board.runners import RUNNERS
from pipeline.executor import child_environment
from pipeline.metrics import parity
from pipeline.targets import TARGETS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).with_name("families.py")
GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "families.json"
MIN_SNR_DB = 8.0
"""Of int8, as the pipeline's gate."""

LEFT_OVER = {
    "PAD": "PAD",
    "PADV2": "PAD",
    "TRANSPOSE": "TRANSPOSE",
    "CAST": "CAST",
    "CONVERT": "CAST",
    "RESHAPE": "RESHAPE",
    "SQUEEZE": "RESHAPE",
    "UNSQUEEZE": "RESHAPE",
    "EXPAND_DIMS": "RESHAPE",
}
"""Operations that compute nothing, by their names in the three formats, in capitals."""


@dataclass(frozen=True)
class FamilyCase:
    """A network that stands for its family.

    Attributes:
        name: Key of `models.MODELS`.
        attentions: Number of attention blocks.
        gates: Number of squeeze-and-excite gates.
    """

    name: str
    attentions: int = 0
    gates: int = 0


CASES = [
    FamilyCase("mobilenet_v1"),
    FamilyCase("mobilenet_v2"),
    FamilyCase("mobilenet_v3_small", gates=9),
    FamilyCase("mobilenet_v3_small_minimalistic"),
    FamilyCase("mobilenet_v4_conv_small"),
    FamilyCase("mobilenet_v4_hybrid_medium", attentions=8),
    FamilyCase("efficientnet_b0", gates=16),
    FamilyCase("efficientnet_lite0"),
    FamilyCase("efficientnet_v2_b0", gates=16),
    FamilyCase("resnet8"),
    FamilyCase("ds_cnn"),
    FamilyCase("mobilenet_v1_025_96"),
    FamilyCase("dense_autoencoder"),
]
EVERY = [
    pytest.param(case, target, precision, id=f"{case.name}-{target}-{precision}")
    for case in CASES
    for target in ("litert", "onnxruntime", "openvino")
    for precision in ("float32", "int8")
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All exports, made by one child process."""
    directory = tmp_path_factory.mktemp("families")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory), *(case.name for case in CASES)],
        check=False,
        env=child_environment("tensorflow") | {"PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return directory


def metrics(exported: Path, case: FamilyCase, target: str, precision: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((exported / case.name / target / precision / "metrics.json").read_text())
    return found


def left_over(operations: dict[str, int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, count in operations.items():
        if name.upper() in LEFT_OVER:
            counts[LEFT_OVER[name.upper()]] += count
    return dict(sorted(counts.items()))


def allowed(case: FamilyCase, target: str, precision: str) -> dict[str, int]:
    """The most that may be left over.

    A network on images casts them once. LiteRT computes channels last and needs no transpose; the other two need one
    for the image, and for attention, whose rows are channels last, four more, and ONNX a fifth for the keys. Attention
    makes rows of queries, keys and values, and a map of the result. A pooled map becomes a vector, in ONNX two
    reshapes, which copy nothing, stand for the transposes of a gate's 1x1 map, and in OpenVINO's int8 files one keeps
    NNCF from leaving the gate in float. These files also have a cast for each weight, computed when they are loaded.
    ONNX Runtime's int8 reads images in blocks, which are put side by side by two transposes and a reshape. OpenVINO's
    scales the pixels of MobileNetV4 as rows, between two reshapes.
    """
    images = models.MODELS[case.name].input_kind == "image"
    transposes = {"litert": 0, "onnxruntime": 1 + 5 * case.attentions, "openvino": 1 + 4 * case.attentions}[target]
    casts = 1000 if (target, precision) == ("openvino", "int8") else int(images)
    for_gates = {("onnxruntime", "float32"): 2, ("onnxruntime", "int8"): 2, ("openvino", "int8"): 1}
    reshapes = 2 + 4 * case.attentions + for_gates.get((target, precision), 0) * case.gates
    if (target, precision) == ("onnxruntime", "int8") and images:
        transposes, reshapes = transposes + 2, reshapes + 1
    if (target, precision) == ("openvino", "int8") and models.MODELS[case.name].family == "mobilenet_v4":
        reshapes += 2
    return {"CAST": casts, "PAD": 0, "RESHAPE": reshapes, "TRANSPOSE": transposes}


def test_every_family_is_exported() -> None:
    families = {models.MODELS[case.name].family for case in CASES}
    assert families == {spec.family for spec in models.MODELS.values()}


@pytest.mark.parametrize(("case", "target", "precision"), EVERY)
def test_parity(exported: Path, case: FamilyCase, target: str, precision: str) -> None:
    with np.load(exported / case.name / "samples.npz") as stored:
        inputs, expected = stored["inputs"], stored["outputs"]
    runner = RUNNERS[target]()
    path = exported / case.name / target / precision / f"model{TARGETS[target].suffix}"
    runner.load(str(path), num_threads=1)
    received = np.concatenate([runner.infer([row[None]])[0].copy() for row in inputs])
    classes = models.MODELS[case.name].num_classes == expected.shape[-1] or expected.shape[-1] == 10
    compared = parity(expected, received, classes=classes)
    difference, snr_db = compared["max_logit_difference"], compared["snr_db"]
    assert difference is not None
    assert expected.std(axis=0).max() > 0.01 * np.ptp(expected), "the inputs do not reach the outputs"
    if precision == "float32":
        assert difference <= 1e-4
    else:
        assert snr_db is not None
        assert snr_db >= MIN_SNR_DB


@pytest.mark.parametrize(("case", "target", "precision"), EVERY)
def test_only_builtin_operations(exported: Path, case: FamilyCase, target: str, precision: str) -> None:
    found = metrics(exported, case, target, precision)
    assert found["precision"] == precision
    names = set(found["graph"]["operations"])
    assert not [name for name in names if name.startswith(("CUSTOM", "FLEX", "OPERATOR_")) or "." in name]
    assert "BatchNormalization" not in names


@pytest.mark.parametrize(("case", "target", "precision"), EVERY)
def test_left_over_operations_stay_below_their_maximum(
    exported: Path, case: FamilyCase, target: str, precision: str
) -> None:
    found = left_over(metrics(exported, case, target, precision)["graph"]["operations"])
    limits = allowed(case, target, precision)
    assert {kind: count for kind, count in found.items() if count > limits[kind]} == {}


def test_left_over_operations_are_the_golden_ones(exported: Path, regenerate: bool) -> None:
    found = {
        case.name: {
            f"{target}/{precision}": left_over(metrics(exported, case, target, precision)["graph"]["operations"])
            for target in ("litert", "onnxruntime", "openvino")
            for precision in ("float32", "int8")
        }
        for case in CASES
    }
    if regenerate:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert found.keys() == golden.keys()
    for name, counts in found.items():
        assert counts == golden[name], name

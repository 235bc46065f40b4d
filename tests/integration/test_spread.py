"""Draws of the calibration set through the whole pipeline, in every runtime."""

from __future__ import annotations

import pytest

from tests.conftest import Workplace

RECIPE = """
name: small
data: {source: digits, size: [32, 32]}
model: {name: mobilenet_v2, width: 0.35}
train: {epochs: 1, batch_size: 64, warmup_epochs: 0}
export: {targets: [litert, onnxruntime, openvino], precisions: [float32, int8]}
quantization: {calibration_images: 64, draws: 2, ranges: mse}
gates: {int8: {min_snr_db: null, min_top1_agreement: null, max_accuracy_drop: null}}
devices: [local]
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_draw_is_what_is_exported_in_every_runtime(module_workplace: Workplace) -> None:
    (module_workplace.directory / "small.yaml").write_text(RECIPE)
    outcome = module_workplace.execute(
        module_workplace.command("run", "small.yaml", "--json", "--until", "export"), timeout_s=800
    )
    assert outcome.code == 0, outcome.stderr
    report = outcome.json()
    exported = {row["target"]: row for row in report["artifacts"] if row["precision"] == "int8"}
    spreads = {spread["target"]: spread for spread in report["spreads"]}
    assert set(spreads) == set(exported) == {"litert", "onnxruntime", "openvino"}
    for target, spread in spreads.items():
        first, second = spread["draws"]
        assert first["sha256"] == exported[target]["sha256"], target
        assert first["weights_sha256"] == exported[target]["weights_sha256"], target
        assert second["sha256"] != first["sha256"] or second["weights_sha256"] != first["weights_sha256"], target
        assert first["range_method"] == exported[target]["quantization"]["range_method"]
        low, high = sorted(row["accuracy"] for row in spread["draws"])
        assert (spread["spread"]["accuracy"]["min"], spread["spread"]["accuracy"]["max"]) == (low, high)
        assert min(row["snr_db"] for row in spread["draws"]) > 0
    page = (module_workplace.runs / "small" / "report.md").read_text()
    assert page.count("over 2 draws of the calibration set") == 3

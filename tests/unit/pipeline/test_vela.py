"""What is read from Vela's report, and what Vela is not even asked."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devices.profile import load_profile
from devices.profile_parts import EthosU
from pipeline import vela
from pipeline.errors import StageCrashError, UnsupportedModelError
from pipeline.vela import compile_with_vela, cpu_operations, predictions

# As ethos-u-vela 5.2.0 wrote them for a small MobileNetV2; other columns left out.
SUMMARY = {
    "accelerator_configuration": "Ethos_U65_256",
    "system_config": "Ethos_U65_High_End",
    "memory_mode": "Dedicated_Sram_384KB",
    "core_clock": "1000000000.0",
    "inferences_per_second": "1345.179884180012",
    "inference_time": "0.000743395",
    "sram_memory_used": "34.4375",
    "dram_memory_used": "2304.671875",
    "nn_macs": "6126208",
    "cycles_npu": "515904",
    "cycles_sram_access": "32416",
    "cycles_dram_access": "597087",
    "cycles_total": "743395",
}
LAYERS = [
    {"Original Operator": "Cast", "Target": "CPU", "Name": "mobilenet_v2_1/Cast"},
    {"Original Operator": "Quantize", "Target": "CPU", "Name": "tfl.quantize"},
    {"Original Operator": "Conv2D", "Target": "NPU", "Name": "block_01"},
    {"Original Operator": "Add", "Target": "NPU", "Name": "block_02"},
    {"Original Operator": "Cast", "Target": "CPU", "Name": "unexplained"},
]
SAID = """
Warning (supported operators) operator: QUANTIZE, ofm: 'tfl.quantize'
Reason: Operation has tensor with unsupported DataType Float32 (mobilenet_v2_1/Cast)
Feature-map dataTypes must be one of {"INT16", "INT32", "INT64", "INT8", "UINT8"}

Warning (supported operators) operator: CAST, ofm: 'mobilenet_v2_1/Cast'
Reason: Unsupported opType

Network summary for small
"""
NPU = EthosU(accelerator="ethos-u65-256", system_config="Ethos_U65_High_End", memory_mode="Dedicated_Sram_384KB")


def test_everything_has_a_unit_and_is_called_predicted() -> None:
    found = predictions(SUMMARY, LAYERS, SAID)

    assert found["label"] == "predicted"
    assert found["inference_ms"] == pytest.approx(0.743395)
    assert found["inferences_per_s"] == pytest.approx(1345.18, rel=1e-5)
    assert found["clock_mhz"] == 1000
    assert found["cycles"] == {"total": 743395, "npu": 515904, "sram": 32416, "dram": 597087}
    assert (found["sram_used_kb"], found["dram_used_kb"]) == (34.4375, 2304.671875)
    assert (found["npu_operations"], found["cpu_operations"], found["npu_share"]) == (2, 3, 0.4)


def test_what_stays_on_the_cpu_is_named_with_its_reason() -> None:
    found = predictions(SUMMARY, LAYERS, SAID)

    assert [(row["operation"], row["name"]) for row in found["on_cpu"]] == [
        ("CAST", "mobilenet_v2_1/Cast"),
        ("QUANTIZE", "tfl.quantize"),
        ("CAST", "unexplained"),
    ]
    assert found["on_cpu"][0]["reason"] == "Unsupported opType"
    assert found["on_cpu"][1]["reason"].startswith("Operation has tensor with unsupported DataType Float32")
    assert found["on_cpu"][2]["reason"] is None
    assert cpu_operations(found) == "2 CAST, 1 QUANTIZE"


class Summary(NamedTuple):
    """What `inspect_model` would read from a file."""

    precision: str
    operations: dict[str, int]


class Refusal(NamedTuple):
    """A file, and why Vela does not see it."""

    id: str
    name: str
    summary: Summary
    expected: str


REFUSALS = [
    *(
        Refusal(name, "model.tflite", Summary(name, {"CONV_2D": 3}), f"holds {name}, but an Ethos-U")
        for name in ("float32", "float16", "int8_dynamic", "int8_weights")
    ),
    Refusal("another format", "model.onnx", Summary("int8", {"Conv": 3}), "Vela compiles .tflite files, not"),
    Refusal("twice", "model.tflite", Summary("int8", {"CUSTOM:ethos-u": 1}), "was compiled by Vela already"),
]  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.id)
def test_what_vela_can_not_use_is_refused_before_it_is_called(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vela, "inspect_model", lambda path: refusal.summary)  # noqa: ARG005
    monkeypatch.setattr(subprocess, "run", None)

    with pytest.raises(UnsupportedModelError, match=refusal.expected) as caught:
        compile_with_vela(tmp_path / refusal.name, NPU, tmp_path / "out.tflite")

    assert caught.value.exit_code == 2


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An int8 file, as far as anybody looks."""
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    monkeypatch.setattr(vela, "inspect_model", lambda path: Summary("int8", {"CONV_2D": 3}))  # noqa: ARG005
    monkeypatch.setattr(vela.importlib.util, "find_spec", lambda name: name)
    return tmp_path / "model.tflite"


def test_without_vela_the_message_says_how_to_get_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vela.importlib.util, "find_spec", lambda name: None)  # noqa: ARG005

    with pytest.raises(UnsupportedModelError, match=r"ethos-u-vela: pip install 'edgeship\[vela\]'"):
        compile_with_vela(model, NPU, model.with_name("out.tflite"))


class End(NamedTuple):
    """How Vela ends without a file."""

    id: str
    result: Any
    error: type[Exception]
    expected: str


ENDS = [
    End("refused", subprocess.CompletedProcess([], 1, "", "Error: Invalid tflite file"), UnsupportedModelError,
        r"Vela refuses the model \(exit status 1\): Error: Invalid tflite file"),
    End("nothing written", subprocess.CompletedProcess([], 0, "nothing to do", ""), StageCrashError, "nothing to do"),
    End("never ends", subprocess.TimeoutExpired([], 1800), StageCrashError, "did not end within 1800 s"),
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.id)
def test_an_end_without_a_file_is_an_error(end: End, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if isinstance(end.result, Exception):
            raise end.result
        return end.result

    monkeypatch.setattr(subprocess, "run", run)

    with pytest.raises(end.error, match=end.expected):
        compile_with_vela(model, NPU, model.with_name("out.tflite"))

    assert not model.with_name("out.tflite").exists()


def test_the_board_with_an_ethos_u_says_which() -> None:
    assert load_profile("imx93").ethos_u == NPU
    assert load_profile("imx8m-plus").ethos_u is None

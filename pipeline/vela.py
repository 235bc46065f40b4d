"""Vela, Arm's compiler for the Ethos-U: an int8 TFLite file in, one whose operations are a program for the NPU out.

Vela runs as a process of its own. It has no NPU to measure on: cycles, memory and speed are predicted from a
description of the processor and its memories, and are called that wherever they are shown.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devices.profile_parts import EthosU
from pipeline.errors import StageCrashError, UnsupportedModelError
from pipeline.targets import inspect_model

CUSTOM_OPERATION = "CUSTOM:ethos-u"
"""How the operation that stands for all that run on the NPU is called among those of a file."""
_PRECISIONS = ("int8", "int16x8", "mixed")
"""Of files with operations that the NPU has."""
_TIMEOUT_S = 1800
_CONFIG = "Arm/vela.ini"
_REASON = re.compile(r"operator: (\S+), ofm: '([^\n]*)'\nReason: ([^\n]*)")
_EXTRA = "pip install 'edgeship[vela]', or make setup in a checkout"


def compile_with_vela(path: Path, ethos_u: EthosU, out_path: Path) -> dict[str, Any]:
    """Writes the file for the NPU, and returns what Vela says about it.

    Args:
        path: An int8 `.tflite` file.
        ethos_u: The NPU.
        out_path: The file to write.

    Returns:
        See `predictions`.

    Raises:
        UnsupportedModelError: The file is not quantized, or is no TFLite file; Vela is not installed, refuses it, or
            finds nothing in it for the NPU.
        StageCrashError: Vela ended without a result.
    """
    _check_precision(path)
    if importlib.util.find_spec("ethosu") is None:
        raise UnsupportedModelError(f"Vela is not installed. It is the package ethos-u-vela: {_EXTRA}.")
    with tempfile.TemporaryDirectory(prefix="edgeship-vela-") as scratch:
        directory = Path(scratch)
        model = directory / "model.tflite"
        model.write_bytes(path.read_bytes())  # Vela names its files, and a tensor, after the model's
        said = _run(
            ["--accelerator-config", ethos_u.accelerator, "--config", _CONFIG, "--system-config", ethos_u.system_config,
             "--memory-mode", ethos_u.memory_mode, "--verbose-performance", "--output-dir", "out", model.name],
            directory,
        )  # fmt: skip
        made = directory / "out" / "model_vela.tflite"
        summaries = list((directory / "out").glob("model_summary_*.csv"))
        layers = directory / "out" / "model_per-layer.csv"
        if not made.is_file() or len(summaries) != 1 or not layers.is_file():
            raise StageCrashError(f"Vela ended without a file of {path}. Last words:\n{said[-1500:]}", details=said)
        found = predictions(_rows(summaries[0])[0], _rows(layers), said)
        if found["npu_operations"] == 0:
            raise UnsupportedModelError(
                f"Vela finds nothing in {path} that the {ethos_u.accelerator} can run: {_named(found)}. Run it on "
                f"the CPU."
            )
        out_path.write_bytes(made.read_bytes())
    return found


def predictions(summary: Mapping[str, str], layers: Sequence[Mapping[str, str]], said: str) -> dict[str, Any]:
    """What Vela says, as JSON values with units.

    Args:
        summary: The one row of `*_summary_*.csv`.
        layers: The rows of `*_per-layer.csv`.
        said: What it printed.

    Returns:
        `label` (predicted), `inference_ms` and `inferences_per_s` of what runs on the NPU, without the operations on
        the CPU; `clock_mhz`, `cycles` (`total`, `npu`, `sram`, `dram`), `sram_used_kb`, `dram_used_kb`,
        `multiply_adds`, `npu_operations`, `cpu_operations`, `npu_share` of the operations, 0..1, and `on_cpu`: of each
        operation on the CPU its `operation`, `name` and the `reason`.
    """
    reasons = {name: " ".join(reason.split()) for _, name, reason in _REASON.findall(said)}
    on_cpu = [row for row in layers if row["Target"] == "CPU"]
    num_npu = len(layers) - len(on_cpu)
    return {
        "label": "predicted",
        "inference_ms": 1000 * float(summary["inference_time"]),
        "inferences_per_s": float(summary["inferences_per_second"]),
        "clock_mhz": float(summary["core_clock"]) / 1e6,
        "cycles": {
            "total": int(float(summary["cycles_total"])),
            "npu": int(float(summary["cycles_npu"])),
            "sram": int(float(summary["cycles_sram_access"])),
            "dram": int(float(summary["cycles_dram_access"])),
        },
        "sram_used_kb": float(summary["sram_memory_used"]),
        "dram_used_kb": float(summary["dram_memory_used"]),
        "multiply_adds": int(float(summary["nn_macs"])),
        "accelerator": summary["accelerator_configuration"],
        "system_config": summary["system_config"],
        "memory_mode": summary["memory_mode"],
        "npu_operations": num_npu,
        "cpu_operations": len(on_cpu),
        "npu_share": num_npu / len(layers) if layers else 0.0,
        "on_cpu": [
            {"operation": row["Original Operator"].upper(), "name": row["Name"], "reason": reasons.get(row["Name"])}
            for row in on_cpu
        ],
    }


def cpu_operations(found: Mapping[str, Any]) -> str:
    """The operations that stay on the CPU, in words: `2 CAST, 1 QUANTIZE`; empty where none does."""
    counts = Counter(row["operation"] for row in found["on_cpu"])
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))


def _check_precision(path: Path) -> None:
    summary = inspect_model(path)
    if path.suffix.lower() != ".tflite":
        raise UnsupportedModelError(
            f"Vela compiles .tflite files, not {path.name}. Give the int8 export of the target litert."
        )
    if CUSTOM_OPERATION in summary.operations:
        raise UnsupportedModelError(
            f"{path} was compiled by Vela already. Give the int8 .tflite file that it was made of."
        )
    if summary.precision not in _PRECISIONS:
        raise UnsupportedModelError(
            f"{path} holds {summary.precision}, but an Ethos-U computes in integers: expected int8 weights and "
            f"activations. Export it in int8 (edgeship convert {path.name} --target litert --precision int8), or "
            f"compile it for the CPU with --form xnnpack_cache."
        )


def _run(arguments: Sequence[str], directory: Path) -> str:
    """Runs Vela; returns what it printed.

    Raises:
        UnsupportedModelError: It refuses the file.
        StageCrashError: It did not end in time.
    """
    # -P: what lies in the working directory never stands in for a module of Vela's or of Python.
    command = [sys.executable, "-P", "-m", "ethosu.vela", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", cwd=directory, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StageCrashError(f"Vela did not end within {_TIMEOUT_S} s, and was ended.") from error
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode != 0:
        lines = [line for line in said.splitlines() if line.strip()]
        raise UnsupportedModelError(
            f"Vela refuses the model (exit status {done.returncode}): {' '.join(lines[-3:])[:600]}", details=said
        )
    return said


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _named(found: Mapping[str, Any]) -> str:
    return cpu_operations(found) or "it has no operations"

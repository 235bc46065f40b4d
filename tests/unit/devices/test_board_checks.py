"""Each check on a board that is well, on one that is ill, and on one that does not tell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devices.board_checks import CHECKS
from devices.profile import load_profile

sys.path.insert(0, str(Path(__file__).parent))

from boards import WELL, profile_of


class Ill(NamedTuple):
    id: str
    check: str
    facts: dict[str, Any]
    state: str
    message: str
    mend: str | None = None
    profile: dict[str, Any] | None = None


LITERT = {"ai-edge-litert": {"runtime": "litert", "version": "2.3.0"}}
ONLY_OPENVINO = {"openvino": "openvino>=2026.4"}
TFLITE = {"litert": "tflite-runtime>=2.14,<2.15"}
LOCAL = {"transport": {"kind": "local"}}
RAPL = {"kind": "rapl", "name": "package-0", "paths": ["/sys/a/energy_uj"], "readable": False}

CASES = [
    Ill("another board", "architecture", {"architecture": "x86_64"}, "problem", "is x86_64, the profile says aarch64"),
    Ill(
        "any architecture", "architecture", {"architecture": "riscv64"}, "ok", "riscv64", profile={"architecture": None}
    ),
    Ill("32-bit Python", "architecture", {"python_bits": 32}, "problem", "needs the packages of armv7l"),
    Ill("32-bit system", "architecture", {"python_bits": 32}, "ok", "armv7l", profile={"architecture": "armv7l"}),
    Ill("old Python", "python", {"python": "3.8.10"}, "problem", "3.8.10 is too old", "uv python install 3.11"),
    Ill("just new enough", "python", {"python": "3.9.0"}, "ok", "Python 3.9.0"),
    Ill(
        "Python of the profile", "python", {"python": None}, "problem", "3.6 is", "uv python", {"python_version": "3.6"}
    ),
    Ill("old C library", "C library", {"libc": "glibc 2.27"}, "warning", "onnxruntime needs glibc 2.28, the board has"),
    Ill("musl", "C library", {"libc": "musl 1.2"}, "warning", "the board has musl 1.2"),
    Ill("not yet there", "runtimes", {"runtimes": {}}, "ok", "litert (installed at its first use)"),
    Ill(
        "one missing",
        "runtimes",
        {"runtimes": LITERT},
        "warning",
        "onnxruntime>=1.31,<2 is not installed. Usable: litert (ai-edge-litert 2.3.0)",
        "/usr/bin/python3 -m pip install 'onnxruntime>=1.31,<2'",
        LOCAL,
    ),
    Ill(
        "another version",
        "runtimes",
        {"runtimes": {"ai-edge-litert": {"runtime": "litert", "version": "1.0.1"}}},
        "problem",
        "no runtime can be used: ai-edge-litert>=2.3,<3 is not installed; onnxruntime",
        "pip install 'ai-edge-litert>=2.3,<3' 'onnxruntime>=1.31,<2'",
        LOCAL,
    ),
    Ill("no wheel for one", "runtimes", {"runtimes": {}, "python": "3.10.1"}, "warning", "onnxruntime has wheels for"),
    Ill(
        "no wheel at all", "runtimes", {"runtimes": {}, "python": "3.9.2"}, "problem", "no runtime can be used: ai-edge"
    ),
    Ill("no wheel, but there", "runtimes", {"python": "3.9.2"}, "ok", "litert (ai-edge-litert 2.3.0)"),
    Ill("32-bit wheels", "runtimes", {"runtimes": {}, "python_bits": 32}, "problem", "has no wheel for armv7l"),
    Ill(
        "no pip",
        "installer",
        {"python_modules": {"venv": True, "ensurepip": False, "pip": False}},
        "warning",
        "Python has no ensurepip, pip",
        "sudo apt-get install python3-venv python3-pip",
        LOCAL,
    ),
    Ill("no pip over SSH", "installer", {"python_modules": {}}, "ok", "the board needs no pip"),
    Ill("new numpy", "numpy", {"numpy": "2.0.1"}, "problem", "numpy 2.0.1 is too new", "numpy<2", {"runtimes": TFLITE}),
    Ill("old numpy", "numpy", {"numpy": "1.24.2"}, "ok", "numpy 1.24.2", profile={"runtimes": TFLITE}),
    Ill(
        "no wheel of Pillow",
        "images",
        {"python_bits": 32},
        "warning",
        "pillow has no wheel for armv7l (only for aarch64, x86_64): unless the board has Debian's",
        "sudo apt-get install python3-pil",
    ),
    Ill("a wheel of Pillow", "images", {}, "ok", "Pillow is sent with the first JPEG or PNG"),
    Ill("Pillow on a phone", "images", {"libc": "bionic"}, "warning", "Termux's", "pkg install python-pillow"),
    Ill("Pillow on this machine", "images", {}, "ok", "comes with Edgeship", profile=LOCAL),
    Ill("emulated", "openvino", {"cpu_ids": False}, "ok", "nothing special"),
    Ill(
        "emulated with OpenVINO",
        "openvino",
        {"cpu_ids": False},
        "warning",
        "midr_el1), which OpenVINO's ARM plugin reads, as under user-mode emulation",
        profile={"runtimes": {**ONLY_OPENVINO, "litert": "ai-edge-litert"}},
    ),
    Ill(
        "emulated, only OpenVINO",
        "openvino",
        {"cpu_ids": False},
        "warning",
        "OpenVINO",
        profile={"runtimes": ONLY_OPENVINO},
    ),
    Ill(
        "OpenVINO on x86",
        "openvino",
        {"architecture": "x86_64", "cpu_ids": False},
        "ok",
        "nothing special",
        profile={"runtimes": ONLY_OPENVINO},
    ),
    Ill("full", "storage", {"free_storage_mb": 63}, "problem", "63 MiB of storage are free, 64 are needed", "du -x"),
    Ill("little", "storage", {"free_storage_mb": 599, "runtimes": {}}, "warning", "all runtimes take 600", "du -x"),
    Ill("little, but all there", "storage", {"free_storage_mb": 599}, "ok", "599 MiB are free"),
    Ill("no memory", "memory", {"available_memory_mb": 127}, "warning", "127 MiB of memory are free", "ps -eo rss"),
    Ill("taskset", "cores", {"usable_cores": 2}, "warning", "2 of 4 cores can be used"),
    Ill("cores off", "cores", {"usable_cores": 4}, "warning", "4 of 6 cores can be used", profile={"cores": 6}),
    Ill(
        "ondemand", "governor", {"governor": "ondemand"}, "warning", "is 'ondemand'", "echo performance | sudo tee /sys"
    ),
    Ill("busy", "load", {"cpu_busy_share": 0.26}, "warning", "use 26% of the cores", "top"),
    Ill("just not busy", "load", {"cpu_busy_share": 0.25}, "ok", "25%"),
    Ill("hot", "heat", {"temperatures_c": {"cpu": 50.0, "gpu": 80.0}}, "warning", "gpu has 80 °C"),
    Ill("slowed down", "heat", {"throttling": {"now": ["throttled"], "since_start": []}}, "warning", "now: throttled"),
    Ill(
        "weak supply",
        "heat",
        {"throttling": {"now": [], "since_start": ["under-voltage"]}},
        "warning",
        "the power supply or its cable is too weak",
    ),
    Ill(
        "locked RAPL",
        "sensors",
        {"energy_sensors": [RAPL]},
        "warning",
        "energy can't be read",
        "sudo chmod a+r /sys/a/energy_uj",
        {"sensors": {"energy": {"kind": "rapl"}}},
    ),
    Ill(
        "no INA",
        "sensors",
        {"energy_sensors": [RAPL]},
        "warning",
        "not there: energy (hwmon)",
        profile={"sensors": {"energy": {"kind": "hwmon"}}},
    ),
    Ill(
        "blind",
        "sensors",
        {"temperatures_c": {}, "frequency_mhz": None},
        "warning",
        "not there: temperature, frequency",
        profile={"sensors": {"temperature": {"kind": "hwmon"}, "frequency": {"kind": "cpufreq"}}},
    ),
    Ill(
        "no firmware flags",
        "sensors",
        {"throttling": None},
        "warning",
        "neither get_throttled in sysfs nor vcgencmd",
        "sudo usermod -aG video $USER",
        {"sensors": {"throttling": {"kind": "raspberry_pi_firmware"}}},
    ),
    Ill(
        "none on purpose",
        "sensors",
        {},
        "ok",
        "those of the profile",
        profile={"sensors": {"energy": {"kind": "none", "reason": "No."}}},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_check(case: Ill) -> None:
    verdict = CHECKS[case.check](profile_of(**(case.profile or {})), {**WELL, **case.facts})
    assert (verdict.state, case.message in verdict.message) == (case.state, True), verdict.message
    assert (verdict.mend is None) if case.mend is None else case.mend in str(verdict.mend)


@pytest.mark.parametrize("check", CHECKS)
def test_a_board_that_is_well(check: str) -> None:
    assert CHECKS[check](load_profile("raspberry-pi-4"), WELL).state == "ok"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("facts", [{}, dict.fromkeys(WELL)], ids=["nothing", "all null"])
def test_a_board_that_tells_nothing_has_no_problem(check: str, facts: dict[str, Any]) -> None:
    verdict = CHECKS[check](profile_of(), facts)
    assert verdict.state in {"unknown", "ok"}
    assert verdict.message


def test_every_check_can_complain() -> None:
    assert {case.check for case in CASES if case.state in {"warning", "problem"}} == set(CHECKS)

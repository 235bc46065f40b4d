"""What a board is and how it is right now: files of the kernel, each read by a pure parser."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib import metadata
from typing import Any, Dict, List, Optional, Tuple

CPU_FEATURES = (
    # x86
    "sse4_1",
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    # ARM
    "neon",
    "vfpv4",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
"""The instruction sets that decide how fast and how exactly a network runs, as Linux names them."""

RUNTIME_PACKAGES = {
    "ai-edge-litert": "litert",
    "tflite-runtime": "litert",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}
"""By distribution name, the runtime it brings."""

# ARM's implementer and part numbers (Arm Ltd., "Main ID Register"; the kernel prints them instead of a name).
_ARM_PARTS = {
    ("0x41", "0xb76"): "ARM1176",
    ("0x41", "0xc07"): "Cortex-A7",
    ("0x41", "0xc08"): "Cortex-A8",
    ("0x41", "0xc09"): "Cortex-A9",
    ("0x41", "0xc0f"): "Cortex-A15",
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
}

_BUSY_SAMPLE_S = 0.33
_CPU = "/sys/devices/system/cpu/cpu0/cpufreq"


def collect() -> Dict[str, Any]:
    """Everything, JSON values only; what the board does not tell is None."""
    cpuinfo = _read("/proc/cpuinfo")
    libc, libc_version = platform.libc_ver()
    return {
        "cpu_model": parse_cpu_model(cpuinfo),
        "board_model": _read("/proc/device-tree/model").rstrip("\0\n") or None,
        "architecture": platform.machine(),
        "cpu_features": parse_cpu_features(cpuinfo),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "governor": _read(_CPU + "/scaling_governor").strip() or None,
        "frequency_mhz": parse_frequency_mhz(cpuinfo, _read(_CPU + "/scaling_cur_freq")),
        "memory_mb": parse_memory_mb(_read("/proc/meminfo"), "MemTotal"),
        "available_memory_mb": parse_memory_mb(_read("/proc/meminfo"), "MemAvailable"),
        "cpu_busy_share": _busy_share(),
        "load_average": parse_load_average(_read("/proc/loadavg")),
        "throttle_count": _throttle_count(),
        "kernel": platform.release(),
        "os": parse_os_name(_read("/etc/os-release")) or platform.system(),
        "libc": f"{libc} {libc_version}" if libc else None,
        "python": platform.python_version(),
        "runtimes": installed_runtimes(),
    }


def parse_cpu_model(cpuinfo: str) -> Optional[str]:
    """The name of the processor; on ARM the names of its cores, such as "4 x Cortex-A55 + 2 x Cortex-A76"."""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    implementers = re.findall(r"^CPU implementer\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    if parts and len(implementers) == len(parts):
        names = [_ARM_PARTS.get(pair, f"implementer {pair[0]} part {pair[1]}") for pair in zip(implementers, parts)]
        distinct = sorted(set(names), key=names.index)
        return " + ".join(f"{names.count(name)} x {name}" for name in distinct)
    return match.group(1).strip() if match else None


def parse_cpu_features(cpuinfo: str) -> List[str]:
    """Those of `CPU_FEATURES` that every core has, in that order."""
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    if not lines:
        return []
    common = set(lines[0].split()).intersection(*(line.split() for line in lines[1:]))
    return [feature for feature in CPU_FEATURES if feature in common]


def parse_frequency_mhz(cpuinfo: str, scaling_cur_freq: str) -> Optional[float]:
    """The first core's frequency now: from cpufreq (in kHz), else from /proc/cpuinfo."""
    if scaling_cur_freq.strip().isdigit():
        return int(scaling_cur_freq) / 1000
    match = re.search(r"^cpu MHz\s*:\s*([0-9.]+)$", cpuinfo, re.MULTILINE)
    return float(match.group(1)) if match else None


def parse_memory_mb(meminfo: str, field: str) -> Optional[int]:
    """A field of /proc/meminfo in whole MiB."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(match.group(1)) // 1024 if match else None


def parse_load_average(loadavg: str) -> Optional[List[float]]:
    """The load averages of 1, 5 and 15 minutes of /proc/loadavg."""
    fields = loadavg.split()
    return [float(field) for field in fields[:3]] if len(fields) >= 3 else None


def parse_cpu_times(stat: str) -> Optional[Tuple[int, int]]:
    """(busy, all) time of all cores from `/proc/stat`, in the kernel's ticks; None where it has no such line."""
    match = re.search(r"^cpu +([\d ]+)$", stat, re.MULTILINE)
    times = [int(field) for field in match.group(1).split()[:8]] if match else []
    if len(times) < 5:
        return None
    return sum(times) - times[3] - times[4], sum(times)  # without idle and waiting for a disk


def parse_os_name(os_release: str) -> Optional[str]:
    """PRETTY_NAME of /etc/os-release."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', os_release, re.MULTILINE)
    return match.group(1) if match else None


def installed_runtimes() -> Dict[str, Dict[str, str]]:
    """By distribution name, the runtime it brings and its version; nothing is imported."""
    found = {}
    for package, runtime in RUNTIME_PACKAGES.items():
        try:
            found[package] = {"runtime": runtime, "version": metadata.version(package)}
        except metadata.PackageNotFoundError:
            continue
    return found


def _busy_share() -> Optional[float]:
    """Share of all cores' time that was spent on something during a third of a second, 0..1.

    Unlike the load average it does not remember what ended a minute ago.
    """
    before = parse_cpu_times(_read("/proc/stat"))
    time.sleep(_BUSY_SAMPLE_S)
    after = parse_cpu_times(_read("/proc/stat"))
    if before is None or after is None or after[1] <= before[1]:
        return None
    return round((after[0] - before[0]) / (after[1] - before[1]), 3)


def _usable_cores() -> Optional[int]:
    """Cores this process may run on; fewer than there are under taskset or in a container."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _throttle_count() -> Optional[int]:
    """How often the first core was slowed down for heat since the start (Intel tells)."""
    text = _read("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count").strip()
    return int(text) if text.isdigit() else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""

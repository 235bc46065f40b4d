"""What a board is and how it is right now: files of the kernel, each read by a pure parser."""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import sys
import time
from importlib import metadata, util
from typing import Any, Dict, List, Optional, Tuple

from . import hardware
from .interpreter import android_properties
from .kernel import read_text

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

_BUSY_SAMPLE_S = 0.33
_CPU_IDS = f"{hardware.CPUS}/cpu0/regs/identification/midr_el1"


def collect() -> Dict[str, Any]:
    """Everything, JSON values only; what the board does not tell is None."""
    cpuinfo = read_text("/proc/cpuinfo")
    libc, libc_version = platform.libc_ver()
    android = android_properties()
    return {
        "cpu_model": parse_cpu_model(cpuinfo),
        "board_model": read_text("/proc/device-tree/model").rstrip("\0\n") or android.get("model"),
        "architecture": platform.machine(),
        "cpu_features": parse_cpu_features(cpuinfo),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "clusters": hardware.clusters(cpuinfo),
        "governor": hardware.governor(),
        "frequency_mhz": parse_frequency_mhz(cpuinfo, read_text(f"{hardware.CPUS}/cpu0/cpufreq/scaling_cur_freq")),
        "memory_mb": parse_memory_mb(read_text("/proc/meminfo"), "MemTotal"),
        "available_memory_mb": parse_memory_mb(read_text("/proc/meminfo"), "MemAvailable"),
        "cpu_busy_share": _busy_share(),
        "load_average": parse_load_average(read_text("/proc/loadavg")),
        "throttle_count": hardware.throttle_count(),
        "throttling": hardware.throttling(),
        "cooling_states": hardware.cooling_states(),
        "temperatures_c": hardware.temperatures_c(),
        "energy_sensors": hardware.energy_sensors(),
        **_storage_mb(os.path.expanduser("~")),
        "kernel": platform.release(),
        "os": parse_os_name(read_text("/etc/os-release")) or android.get("os") or platform.system(),
        "libc": "bionic" if hasattr(sys, "getandroidapilevel") else f"{libc} {libc_version}" if libc else None,
        "python": platform.python_version(),
        "python_executable": sys.executable,
        "python_bits": 8 * struct.calcsize("P"),
        "python_modules": {name: util.find_spec(name) is not None for name in ("venv", "ensurepip", "pip")},
        "numpy": _version("numpy"),
        "cpu_ids": hardware.parse_cpu_ids(read_text(_CPU_IDS)),
        "runtimes": installed_runtimes(),
    }


def parse_cpu_model(cpuinfo: str) -> Optional[str]:
    """The name of the processor; on ARM the names of its cores, such as "4 x Cortex-A55 + 2 x Cortex-A76"."""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    implementers = re.findall(r"^CPU implementer\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\S+)$", cpuinfo, re.MULTILINE)
    if parts and len(implementers) == len(parts):
        names = [
            hardware.ARM_PARTS.get(pair, f"implementer {pair[0]} part {pair[1]}") for pair in zip(implementers, parts)
        ]
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
    versions = {package: _version(package) for package in RUNTIME_PACKAGES}
    return {
        package: {"runtime": RUNTIME_PACKAGES[package], "version": version}
        for package, version in versions.items()
        if version is not None
    }


def _version(package: str) -> Optional[str]:
    """Of an installed distribution; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _storage_mb(folder: str) -> Dict[str, Optional[int]]:
    """MiB of the file system that a folder lies on, and those of them that are free."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return {"storage_mb": None, "free_storage_mb": None}
    return {"storage_mb": usage.total >> 20, "free_storage_mb": usage.free >> 20}


def _busy_share() -> Optional[float]:
    """Share of all cores' time that was spent on something during a third of a second, 0..1.

    Unlike the load average it does not remember what ended a minute ago.
    """
    before = parse_cpu_times(read_text("/proc/stat"))
    time.sleep(_BUSY_SAMPLE_S)
    after = parse_cpu_times(read_text("/proc/stat"))
    if before is None or after is None or after[1] <= before[1]:
        return None
    return round((after[0] - before[0]) / (after[1] - before[1]), 3)


def _usable_cores() -> Optional[int]:
    """Cores this process may run on; fewer than there are under taskset or in a container."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()

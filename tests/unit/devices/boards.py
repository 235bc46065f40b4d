"""Boards for tests: one that is well, as facts, and the files of others as their kernels write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.profile import DeviceProfile

WELL: dict[str, Any] = {
    "board_model": "Raspberry Pi 4 Model B Rev 1.4",
    "cpu_model": "4 x Cortex-A72",
    "architecture": "aarch64",
    "cpu_features": ["asimd"],
    "cores": 4,
    "usable_cores": 4,
    "clusters": [{"core": "Cortex-A72", "cpus": [0, 1, 2, 3], "max_mhz": 1800.0}],
    "governor": "performance",
    "frequency_mhz": 1800.0,
    "memory_mb": 3793,
    "available_memory_mb": 3100,
    "cpu_busy_share": 0.02,
    "throttling": {"now": [], "since_start": []},
    "cooling_states": {},
    "temperatures_c": {"cpu-thermal": 48.3},
    "energy_sensors": [],
    "storage_mb": 29000,
    "free_storage_mb": 21000,
    "kernel": "6.6.31+rpt-rpi-v8",
    "os": "Debian GNU/Linux 12 (bookworm)",
    "libc": "glibc 2.36",
    "python": "3.11.2",
    "python_executable": "/usr/bin/python3",
    "python_bits": 64,
    "python_modules": {"venv": True, "ensurepip": True, "pip": True},
    "numpy": "2.3.5",
    "cpu_ids": True,
    "runtimes": {
        "ai-edge-litert": {"runtime": "litert", "version": "2.3.0"},
        "onnxruntime": {"runtime": "onnxruntime", "version": "1.31.0"},
        "openvino": {"runtime": "openvino", "version": "2026.4.0"},
    },
}
"""What a Raspberry Pi 4 with all runtimes says of itself."""


def profile_of(**changes: Any) -> DeviceProfile:
    """The profile of that board, reached over SSH unless told otherwise."""
    values = {
        "name": "board",
        "description": "A board.",
        "architecture": "aarch64",
        "runtimes": {"litert": "ai-edge-litert>=2.3,<3", "onnxruntime": "onnxruntime>=1.31,<2"},
        "transport": {"kind": "ssh", "host": "10.0.0.7", "user": "pi"},
        "latency_label": "measured",
        **changes,
    }
    return DeviceProfile.model_validate({"preference": list(values["runtimes"]), **values})


CPU = "sys/devices/system/cpu"
RASPBERRY_PI_4 = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61835\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    **{f"{CPU}/cpu{core}/cpufreq/scaling_cur_freq": "1500000\n" for core in range(4)},
    **{f"{CPU}/cpu{core}/cpufreq/scaling_governor": "ondemand\n" for core in range(4)},
    **{f"{CPU}/cpu{core}/cpufreq/cpuinfo_max_freq": "1500000\n" for core in range(4)},
    f"{CPU}/cpu0/cpufreq/scaling_available_governors": "conservative ondemand userspace powersave performance \n",
}
ROCK_5B = {
    "sys/class/thermal/thermal_zone0/type": "soc-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "38846\n",
    "sys/class/thermal/thermal_zone1/type": "bigcore0-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "44384\n",
    "sys/class/thermal/thermal_zone2/type": "sleeping-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-274000\n",
    **{f"{CPU}/cpu{core}/cpu_capacity": "414\n" for core in range(4)},
    **{f"{CPU}/cpu{core}/cpu_capacity": "1024\n" for core in range(4, 8)},
    f"{CPU}/cpu10/cpufreq/scaling_cur_freq": "300000\n",
    f"{CPU}/cpu9/cpufreq/scaling_cur_freq": "2400000\n",
}
LAPTOP = {
    "sys/class/hwmon/hwmon3/name": "k10temp\n",
    "sys/class/hwmon/hwmon3/temp1_input": "55250\n",
    "sys/class/hwmon/hwmon4/name": "nvme\n",
    "sys/class/hwmon/hwmon4/temp1_input": "70000\n",
    f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "12\n",
    "proc/cpuinfo": "cpu MHz\t\t: 2596.122\ncpu MHz\t\t: 1400.000\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "5000\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "77\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "300\n",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "5000\n",
}


def plant(root: Path, files: Mapping[str, str]) -> str:
    """Writes the files of a board below a root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)

"""A board that is well, as facts; the tests make it ill."""

from __future__ import annotations

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

"""What decides which packages run on a board, and which it has."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from typing import Any, Dict, List, Optional, Tuple


def describe_board() -> Dict[str, Any]:
    """What decides which packages run here."""
    version = sys.version_info
    threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    libc, libc_version = _libc()
    return {
        "python": list(version[:3]),
        "executable": sys.executable,
        "abi": f"cp{version[0]}{version[1]}{threads}",
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "libc": libc,
        "libc_version": libc_version,
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": platform.python_version(),
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": platform.python_version(),
            "python_version": f"{version[0]}.{version[1]}",
            "sys_platform": sys.platform,
        },
    }


def _libc() -> Tuple[str, List[int]]:
    """Name and version of the C library; `("unknown", [])` where it does not tell."""
    with contextlib.suppress(ValueError, OSError):
        match = re.match(r"glibc (\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
        if match:
            return "glibc", [int(match[1]), int(match[2])]
    for loader in glob.glob("/lib/ld-musl-*.so.1"):
        told = subprocess.run([loader], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False).stderr
        told_version = re.search(rb"Version (\d+)\.(\d+)", told)
        if told_version:
            return "musl", [int(told_version[1]), int(told_version[2])]
    return "unknown", []


def installed_version(name: str) -> Optional[str]:
    """The version of a distribution; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

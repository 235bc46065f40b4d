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

_GETPROP = "/system/bin/getprop"


def describe_board() -> Dict[str, Any]:
    """What decides which packages run here."""
    version = sys.version_info
    threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    libc, libc_version = c_library()
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


def c_library() -> Tuple[str, List[int]]:
    """Name and version of the C library; `("unknown", [])` where it does not tell.

    Android's has no version. Wheels for Android name the least level of the system's interface instead (PEP 738), so
    this is the one that Python was built for; before 3.13 there are no such wheels.
    """
    level = getattr(sys, "getandroidapilevel", None)
    if level is not None:
        return "bionic", [level()] if sys.version_info >= (3, 13) else []
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


def android_properties() -> Dict[str, str]:
    """`os` and `model` of an Android system, as far as it tells them; nothing on another."""
    if not hasattr(sys, "getandroidapilevel"):
        return {}
    release, maker, model = (
        _property(name) for name in ("ro.build.version.release", "ro.product.manufacturer", "ro.product.model")
    )
    told = {"os": f"Android {release}".strip(), "model": f"{maker} {model}".strip()}
    return {name: value for name, value in told.items() if value}


def _property(name: str) -> str:
    """A property of an Android system; empty where it does not tell."""
    try:
        done = subprocess.run(
            [_GETPROP, name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            timeout=5.0, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()


def installed_version(name: str) -> Optional[str]:
    """The version of a distribution; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

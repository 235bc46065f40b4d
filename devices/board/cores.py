"""On which cores an inference runs: clusters of like cores, and the affinity of this process."""

from __future__ import annotations

import glob
import os
import re
from typing import Dict, List, Optional, Set

from .errors import AgentError

_CPUS = "/sys/devices/system/cpu"
_NAMES = {1: ("all",), 2: ("big", "little"), 3: ("big", "middle", "little")}


def clusters(root: str = "") -> Dict[str, List[int]]:
    """Cores that are alike, by name: the fastest are `big`, then `middle`, `little`; `all` where all are alike.

    Told apart by `cpu_capacity`, which the kernel takes from the device tree, else by the highest frequency.
    """
    speeds: Dict[int, int] = {}
    for directory in glob.glob(f"{root}{_CPUS}/cpu[0-9]*"):
        match = re.search(r"/cpu(\d+)$", directory)
        if match is None:
            continue
        for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
            value = _whole_number(os.path.join(directory, name))
            if value is not None:
                speeds[int(match.group(1))] = value
                break
        else:
            speeds[int(match.group(1))] = 0
    groups: Dict[int, List[int]] = {}
    for core, speed in speeds.items():
        groups.setdefault(speed, []).append(core)
    ordered = [sorted(groups[speed]) for speed in sorted(groups, reverse=True)]
    names = _NAMES.get(len(ordered)) or tuple(f"cluster{index}" for index in range(len(ordered)))
    return dict(zip(names, ordered))


def parse_cores(text: str) -> Optional[List[int]]:
    """The cores of a list such as `0-3,6`, sorted; None where the text is no such list."""
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text) is None:
        return None
    cores: Set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return sorted(cores) or None


def pin(text: str, root: str = "") -> List[int]:
    """Keeps this process, and the threads it starts from now on, on some cores.

    Args:
        text: A list such as `0-3,6`, or the name of a cluster.
        root: Of the file system that the clusters are read from.

    Returns:
        The cores.

    Raises:
        AgentError: There is no such cluster or core, or the process may not run there.
    """
    known = clusters(root)
    cores = parse_cores(text)
    if cores is None:
        cores = known.get(text)
    listed = ", ".join(f"{name} ({as_list(each)})" for name, each in known.items()) or "none"
    if cores is None:
        raise AgentError(f"no cores '{text}'; give a list such as 0-3 or 0,2, or a cluster of this device: {listed}")
    if not hasattr(os, "sched_setaffinity"):
        raise AgentError("cores can't be chosen on this operating system; measure without --cores")
    allowed = sorted(os.sched_getaffinity(0))
    missing = [core for core in cores if core not in allowed]
    if missing:
        raise AgentError(
            f"core {as_list(missing)} can't be used; this process may run on {as_list(allowed)} (clusters: {listed})"
        )
    os.sched_setaffinity(0, cores)
    return cores


def as_list(cores: List[int]) -> str:
    """Cores as `parse_cores` takes them: `0-3,6`."""
    parts: List[List[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _whole_number(path: str) -> Optional[int]:
    try:
        with open(path, encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return None

"""On which cores an inference runs: clusters of like cores, and the affinity of this process."""

from __future__ import annotations

import os
import re
from typing import Dict, List, Mapping, Optional, Sequence, Set

from .errors import BadInput
from .hardware import clusters, core_speeds
from .kernel import read_text

_BY_SPEED = {1: ("all",), 2: ("big", "little"), 3: ("big", "middle", "little")}


def named_clusters(root: str = "") -> Dict[str, List[int]]:
    """The clusters of the board (see `hardware.clusters`) under all their names.

    The fastest is `big`, then come `middle` and `little`; `all` where all cores are alike; `cluster0` and so on where
    there are more. Each has the name of its cores too, such as `Cortex-A76`. What is fast is told by the capacity that
    the kernel takes from the device tree where all cores have one, else by the highest frequency.
    """
    told = clusters(read_text(root + "/proc/cpuinfo"), root)
    speeds = core_speeds([cpu for cluster in told for cpu in cluster["cpus"]], root)
    by_capacity = all(capacity is not None for _, capacity in speeds.values())
    ranked = []
    for cluster in told:
        speed = max((speeds[cpu][1 if by_capacity else 0] or 0 for cpu in cluster["cpus"]), default=0)
        ranked.append((speed, list(cluster["cpus"])))
    ranked.sort(key=lambda pair: -pair[0])
    names = _BY_SPEED.get(len(ranked))
    if names is None or (len(ranked) > 1 and ranked[-1][0] == 0):  # more than have names, or nothing tells the fastest
        names = tuple(f"cluster{index}" for index in range(len(ranked)))
    found = {name: cpus for name, (_, cpus) in zip(names, ranked)}
    for cluster in told:
        if cluster["core"] != "unknown":
            found[cluster["core"]] = sorted([*found.get(cluster["core"], []), *cluster["cpus"]])
    return found


def parse_cores(text: str) -> Optional[List[int]]:
    """The cores of a list such as `0-3,6`, sorted; None where the text is no such list."""
    if re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text) is None:
        return None
    cores: Set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return sorted(cores) or None


def find_cores(text: str, known: Mapping[str, Sequence[int]]) -> List[int]:
    """The cores of a list, or of a name in any case.

    Args:
        text: Such as `0-3,6` or `big`.
        known: Cores by name.

    Raises:
        BadInput: It is neither.
    """
    by_name = {name.lower(): cores for name, cores in known.items()}
    cores = parse_cores(text) or by_name.get(text.strip().lower())
    if not cores:
        names = ", ".join(f"{name} ({as_list(each)})" for name, each in known.items())
        offered = f", or by name those of this device: {names}" if names else "; this device names none"
        raise BadInput(f"there are no cores '{text}'; expected a list such as 0-3 or 0,2{offered}")
    return list(cores)


def pin(text: str, root: str = "", *, named: Optional[Mapping[str, Sequence[int]]] = None) -> List[int]:
    """Keeps this process, and the threads it starts from now on, on some cores.

    Args:
        text: A list such as `0-3,6`, or a name of `named_clusters`.
        root: Of the file system that the clusters are read from.
        named: More cores by name, from the device's profile; the names that the board tells count before these.

    Returns:
        The cores.

    Raises:
        BadInput: There are no such cores, or the process may not run there.
    """
    told = named_clusters(root)
    names = {name.lower() for name in told}
    known = {**told, **{name: cores for name, cores in (named or {}).items() if name.lower() not in names}}
    cores = find_cores(text, known)
    if not hasattr(os, "sched_setaffinity"):
        raise BadInput("cores can't be chosen on this operating system; measure without --cores")
    allowed = sorted(os.sched_getaffinity(0))
    missing = [core for core in cores if core not in allowed]
    if missing:
        listed = ", ".join(f"{name} ({as_list(each)})" for name, each in known.items()) or "none"
        raise BadInput(
            f"the cores asked for are {text}, but {as_list(missing)} can't be used: this process may run on "
            f"{as_list(allowed)}. Give some of these, or a name: {listed}"
        )
    os.sched_setaffinity(0, cores)
    return cores


def as_list(cores: Sequence[int]) -> str:
    """Cores as `parse_cores` takes them: `0-3,6`."""
    parts: List[List[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)

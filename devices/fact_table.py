"""What a profile says of a board beside what the board says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from devices.profile import DeviceProfile
from devices.wheels import parse_version, satisfies

_LEAST_MEMORY_SHARE = 0.75
"""The kernel and the graphics keep some of the memory for themselves: a Raspberry Pi Zero 2 W tells of 81 %."""
_SAME_FREQUENCY = 0.05


@dataclass(frozen=True)
class FactRow:
    """One fact, in words.

    Attributes:
        fact: What it is about.
        profile: What the profile says; None where it leaves that to the board.
        board: What the board says; None where it does not.
        differs: Whether both say something, and not the same.
    """

    fact: str
    profile: str | None
    board: str | None
    differs: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)


def compare_facts(profile: DeviceProfile, facts: Mapping[str, Any]) -> tuple[FactRow, ...]:
    """All facts, those in front that a profile can have.

    Args:
        profile: What is expected.
        facts: The agent's answer to `facts`.
    """
    return (*_compared(profile, facts), *_runtimes(profile, facts), *_only_told(facts))


def profile_rows(profile: DeviceProfile) -> list[tuple[str, str, str]]:
    """Name, value in words and sources of all that a profile sets."""
    rows = []
    for name, value in profile.model_dump(mode="json", exclude_defaults=True).items():
        if name in ("sources", "notes"):
            continue
        if name == "transport":
            value = {"kind": profile.transport.kind, **value}  # noqa: PLW2901 (of a default one nothing would be left)
        words = cluster_text(value) if name == "clusters" else _in_words(value)
        rows.append((name, words or "-", "\n".join(profile.sources.get(name, ()))))
    return rows


def cluster_text(clusters: Sequence[Mapping[str, Any]]) -> str | None:
    """Clusters in words: `4 x Cortex-A55 (0-3, 1800 MHz) + 4 x Cortex-A76 (4-7, 2400 MHz)`."""
    return " + ".join(map(_one_cluster, clusters)) or None


def _compared(profile: DeviceProfile, facts: Mapping[str, Any]) -> list[FactRow]:
    model, memory_mb = facts.get("board_model"), facts.get("memory_mb")
    system, python, libc = facts.get("os"), facts.get("python"), facts.get("libc")
    features = None if facts.get("cpu_features") is None else sorted(facts["cpu_features"])
    expected = None if profile.cpu_features is None else sorted(profile.cpu_features)
    return [
        _row("board", profile.board_model, model, same=str(model).startswith(profile.board_model or "")),
        _row("processor", profile.soc, facts.get("cpu_model"), same=True),
        _row("architecture", profile.architecture, facts.get("architecture")),
        _row("CPU features", _listed(expected), _listed(features), same=expected == features),
        _row("cores", _text(profile.cores), _text(facts.get("cores"))),
        _cluster_row(profile, facts),
        _row(
            "memory",
            _mebibytes(profile.memory_mb),
            _mebibytes(memory_mb),
            same=_LEAST_MEMORY_SHARE * (profile.memory_mb or 0) <= (memory_mb or 0) <= (profile.memory_mb or 0),
        ),
        _row("storage", _storage(profile), _free(facts), same=True),
        _row("system", profile.os, system, same=str(system).startswith(profile.os or "")),
        _row("Python", profile.python_version, python, same=_begins(python, profile.python_version)),
        _row("C library", profile.libc, libc),
    ]


def _cluster_row(profile: DeviceProfile, facts: Mapping[str, Any]) -> FactRow:
    expected = [cluster.model_dump(mode="json") for cluster in profile.clusters or ()]
    told = facts.get("clusters") or []
    same = [each["core"] for each in expected] == [each["core"] for each in told] and all(
        _same_cluster(one, other) for one, other in zip(expected, told, strict=True)
    )
    return _row("clusters", cluster_text(expected), cluster_text(told), same=same)


def _same_cluster(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    frequencies = one["max_mhz"], other["max_mhz"]
    like = None in frequencies or abs(frequencies[0] - frequencies[1]) <= _SAME_FREQUENCY * max(frequencies)
    return list(one["cpus"]) == list(other["cpus"]) and like


def _runtimes(profile: DeviceProfile, facts: Mapping[str, Any]) -> list[FactRow]:
    """A row for each runtime of the profile, and one for each package beside."""
    installed: Mapping[str, Mapping[str, str]] = facts.get("runtimes") or {}
    rows, shown = [], set()
    for runtime in profile.preference:
        requirement = profile.runtimes[runtime]
        packages = [package for package, found in installed.items() if found["runtime"] == runtime]
        shown |= set(packages)
        board = ", ".join(f"{package} {installed[package]['version']}" for package in packages)
        fits = any(satisfies(requirement, package, installed[package]["version"]) for package in packages)
        # What comes with Edgeship has no requirement.
        rows.append(
            _row(f"runtime {runtime}", requirement or "with Edgeship", board or None, same=fits or not requirement)
        )
    for package in sorted(set(installed) - shown):
        found = installed[package]
        rows.append(FactRow(f"runtime {found['runtime']}", None, f"{package} {found['version']}"))
    return rows


def _only_told(facts: Mapping[str, Any]) -> list[FactRow]:
    """What changes from minute to minute, or belongs to no profile."""
    temperatures = facts.get("temperatures_c") or {}
    throttling, busy = facts.get("throttling"), facts.get("cpu_busy_share")
    frequency, energy = facts.get("frequency_mhz"), facts.get("energy_sensors")
    return [
        FactRow("governor", None, facts.get("governor")),
        FactRow("frequency now", None, None if frequency is None else f"{frequency:.0f} MHz"),
        FactRow(
            "temperature", None, ", ".join(f"{name} {value:.0f} °C" for name, value in temperatures.items()) or None
        ),
        FactRow("slowed down by", None, None if throttling is None else _throttling(throttling)),
        FactRow("energy sensors", None, _listed([each["name"] for each in energy]) if energy else None),
        FactRow("free memory", None, _mebibytes(facts.get("available_memory_mb"))),
        FactRow("busy", None, None if busy is None else f"{busy:.0%} of the cores"),
        FactRow("kernel", None, facts.get("kernel")),
        FactRow("numpy", None, facts.get("numpy")),
    ]


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_in_words(each)}" for name, each in value.items() if each is not None)
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "none"
    return str(value)


def _row(fact: str, profile: str | None, board: str | None, *, same: bool | None = None) -> FactRow:
    if same is None:
        same = profile == board
    return FactRow(fact, profile, board, differs=profile is not None and board is not None and not same)


def _begins(version: str | None, beginning: str | None) -> bool:
    """Whether 3.11.2 begins with 3.11."""
    first = parse_version(beginning or "")
    return parse_version(version or "")[: len(first)] == first


def _one_cluster(cluster: Mapping[str, Any]) -> str:
    cpus = list(cluster["cpus"])
    numbers = f"{cpus[0]}-{cpus[-1]}" if len(cpus) == cpus[-1] - cpus[0] + 1 > 1 else ",".join(map(str, cpus))
    frequency = "" if cluster.get("max_mhz") is None else f", {cluster['max_mhz']:.0f} MHz"
    return f"{len(cpus)} x {cluster['core']} ({numbers}{frequency})"


def _throttling(throttling: Mapping[str, Sequence[str]]) -> str:
    now, before = throttling["now"], throttling["since_start"]
    return f"{', '.join(now) or 'nothing'}; since the start {', '.join(before) or 'nothing'}"


def _storage(profile: DeviceProfile) -> str | None:
    if profile.storage is None:
        return None
    size = "" if profile.storage.size_gb is None else f", {profile.storage.size_gb:g} GB"
    return profile.storage.kind + size


def _free(facts: Mapping[str, Any]) -> str | None:
    size, free = facts.get("storage_mb"), facts.get("free_storage_mb")
    return None if size is None or free is None else f"{free} of {size} MiB free"


def _listed(values: Sequence[str] | None) -> str | None:
    return None if values is None else ", ".join(values) or "none"


def _mebibytes(value: int | None) -> str | None:
    return None if value is None else f"{value} MiB"


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)

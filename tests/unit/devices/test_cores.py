"""Names of cores, and keeping to them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from devices.board.cores import as_list, find_cores, named_clusters, parse_cores, pin
from devices.board.errors import BadInput

sys.path.insert(0, str(Path(__file__).parent))

from boards import RASPBERRY_PI_4, ROCK_5B, plant


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (ROCK_5B, {"big": [4, 5, 6, 7], "little": [0, 1, 2, 3]}),
        (RASPBERRY_PI_4, {"all": [0, 1, 2, 3]}),
        ({}, {}),
    ],
    ids=["big and little", "alike", "not told"],
)
def test_clusters(files: dict[str, str], expected: dict[str, list[int]], tmp_path: Path) -> None:
    root = plant(tmp_path, {name: text for name, text in files.items() if "scaling_cur_freq" not in name})
    assert named_clusters(root) == expected


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0", [0]), ("0-3", [0, 1, 2, 3]), ("6,0-1", [0, 1, 6]), ("3-1", None), ("big", None), ("", None), ("1,", None)],
)
def test_lists_of_cores(text: str, cores: list[int] | None) -> None:
    assert parse_cores(text) == cores
    if cores:
        assert parse_cores(as_list(cores)) == cores


def test_pinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path, {name: text for name, text in ROCK_5B.items() if "capacity" in name})
    kept: list[object] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores))
    assert pin("little", root) == [0, 1, 2, 3]
    assert pin("4,6", root) == [4, 6]
    assert kept == [[0, 1, 2, 3], [4, 6]]
    with pytest.raises(
        BadInput, match=r"asked for are big, but 7 can't be used: this process may run on 0-6. .* big \(4-7\)"
    ):
        pin("big", root)
    with pytest.raises(BadInput, match=r"no cores 'bgi'; expected .* big \(4-7\), little \(0-3\)"):
        pin("bgi", root)
    assert len(kept) == 2


def cpuinfo(*parts: str) -> str:
    return "\n\n".join(
        f"processor\t: {core}\nCPU implementer\t: 0x41\nCPU part\t: {part}" for core, part in enumerate(parts)
    )


def test_names_of_an_rk3588(tmp_path: Path) -> None:
    """Its fast cores are two pairs by frequency, and one cluster by their kind; the slow ones reach more MHz here."""
    speeds = {0: 2600000, 1: 2256000, 2: 2304000}
    files = {f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq": f"{khz}\n" for cpu, khz in speeds.items()}
    files |= {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{(530, 1010, 1024)[cpu]}\n" for cpu in speeds}
    root = plant(tmp_path, {**files, "proc/cpuinfo": cpuinfo("0xd05", "0xd0b", "0xd0b")})
    assert named_clusters(root) == {"big": [1, 2], "little": [0], "Cortex-A55": [0], "Cortex-A76": [1, 2]}


def test_nothing_is_called_big_where_nothing_tells_what_is_fast(tmp_path: Path) -> None:
    root = plant(tmp_path, {"proc/cpuinfo": cpuinfo("0xd05", "0xd0b")})
    assert named_clusters(root) == {"cluster0": [0], "cluster1": [1], "Cortex-A55": [0], "Cortex-A76": [1]}


def test_pinning_by_the_name_of_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores))
    root = plant(tmp_path, {"proc/cpuinfo": cpuinfo("0xd0b", "0xd05")})
    profile = {"Cortex-A76": [4, 5, 6, 7], "NPU host": [2, 3]}
    assert pin("cortex-a76", root, named=profile) == [0], "what the board tells counts before its profile"
    assert pin("NPU host", root, named=profile) == [2, 3]
    with pytest.raises(BadInput, match=r"Cortex-A76 \(0\), Cortex-A55 \(1\), NPU host \(2-3\)"):
        pin("Cortex-A72", root, named=profile)
    assert kept == [[0], [2, 3]]


def test_a_board_that_names_no_cores_says_so() -> None:
    with pytest.raises(BadInput, match=r"there are no cores 'big'; expected a list .*; this device names none"):
        find_cores("big", {})

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devices.fact_table import cluster_text, compare_facts, profile_rows
from devices.profile import DeviceProfile, list_profiles, load_profile
from devices.transports import open_transport

sys.path.insert(0, str(Path(__file__).parent))

from boards import WELL


def differing(profile: DeviceProfile, facts: dict[str, Any]) -> list[str]:
    return [row.fact for row in compare_facts(profile, facts) if row.differs]


def test_a_board_as_its_profile_says() -> None:
    rows = {row.fact: row for row in compare_facts(load_profile("raspberry-pi-4"), WELL)}
    assert [row.fact for row in rows.values() if row.differs] == []
    assert (rows["Python"].profile, rows["Python"].board) == ("3.11", "3.11.2")
    assert rows["clusters"].board == "4 x Cortex-A72 (0-3, 1800 MHz)"
    assert rows["storage"].board == "21000 of 29000 MiB free"
    assert rows["runtime litert"].board == "ai-edge-litert 2.3.0"
    assert rows["temperature"].board == "cpu-thermal 48 °C"
    assert rows["slowed down by"].board == "nothing; since the start nothing"


class Other(NamedTuple):
    fact: str
    facts: dict[str, Any]


OTHERS = [
    Other("board", {"board_model": "Raspberry Pi 5 Model B Rev 1.0"}),
    Other("architecture", {"architecture": "armv7l"}),
    Other("CPU features", {"cpu_features": ["asimd", "asimddp"]}),
    Other("CPU features", {"cpu_features": []}),
    Other("cores", {"cores": 3}),
    Other("clusters", {"clusters": [{"core": "Cortex-A76", "cpus": [0, 1, 2, 3], "max_mhz": 1800.0}]}),
    Other("clusters", {"clusters": [{"core": "Cortex-A72", "cpus": [0, 1], "max_mhz": 1800.0}]}),
    Other("clusters", {"clusters": [{"core": "Cortex-A72", "cpus": [0, 1, 2, 3], "max_mhz": 1500.0}]}),
    Other("memory", {"memory_mb": 1024}),
    Other("memory", {"memory_mb": 4097}),
    Other("system", {"os": "Ubuntu 24.04.1 LTS"}),
    Other("Python", {"python": "3.1.1"}),
    Other("Python", {"python": "3.13.5"}),
    Other("C library", {"libc": "glibc 2.41"}),
    Other(
        "runtime litert", {"runtimes": {**WELL["runtimes"], "ai-edge-litert": {"runtime": "litert", "version": "1.0"}}}
    ),
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: f"{other.fact}: {next(iter(other.facts.values()))}"[:50])
def test_one_difference_is_one_difference(other: Other) -> None:
    profile = load_profile("raspberry-pi-4").model_copy(update={"memory_mb": 4096})
    assert differing(profile, {**WELL, **other.facts}) == [other.fact]


def test_what_only_one_side_tells_does_not_differ() -> None:
    assert differing(load_profile("local"), WELL) == []
    assert differing(load_profile("rock-5b"), dict.fromkeys(WELL)) == []


def test_packages_beside_the_profile_are_shown() -> None:
    tflite = {"tflite-runtime": {"runtime": "litert", "version": "2.14.0"}}
    rows = compare_facts(load_profile("raspberry-pi-4"), {**WELL, "runtimes": {**WELL["runtimes"], **tflite}})
    litert = next(row for row in rows if row.fact == "runtime litert")
    assert (litert.board, litert.differs) == ("ai-edge-litert 2.3.0, tflite-runtime 2.14.0", False)
    rows = compare_facts(load_profile("fake"), WELL)
    assert "runtime openvino" in [row.fact for row in rows if row.profile is None]


@pytest.mark.parametrize("name", ["local", "fake"])
def test_facts_of_this_machine_compare(name: str) -> None:
    profile = load_profile(name)
    with open_transport(profile).start_agent() as agent:
        facts = agent.request("facts", timeout_s=60)
    assert differing(profile, facts) == []
    assert all(isinstance(row.board, str | None) for row in compare_facts(profile, facts))


def test_clusters_in_words() -> None:
    text = cluster_text(
        [
            {"core": "Cortex-A55", "cpus": [0, 2, 3], "max_mhz": None},
            {"core": "Cortex-A76", "cpus": [4], "max_mhz": 2400.0},
        ]
    )
    assert text == "3 x Cortex-A55 (0,2,3) + 1 x Cortex-A76 (4, 2400 MHz)"
    assert cluster_text([]) is None


def test_a_profile_in_rows() -> None:
    rows = {name: (value, source) for name, value, source in profile_rows(load_profile("jetson-orin-nano"))}
    assert rows["clusters"][0] == "6 x Cortex-A78AE (0-5, 1700 MHz)"
    assert "DS-11105" in rows["memory_mb"][1]
    assert not {"notes", "sources"} & set(rows)


@pytest.mark.parametrize("name", list_profiles())
def test_every_profile_can_be_shown(name: str) -> None:
    rows = {row[0]: row for row in profile_rows(load_profile(name))}

    assert rows["name"][1] == name
    for fact, sources in load_profile(name).sources.items():
        assert all(source in rows[fact][2] for source in sources)

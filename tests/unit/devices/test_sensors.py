"""What a board feels, from files as kernels write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from devices.board.cores import as_list, clusters, parse_cores, pin
from devices.board.errors import AgentError
from devices.board.sensors import EnergyMeter, parse_throttled, restore_governors, sample, set_governor

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


def board(root: Path, files: Mapping[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def test_a_raspberry_pi(tmp_path: Path) -> None:
    found = sample(board(tmp_path, RASPBERRY_PI_4))
    assert found["temperature_c"] == pytest.approx(61.835)
    assert found["frequency_mhz"] == [1500.0] * 4
    assert found["governor"] == "ondemand"
    assert found["throttled"] == ["under-voltage", "throttled"]
    assert found["throttled_before"] == ["under-voltage", "throttled"]
    assert found["throttle_count"] is None


def test_the_highest_zone_counts_and_sleeping_ones_do_not(tmp_path: Path) -> None:
    found = sample(board(tmp_path, ROCK_5B))
    assert found["temperature_c"] == pytest.approx(44.384)
    assert found["temperatures_c"] == {"soc-thermal": 38.846, "bigcore0-thermal": 44.384}
    assert found["frequency_mhz"] == [2400.0, 300.0]


def test_a_laptop_without_zones(tmp_path: Path) -> None:
    found = sample(board(tmp_path, LAPTOP))
    assert found["temperatures_c"] == {"k10temp temp1": 55.25}
    assert found["frequency_mhz"] == [2596.122, 1400.0]
    assert (found["throttle_count"], found["throttled"]) == (12, None)


def test_a_board_that_tells_nothing(tmp_path: Path) -> None:
    found = sample(str(tmp_path))
    assert found.pop("time_s") > 0
    assert found == {"temperature_c": None, "temperatures_c": {}, "frequency_mhz": [], "governor": None,
                     "throttle_count": None, "throttled": None, "throttled_before": None}  # fmt: skip
    assert EnergyMeter(str(tmp_path)).reason == "no energy sensor: /sys/class/powercap has no RAPL package"


class Flags(NamedTuple):
    text: str
    now: list[str] | None
    before: list[str] | None


@pytest.mark.parametrize(
    "flags",
    [
        Flags("0x0", [], []),
        Flags("0x80008\n", ["soft temperature limit"], ["soft temperature limit"]),
        Flags("20000", [], ["frequency capped"]),
        Flags("", None, None),
        Flags("throttled=0x0", None, None),
    ],
    ids=lambda flags: flags.text.strip() or "none",
)
def test_flags_of_the_firmware(flags: Flags) -> None:
    assert parse_throttled(flags.text) == (flags.now, flags.before)


def test_the_governor_is_set_and_put_back(tmp_path: Path) -> None:
    root = board(tmp_path, RASPBERRY_PI_4)
    (tmp_path / CPU / "cpu2/cpufreq/scaling_governor").write_text("powersave\n")
    paths = [tmp_path / CPU / f"cpu{core}/cpufreq/scaling_governor" for core in range(4)]
    old = set_governor("performance", root)
    assert [path.read_text() for path in paths] == ["performance"] * 4
    restore_governors(old)
    assert [path.read_text() for path in paths] == ["ondemand", "ondemand", "powersave", "ondemand"]


def test_a_governor_that_can_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentError, match=r"this kernel offers none .* measure without --governor"):
        set_governor("performance", str(tmp_path))
    root = board(tmp_path, RASPBERRY_PI_4)
    with pytest.raises(AgentError, match="this kernel offers: conservative, ondemand, userspace"):
        set_governor("performnace", root)
    from devices.board import sensors

    real = sensors._write

    def refuse(path: str, text: str) -> None:
        if "cpu2" in path:
            raise PermissionError(13, "Permission denied")
        real(path, text)

    monkeypatch.setattr(sensors, "_write", refuse)
    with pytest.raises(AgentError, match=r"cpu2.*Permission denied. Only root may"):
        set_governor("performance", root)
    assert (tmp_path / CPU / "cpu0/cpufreq/scaling_governor").read_text() == "ondemand"
    with pytest.raises(AgentError, match=r"set them by hand: .*cpu2.* to 'ondemand'"):
        restore_governors([(str(tmp_path / CPU / "cpu2/cpufreq/scaling_governor"), "ondemand")])


def test_energy_is_that_of_all_packages_and_goes_on_after_the_counters_end(tmp_path: Path) -> None:
    meter = EnergyMeter(board(tmp_path, LAPTOP))
    before = meter.read_uj()
    assert (meter.reason, before) == (None, [1000, 300])
    board(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "400\n",
                     "sys/class/powercap/intel-rapl:1/energy_uj": "350\n"})  # fmt: skip
    assert meter.spent_uj(before, meter.read_uj()) == 4400 + 50
    assert meter.spent_uj(before, None) is None
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert meter.read_uj() is None
    assert "can't be read: only root may" in str(EnergyMeter(str(tmp_path)).reason)


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
    root = board(tmp_path, {name: text for name, text in files.items() if "scaling_cur_freq" not in name})
    assert clusters(root) == expected


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0", [0]), ("0-3", [0, 1, 2, 3]), ("6,0-1", [0, 1, 6]), ("3-1", None), ("big", None), ("", None), ("1,", None)],
)
def test_lists_of_cores(text: str, cores: list[int] | None) -> None:
    assert parse_cores(text) == cores
    if cores:
        assert parse_cores(as_list(cores)) == cores


def test_pinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = board(tmp_path, {name: text for name, text in ROCK_5B.items() if "capacity" in name})
    kept: list[object] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores))
    assert pin("little", root) == [0, 1, 2, 3]
    assert pin("4,6", root) == [4, 6]
    assert kept == [[0, 1, 2, 3], [4, 6]]
    with pytest.raises(AgentError, match=r"core 7 can't be used; this process may run on 0-6 \(clusters: big \(4-7\)"):
        pin("big", root)
    with pytest.raises(AgentError, match=r"no cores 'bgi'; .* big \(4-7\), little \(0-3\)"):
        pin("bgi", root)
    assert len(kept) == 2

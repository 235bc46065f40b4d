"""What a board feels, from files as kernels write them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from devices.board.sensors import sample

sys.path.insert(0, str(Path(__file__).parent))

from boards import LAPTOP, RASPBERRY_PI_4, ROCK_5B, plant


def test_a_raspberry_pi(tmp_path: Path) -> None:
    found = sample(plant(tmp_path, RASPBERRY_PI_4))
    assert found["temperature_c"] == pytest.approx(61.835)
    assert found["frequency_mhz"] == [1500.0] * 4
    assert found["governor"] == "ondemand"
    assert found["throttled"] == ["under-voltage", "throttled"]
    assert found["throttled_before"] == ["under-voltage", "throttled"]
    assert found["throttle_count"] is None


def test_the_highest_zone_counts_and_sleeping_ones_do_not(tmp_path: Path) -> None:
    found = sample(plant(tmp_path, ROCK_5B))
    assert found["temperature_c"] == pytest.approx(44.384)
    assert found["temperatures_c"] == {"soc-thermal": 38.846, "bigcore0-thermal": 44.384}
    assert found["frequency_mhz"] == [2400.0, 300.0]


def test_a_laptop_without_zones(tmp_path: Path) -> None:
    found = sample(plant(tmp_path, LAPTOP))
    assert found["temperatures_c"] == {"k10temp temp1": 55.25}
    assert found["frequency_mhz"] == [2596.122, 1400.0]
    assert (found["throttle_count"], found["throttled"]) == (12, None)


def test_a_board_that_tells_nothing(tmp_path: Path) -> None:
    found = sample(str(tmp_path))
    assert found.pop("time_s") > 0
    assert found == {"temperature_c": None, "temperatures_c": {}, "frequency_mhz": [], "governor": None,
                     "throttle_count": None, "throttled": None, "throttled_before": None}  # fmt: skip


def test_several_zones_of_one_type_are_told_by_the_hottest(tmp_path: Path) -> None:
    zones = {f"sys/class/thermal/thermal_zone{zone}/type": "cpu-thermal\n" for zone in range(3)}
    degrees = {f"sys/class/thermal/thermal_zone{zone}/temp": f"{value}000\n" for zone, value in enumerate((41, 63, 52))}
    root = plant(tmp_path, {**zones, **degrees})
    assert sample(root)["temperatures_c"] == {"cpu-thermal": 63.0}


def test_the_firmwares_flags_are_those_of_the_facts(tmp_path: Path) -> None:
    """Newer kernels call the folder of the firmware by another name."""
    root = plant(tmp_path, {"sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "20002\n"})
    found = sample(root)
    assert (found["throttled"], found["throttled_before"]) == (["frequency capped"], ["frequency capped"])

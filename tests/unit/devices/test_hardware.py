"""Clusters, temperatures, throttling and energy, from texts in the form that boards print."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devices.board import hardware


def cpuinfo(*parts: str) -> str:
    """/proc/cpuinfo of an ARM board, by the part number of each core."""
    return "\n\n".join(
        f"processor\t: {core}\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x2\nCPU part\t: {part}\nCPU revision\t: 0"
        for core, part in enumerate(parts)
    )


RK3588 = cpuinfo(*["0xd05"] * 4, *["0xd0b"] * 4) + "\n\nSerial\t\t: 0000000000000000\n"

N100 = "\n\n".join(
    f"processor\t: {core}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\ncpu MHz\t\t: 700.000"
    for core in range(4)
)

# A processor with two kinds of cores under one name: Core i5-12600K.
HYBRID = "\n\n".join(f"processor\t: {core}\nmodel name\t: 12th Gen Intel(R) Core(TM) i5-12600K" for core in range(16))


class Cores(NamedTuple):
    id: str
    cpuinfo: str
    max_khz: dict[int, int]
    capacity: dict[int, int]
    clusters: list[dict[str, Any]]


CORES = [
    # The A76 of one RK3588 differ by what they reach.
    Cores(
        "rock-5b",
        RK3588,
        {**dict.fromkeys(range(4), 1800000), 4: 2256000, 5: 2256000, 6: 2304000, 7: 2304000},
        {**dict.fromkeys(range(4), 530), **dict.fromkeys(range(4, 8), 1024)},
        [
            {"core": "Cortex-A55", "cpus": [0, 1, 2, 3], "max_mhz": 1800.0},
            {"core": "Cortex-A76", "cpus": [4, 5, 6, 7], "max_mhz": 2304.0},
        ],
    ),
    Cores(
        "raspberry-pi-4",
        cpuinfo(*["0xd08"] * 4),
        dict.fromkeys(range(4), 1800000),
        {},
        [{"core": "Cortex-A72", "cpus": [0, 1, 2, 3], "max_mhz": 1800.0}],
    ),
    Cores(
        "jetson-nano in its 5 W mode",
        cpuinfo("0xd07", "0xd07"),
        {0: 1479000, 1: 1479000},
        {},
        [{"core": "Cortex-A57", "cpus": [0, 1], "max_mhz": 1479.0}],
    ),
    Cores(
        "intel-n100",
        N100,
        dict.fromkeys(range(4), 3400000),
        {},
        [{"core": "Intel(R) N100", "cpus": [0, 1, 2, 3], "max_mhz": 3400.0}],
    ),
    Cores(
        "one name, two kinds",
        HYBRID,
        {**dict.fromkeys(range(12), 4900000), **dict.fromkeys(range(12, 16), 3600000)},
        {},
        [
            {"core": "12th Gen Intel(R) Core(TM) i5-12600K", "cpus": list(range(12)), "max_mhz": 4900.0},
            {"core": "12th Gen Intel(R) Core(TM) i5-12600K", "cpus": [12, 13, 14, 15], "max_mhz": 3600.0},
        ],
    ),
    Cores(
        "a virtual machine tells no frequency",
        N100,
        {},
        {},
        [{"core": "Intel(R) N100", "cpus": [0, 1, 2, 3], "max_mhz": None}],
    ),
    Cores(
        "unknown part",
        "processor\t: 0\nCPU implementer\t: 0x61\nCPU part\t: 0x022\n",
        {},
        {},
        [{"core": "implementer 0x61 part 0x022", "cpus": [0], "max_mhz": None}],
    ),
    Cores("nothing", "", {}, {}, []),
]


@pytest.mark.parametrize("cores", CORES, ids=lambda cores: cores.id)
def test_clusters(cores: Cores, tmp_path: Path) -> None:
    for cpu in {*cores.max_khz, *cores.capacity}:
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}"
        (folder / "cpufreq").mkdir(parents=True)
        if cpu in cores.max_khz:
            (folder / "cpufreq/cpuinfo_max_freq").write_text(f"{cores.max_khz[cpu]}\n")
        if cpu in cores.capacity:
            (folder / "cpu_capacity").write_text(f"{cores.capacity[cpu]}\n")
    assert hardware.clusters(cores.cpuinfo, str(tmp_path)) == cores.clusters


class Flags(NamedTuple):
    text: str
    now: list[str]
    since_start: list[str]


FLAGS = [
    Flags("throttled=0x0\n", [], []),
    Flags("throttled=0x50005\n", ["under-voltage", "throttled"], ["under-voltage", "throttled"]),
    Flags("throttled=0x50000\n", [], ["under-voltage", "throttled"]),
    Flags("80008\n", ["soft temperature limit"], ["soft temperature limit"]),
    Flags("20000", [], ["frequency capped"]),
    Flags("0xe0002", ["frequency capped"], ["frequency capped", "throttled", "soft temperature limit"]),
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: flags.text.strip())
def test_throttled(flags: Flags) -> None:
    assert hardware.parse_throttled(flags.text) == {"now": flags.now, "since_start": flags.since_start}


@pytest.mark.parametrize("text", ["", "VCHI initialization failed\n", "throttled=\n", "error=1 error_msg=x"])
def test_no_flags(text: str) -> None:
    assert hardware.parse_throttled(text) is None


def test_the_firmwares_file(tmp_path: Path) -> None:
    assert hardware.throttling(str(tmp_path)) is None
    folder = tmp_path / "sys/devices/platform/soc/soc:firmware"
    folder.mkdir(parents=True)
    (folder / "get_throttled").write_text("50000\n")
    assert hardware.throttling(str(tmp_path)) == {"now": [], "since_start": ["under-voltage", "throttled"]}


class Degrees(NamedTuple):
    text: str
    value: float | None


DEGREES = [
    Degrees("48312\n", 48.312),
    Degrees("-5000\n", -5.0),
    Degrees("-256000\n", None),  # a zone of a Jetson that is switched off
    Degrees("0\n", None),
    Degrees("2147483647\n", None),
    Degrees("", None),
    Degrees("N/A", None),
]


@pytest.mark.parametrize("degrees", DEGREES, ids=lambda degrees: degrees.text.strip() or "empty")
def test_temperature(degrees: Degrees) -> None:
    assert hardware.parse_temperature_c(degrees.text) == degrees.value


def plant(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_temperatures_of_zones_and_chips(tmp_path: Path) -> None:
    root = plant(
        tmp_path,
        {
            "class/thermal/thermal_zone0/type": "soc-thermal\n",
            "class/thermal/thermal_zone0/temp": "43461\n",
            "class/thermal/thermal_zone1/type": "gpu-thermal\n",
            "class/thermal/thermal_zone1/temp": "-256000\n",
            "class/hwmon/hwmon3/name": "coretemp\n",
            "class/hwmon/hwmon3/temp1_input": "46000\n",
            "class/hwmon/hwmon3/temp1_label": "Package id 0\n",
            "class/hwmon/hwmon3/temp2_input": "44000\n",
        },
    )
    assert hardware.temperatures_c(root) == {
        "soc-thermal": 43.461,
        "coretemp Package id 0": 46.0,
        "coretemp temp2": 44.0,
    }


def test_cooling_of_processors_only(tmp_path: Path) -> None:
    root = plant(
        tmp_path,
        {
            "class/thermal/cooling_device0/type": "thermal-cpufreq-0\n",
            "class/thermal/cooling_device0/cur_state": "2\n",
            "class/thermal/cooling_device1/type": "pwm-fan\n",
            "class/thermal/cooling_device1/cur_state": "3\n",
        },
    )
    assert hardware.cooling_states(root) == {"thermal-cpufreq-0": 2}


def test_energy_of_an_ina3221(tmp_path: Path) -> None:
    """The module of a Jetson Orin Nano: three rails, and the sum of their currents as a fourth without a voltage."""
    files = {"class/hwmon/hwmon1/name": "ina3221\n"}
    for channel, label in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1):
        files[f"class/hwmon/hwmon1/in{channel}_label"] = label + "\n"
        files[f"class/hwmon/hwmon1/in{channel}_input"] = "4992\n"
        files[f"class/hwmon/hwmon1/curr{channel}_input"] = "936\n"
    files["class/hwmon/hwmon1/curr4_input"] = "0\n"
    found = hardware.energy_sensors(plant(tmp_path, files))
    assert [sensor["name"] for sensor in found] == ["ina3221 VDD_IN", "ina3221 VDD_CPU_GPU_CV", "ina3221 VDD_SOC"]
    assert found[0] == {
        "kind": "hwmon",
        "name": "ina3221 VDD_IN",
        "paths": ["/sys/class/hwmon/hwmon1/in1_input", "/sys/class/hwmon/hwmon1/curr1_input"],
        "readable": True,
    }


def test_energy_of_rapl_and_of_a_power_meter(tmp_path: Path) -> None:
    root = plant(
        tmp_path,
        {
            "class/powercap/intel-rapl:0/name": "package-0\n",
            "class/powercap/intel-rapl:0/energy_uj": "123456789\n",
            "class/powercap/intel-rapl:0:0/name": "core\n",
            "class/powercap/intel-rapl:0:0/energy_uj": "23456789\n",
            "class/hwmon/hwmon0/name": "ina226\n",
            "class/hwmon/hwmon0/power1_input": "4200000\n",
            "class/hwmon/hwmon0/curr1_input": "840\n",
            "class/hwmon/hwmon0/in1_input": "5000\n",
        },
    )
    found = [(sensor["kind"], sensor["name"], sensor["paths"]) for sensor in hardware.energy_sensors(root)]
    assert found == [
        ("rapl", "package-0", ["/sys/class/powercap/intel-rapl:0/energy_uj"]),
        ("rapl", "core", ["/sys/class/powercap/intel-rapl:0:0/energy_uj"]),
        ("hwmon", "ina226", ["/sys/class/hwmon/hwmon0/power1_input"]),
    ]


def test_a_board_that_tells_nothing(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert hardware.temperatures_c(root) == {}
    assert hardware.cooling_states(root) == {}
    assert hardware.energy_sensors(root) == []


@pytest.mark.parametrize(("text", "known"), [("0x00000000410fd083\n", True), ("", False), ("0", False)])
def test_cpu_ids(text: str, known: bool) -> None:
    assert hardware.parse_cpu_ids(text) is known

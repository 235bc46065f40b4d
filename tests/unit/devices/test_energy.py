"""Energy of blocks, from counters and from monitors of power, as kernels write them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.board.agent import BoardAgent
from devices.board.energy import EnergyMeter
from devices.board.runners.fake import FakeRunner
from devices.measurement import BenchmarkSettings, Case, benchmark
from devices.profile import load_profile
from devices.profile_parts import Sensor
from devices.transports.fake import FakeAgent, FakeDevice

sys.path.insert(0, str(Path(__file__).parent))

from boards import LAPTOP, plant

HWMON = "sys/class/hwmon"
ORIN = {
    f"{HWMON}/hwmon1/name": "ina3221\n",
    **{f"{HWMON}/hwmon1/in{channel}_label": f"{label}\n"
       for channel, label in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1)},
    **{f"{HWMON}/hwmon1/in{channel}_input": "5000\n" for channel in (1, 2, 3)},
    **{f"{HWMON}/hwmon1/curr{channel}_input": f"{200 * channel}\n" for channel in (1, 2, 3)},
}  # fmt: skip
METER = {f"{HWMON}/hwmon0/name": "ina226\n", f"{HWMON}/hwmon0/power1_input": "4200000\n"}


def test_energy_is_that_of_all_packages_and_goes_on_after_the_counters_end(tmp_path: Path) -> None:
    meter = EnergyMeter(plant(tmp_path, LAPTOP))
    before = meter.read()
    assert (meter.reason, meter.name, before) == (None, "RAPL + RAPL", [1000, 300])
    plant(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "400\n",
                     "sys/class/powercap/intel-rapl:1/energy_uj": "350\n"})  # fmt: skip
    assert meter.spent_uj(before, meter.read(), 1) == 4400 + 50
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").write_text("")
    assert meter.read() is None
    assert "can't be read (/sys/class/powercap/intel-rapl:0/energy_uj): only root may" in str(
        EnergyMeter(str(tmp_path)).reason
    )


def test_a_reading_that_fails_is_no_zero(tmp_path: Path) -> None:
    meter = EnergyMeter(plant(tmp_path, LAPTOP))
    before = meter.read()
    assert meter.spent_uj(before, None, 1) is None
    assert meter.reason == "the energy sensor RAPL + RAPL could not be read at one of the blocks"
    assert (meter.spent_uj(before, meter.read(), 1), meter.reason) == (0, None)
    (tmp_path / "sys/class/powercap/intel-rapl:1/max_energy_range_uj").unlink()
    assert meter.spent_uj([0, 301], meter.read(), 1) is None
    assert (
        meter.reason
        == "the energy counter /sys/class/powercap/intel-rapl:1/energy_uj began anew and does not tell its range"
    )


class Chosen(NamedTuple):
    id: str
    files: dict[str, str]
    sensor: dict[str, Any] | None
    name: str | None
    reason: str | None = None


CHOSEN = [
    Chosen("rapl is asked first", {**LAPTOP, **METER}, None, "RAPL + RAPL"),
    Chosen("the only power monitor", METER, None, "ina226"),
    Chosen("by label", ORIN, {"kind": "hwmon", "name": "VDD_CPU_GPU_CV"}, "ina3221 VDD_CPU_GPU_CV"),
    Chosen("by path", ORIN, {"kind": "hwmon", "path": f"/{HWMON}/hwmon1/in3_input"}, "ina3221 VDD_SOC"),
    Chosen("by chip", METER, {"kind": "hwmon", "name": "ina226"}, "ina226"),
    Chosen("one package", LAPTOP, {"kind": "rapl", "path": "/sys/class/powercap/intel-rapl:1"}, "RAPL"),
    Chosen("none", LAPTOP, {"kind": "none", "reason": "It has none."}, None, "no energy sensor: It has none"),
    Chosen("several rails", ORIN, {"kind": "hwmon"}, None, "several power sensors (ina3221 VDD_IN, ina3221 VDD_CPU"),
    Chosen("another rail", ORIN, {"kind": "hwmon", "name": "VDD"}, None,
           "has no energy sensor VDD (hwmon), which its profile names; it has: ina3221 VDD_IN,"),
    Chosen("no rapl", METER, {"kind": "rapl"}, None, "no energy sensor: /sys/class/powercap has no RAPL package"),
    Chosen("no monitor", LAPTOP, {"kind": "hwmon"}, None, "no energy sensor: /sys/class/hwmon has no power monitor"),
]  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.id)
def test_which_sensor_is_read(case: Chosen, tmp_path: Path) -> None:
    wanted = None if case.sensor is None else Sensor(**case.sensor).model_dump(mode="json")
    meter = EnergyMeter(plant(tmp_path, case.files), wanted)
    assert meter.name == case.name
    assert (meter.reason is None) == (case.reason is None)
    assert case.reason is None or case.reason in str(meter.reason)


class Power(NamedTuple):
    id: str
    files: dict[str, str]
    sensor: dict[str, Any]
    uj: float


@pytest.mark.parametrize(
    "case",
    [
        Power("volts and amperes", ORIN, {"kind": "hwmon", "name": "VDD_IN"}, 0.25 * 1e6),
        Power("watts", METER, {"kind": "hwmon"}, 0.25 * 4.2e6),
    ],
    ids=lambda case: case.id,
)
def test_energy_of_a_power_is_that_of_the_time_of_the_inferences(case: Power, tmp_path: Path) -> None:
    meter = EnergyMeter(plant(tmp_path, case.files), case.sensor)
    before = meter.read()
    assert meter.spent_uj(before, meter.read(), 250_000_000) == pytest.approx(case.uj)
    assert before is not None
    assert meter.spent_uj(before, [3 * before[0]], 250_000_000) == pytest.approx(2 * case.uj), "the mean of both"


class Board(FakeDevice):
    """The fake device with the sensors of a written tree."""

    root = ""

    def start_agent(self) -> FakeAgent:
        agent = super().start_agent()
        agent._handlers = BoardAgent({"fake": FakeRunner}, clock_ns=agent._clock.read, root=type(self).root).handlers()
        return agent


SETTINGS = BenchmarkSettings(warm_up_count=1, warm_up_time_s=0, min_count=40, min_time_s=0)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    with (tmp_path / "m.fake").open("wb") as stream:
        np.savez(stream, weights=np.ones((48, 3), np.float32), bias=np.zeros(3, np.float32))
    return Case(id="m", runtime="fake", path=str(tmp_path / "m.fake"))


def test_the_profiles_sensor_is_measured(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "root", plant(tmp_path, ORIN))
    monkeypatch.setattr("devices.measurement.open_transport", Board)
    orin = load_profile("jetson-orin-nano")
    fake = load_profile("fake").model_copy(update={"sensors": orin.sensors})
    (found,) = benchmark(fake, [case], SETTINGS).cases
    assert found.latency_ms is not None
    assert found.energy_sensor == "ina3221 VDD_IN"
    assert found.energy_reason is None
    assert found.energy_mj == pytest.approx(found.latency_ms.mean * 1.0), "5000 mV at 200 mA is one watt"


def test_one_block_without_energy_leaves_none(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "root", plant(tmp_path, METER))
    monkeypatch.setattr("devices.measurement.open_transport", Board)
    real, readings = EnergyMeter.read, [0]

    def flaky(meter: EnergyMeter) -> list[int] | None:
        readings[0] += 1
        return None if readings[0] == 3 else real(meter)  # the first is a trial, the second before the first block

    monkeypatch.setattr(EnergyMeter, "read", flaky)
    (found,) = benchmark(load_profile("fake"), [case], SETTINGS).cases
    assert readings[0] >= 5, "a later block was read"
    assert found.energy_mj is None
    assert found.energy_reason == "the energy sensor ina226 could not be read at one of the blocks"

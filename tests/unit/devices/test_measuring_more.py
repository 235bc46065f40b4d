"""Comparisons, early stops, sessions, sensors, images and minutes of work, on fake devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.board.end_to_end import STAGES
from devices.board.profiling import litert_placement, parse_onnxruntime
from devices.errors import BadInputError, DeviceError
from devices.latency import count_for
from devices.measurement import (
    BenchmarkResult,
    BenchmarkSettings,
    Case,
    ImageInput,
    benchmark,
    benchmark_and_compare,
    profile_case,
)
from devices.monitor import Monitor
from devices.profile import DeviceProfile, load_profile
from devices.sustained import sustain
from devices.transport_config import FakeTransport
from devices.transports import open_transport

SIDE = 4
QUICK = BenchmarkSettings(warm_up_count=1, warm_up_time_s=0, min_count=80, min_time_s=0, max_time_s=3)


def model(path: Path, seed: int = 0) -> Case:
    generator = np.random.default_rng(seed)
    with path.open("wb") as stream:
        np.savez(stream, weights=generator.normal(size=(SIDE * SIDE * 3, 3)).astype(np.float32),
                 bias=np.zeros(3, np.float32))  # fmt: skip
    return Case(id=path.stem, runtime="fake", path=str(path))


def fake_device(**transport: Any) -> DeviceProfile:
    return load_profile("fake").model_copy(update={"transport": FakeTransport(**transport)})


def test_two_copies_can_not_be_told_apart_and_two_models_can(tmp_path: Path) -> None:
    one, other = model(tmp_path / "a.fake"), model(tmp_path / "b.fake", seed=1)
    shutil.copyfile(one.path, tmp_path / "copy.fake")
    copy = Case(id="copy", runtime="fake", path=str(tmp_path / "copy.fake"))
    found = benchmark_and_compare(load_profile("fake"), [one, copy, other], QUICK)
    same, different = found.comparisons
    assert (same.case, same.baseline, same.verdict, same.ratio) == ("copy", "a", "can't tell", 1.0)
    assert different.verdict in {"faster", "slower"}
    medians = {case.id: case.latency_ms.p50 for case in found.cases if case.latency_ms}
    assert different.ratio == pytest.approx(medians["b"] / medians["a"], rel=0.02)
    assert (different.verdict == "slower") == (medians["b"] > medians["a"])
    assert found.settings.sessions == same.sessions == len(found.cases[0].session_p50_ms) == 8
    assert all(case.latency_ms.count >= 80 for case in found.cases if case.latency_ms)
    assert BenchmarkResult.model_validate(json.loads(found.model_dump_json())) == found


def test_further_sessions_follow_until_the_ratio_is_precise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [model(tmp_path / "a.fake"), model(tmp_path / "b.fake", seed=1)]
    asked = QUICK.model_copy(update={"precision": 0.01, "max_time_s": 1.0})
    found = benchmark_and_compare(load_profile("fake"), cases, asked)
    assert [case.stopped_by for case in found.cases] == ["precision"] * 2
    assert found.comparisons[0].sessions == 8
    monkeypatch.setattr("devices.measurement.relative_half_width", lambda _: 1.0)
    limited = benchmark_and_compare(load_profile("fake"), cases, asked)
    assert [case.stopped_by for case in limited.cases] == ["max_time"] * 2
    assert 8 < limited.comparisons[0].sessions < 40


def test_a_case_that_fails_is_compared_with_nothing(tmp_path: Path) -> None:
    bad = Case(id="bad", runtime="fake", path=str(tmp_path / "gone.fake"))
    found = benchmark_and_compare(load_profile("fake"), [model(tmp_path / "a.fake"), bad], QUICK)
    assert found.comparisons == ()
    assert found.cases[0].latency_ms is not None
    assert found.cases[1].error is not None
    with pytest.raises(ValueError, match="1 case; expected 2 to 16"):
        benchmark_and_compare(load_profile("fake"), [bad], QUICK)


class Stop(NamedTuple):
    id: str
    precision: float | None
    by: str


@pytest.mark.parametrize(
    "stop", [Stop("no precision", None, "target"), Stop("wide", 0.2, "precision"), Stop("narrow", 1e-9, "max_time")],
    ids=lambda stop: stop.id,
)  # fmt: skip
def test_why_a_case_stopped(stop: Stop, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"precision": stop.precision, "max_time_s": 1.0})
    result = benchmark(load_profile("fake"), [model(tmp_path / "a.fake")], settings)
    (case,) = result.cases
    assert case.stopped_by == stop.by
    assert case.latency_ms is not None
    assert case.throughput_per_s == pytest.approx(1000 / case.latency_ms.mean)
    assert any("before its p90 was as certain as asked" in each for each in result.warnings) == (stop.by == "max_time")


@pytest.mark.parametrize(("count", "names"), [(36, ["p95", "p99", "p99_9"]), (80, ["p99", "p99_9"]), (400, ["p99_9"])])
def test_percentiles_that_the_count_can_not_carry_are_left_out(count: int, names: list[str], tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"min_count": count, "block_count": 4})
    latency = benchmark(load_profile("fake"), [model(tmp_path / "a.fake")], settings).cases[0].latency_ms
    assert latency is not None
    assert sorted(latency.missing) == names
    for name in ("p90", "p95", "p99", "p99_9"):
        value, interval = getattr(latency, name), getattr(latency, f"{name}_interval")
        assert (value is None) == (interval is None) == (name in names)
        assert value is None or interval[0] <= value <= interval[1]
    assert latency.missing["p99_9"] == f"{latency.count} latencies; {count_for(99.9)} are needed"


def test_sessions_start_agents_anew(tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"sessions": 3})
    (case,) = benchmark(load_profile("fake"), [model(tmp_path / "a.fake")], settings).cases
    assert len(case.session_p50_ms) == 3
    assert len(set(case.session_p50_ms)) == 1  # a fake agent's clock begins anew with it
    assert case.latency_ms is not None
    assert case.latency_ms.count >= 240


@pytest.mark.parametrize("device", ["fake", "local"])
def test_the_way_of_an_image(device: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    (tmp_path / "i.ppm").write_bytes(b"P6\n# a comment\n12 10\n255\n" + pixels.tobytes())
    np.save(tmp_path / "i.npy", pixels)
    record = {"size": [SIDE, SIDE], "resize": "stretch", "crop": "none", "interpolation": "bilinear"}
    for name, decoder in (("i.ppm", "numpy"), ("i.npy", "numpy (no decoding)")):
        image = ImageInput(path=str(tmp_path / name), preprocess=record, transform={"dtype": "uint8"})
        case = model(tmp_path / "a.fake").model_copy(update={"image": image})
        settings = QUICK.model_copy(update={"min_count": 40})
        measured = benchmark(load_profile(device), [case], settings).cases[0]
        assert measured.error is None
        whole = measured.end_to_end
        assert whole is not None
        assert (whole.image, whole.decoder) == (name, decoder)
        assert whole.latency_ms.count >= 40
        parts = [getattr(whole, f"{stage}_ms") for stage in STAGES]
        assert all(part > 0 for part in parts)
        assert whole.latency_ms.p50 > max(parts)


class BadImage(NamedTuple):
    id: str
    name: str
    content: bytes
    values: dict[str, Any]
    words: str


RECORD = {"size": [SIDE, SIDE], "resize": "stretch", "crop": "none", "interpolation": "bilinear"}
BAD_IMAGES = [
    BadImage("ascii", "i.ppm", b"P3\n1 1\n255\n0 0 0\n", {}, "expected a binary PPM"),
    BadImage("cut off", "i.ppm", b"P6 4 4 255\n123", {}, "3 of 48 bytes of pixels"),
    BadImage("no picture", "i.png", b"nothing", {}, "can't be used"),
    BadImage("size", "i.ppm", b"P6 1 1 255\n123", {"size": [2, 2]}, r"becomes uint8 \(1, 2, 2, 3\), but"),
    BadImage("record", "i.ppm", b"P6 1 1 255\n123", {"resize": "fold"}, "resize is 'fold'"),
]


@pytest.mark.parametrize("bad", BAD_IMAGES, ids=lambda bad: bad.id)
def test_images_that_can_not_be_used(bad: BadImage, tmp_path: Path) -> None:
    (tmp_path / bad.name).write_bytes(bad.content)
    params = {"path": str(tmp_path / bad.name), "preprocess": {**RECORD, **bad.values}, "transform": {"dtype": "uint8"}}
    with open_transport(load_profile("fake")).start_agent() as agent:
        case = model(tmp_path / "a.fake")
        agent.request("load", {"runtime": "fake", "path": case.path, "num_threads": 1})
        with pytest.raises(BadInputError, match=bad.words):
            agent.request("measure_image", {**params, "count": 1})


def test_memory_of_the_runtime_alone_and_reasons(tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"runtime_memory": True})
    (case,) = benchmark(load_profile("local"), [model(tmp_path / "a.fake")], settings).cases
    assert case.runtime_memory_mb is not None
    assert 0 <= case.runtime_memory_mb < 5  # the fake runtime imports nothing
    (fake,) = benchmark(load_profile("fake"), [model(tmp_path / "a.fake")], settings).cases
    assert fake.energy_mj is None
    assert fake.energy_reason == (
        "no energy sensor: /sys/class/powercap has no RAPL package, /sys/class/hwmon no power monitor"
    )


def test_cores_and_a_governor_are_asked_of_the_device(tmp_path: Path) -> None:
    case = model(tmp_path / "a.fake")
    kept = QUICK.model_copy(update={"cores": "0"})
    assert benchmark(load_profile("local"), [case], kept).cases[0].cores == (0,)
    for device, message in (("local", r"^the cores asked for are 4000, but 4000 can't be used: this process may run "),
                            ("fake", r"^there are no cores 'bgi'; expected a list such as 0-3")):  # fmt: skip
        asked = QUICK.model_copy(update={"cores": "4000" if device == "local" else "bgi"})
        with pytest.raises(BadInputError, match=message):
            benchmark(load_profile(device), [case], asked)
    with pytest.raises(BadInputError, match=r"^the governor can't be set to 'performance'"):
        benchmark(load_profile("fake"), [case], QUICK.model_copy(update={"governor": "performance"}))


class _Board:
    """An observer whose answers are scripted; it is gone after them."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = list(answers)

    def request(self, method: str, *_: Any, **__: Any) -> Any:
        assert method == "sample"
        if not self._answers:
            raise DeviceError("gone")
        known = {"temperature_c": None, "frequency_mhz": [], "throttle_count": None, "throttled": None, "governor": "g"}
        return {**known, **self._answers.pop(0)}


def test_the_monitor_looks_from_time_to_time() -> None:
    now = [100.0]
    board: Any = _Board({"temperature_c": 50.0}, {"temperature_c": 80.0, "throttled": ["throttled"]})
    monitor = Monitor(board, every_s=5, clock_s=lambda: now[0])
    for moment in (100.0, 103.0, 105.0, 111.0, 117.0):
        now[0] = moment
        monitor.look()
    assert [(sample.seconds, sample.temperature_c) for sample in monitor.samples] == [(0.0, 50.0), (5.0, 80.0)]
    assert monitor.warnings() == ["the device says that it was limited meanwhile: throttled"]
    assert monitor.governor == "g"
    assert monitor.look(now=True) is None


def test_minutes_of_work(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    cases = [model(tmp_path / "a.fake"), model(tmp_path / "b.fake", seed=1)]
    result = sustain(fake_device(latency_ms=50), cases, 150, QUICK, tell=events.append)
    assert [case.id for case in result.cases] == ["a", "b"]
    for case in result.cases:
        assert [round(minute.seconds) for minute in case.minutes] == [60, 60, 30]
        assert [round(minute.begin_s) for minute in case.minutes] == [0, 60, 120]
        assert case.slowdown == pytest.approx(1, rel=0.05)
        assert all(minute.device is not None for minute in case.minutes)
    assert sum("minute" in str(event.get("message")) for event in events) == 6


def test_a_runtime_without_a_profiler_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="the runtime 'fake' has no profiler"):
        profile_case(load_profile("local"), model(tmp_path / "a.fake"))


def test_the_profile_of_onnxruntime() -> None:
    events = [
        {"cat": "Session", "name": "model_loading", "dur": 9},
        *({"cat": "Node", "name": "conv_kernel_time", "dur": duration,
           "args": {"op_name": "FusedConv", "provider": "CPUExecutionProvider"}} for duration in (9000, 100, 300, 200)),
        {"cat": "Node", "name": "conv_fence_before", "dur": 5, "args": {"op_name": "FusedConv"}},
        {"cat": "Node", "name": "add_kernel_time", "dur": 50, "args": {"op_name": "Add", "provider": "CPU"}},
    ]  # fmt: skip
    assert parse_onnxruntime(events, skip=1) == [
        {"name": "conv", "operation": "FusedConv", "where": "CPUExecutionProvider", "ms": 0.2},
        {"name": "add", "operation": "Add", "where": "CPU", "ms": None},
    ]


def test_what_xnnpack_took() -> None:
    operations = [
        {"op_name": "CONV_2D", "index": 0, "outputs": [4]},
        {"op_name": "RELU", "index": 1, "outputs": [5]},
        {"op_name": "HARD_SWISH", "index": 2, "outputs": [6]},
        {"op_name": "DELEGATE", "index": 3, "outputs": [5]},
    ]

    def get_tensor(index: int) -> int:
        if index == 4:
            raise ValueError("no memory")
        return index

    found = litert_placement(operations, get_tensor)
    assert [layer["where"] for layer in found["layers"]] == ["XNNPACK", "XNNPACK", "built-in kernel"]
    assert (found["partitions"], found["operations"], found["delegated_share"]) == (1, 3, pytest.approx(2 / 3))
    assert all(layer["ms"] is None for layer in found["layers"])
    assert found["kernels"] is None

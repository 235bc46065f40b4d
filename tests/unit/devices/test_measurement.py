"""Agents, transports and measurements, with fake models on a fake device and in real processes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest

from devices.board import errors as board_errors
from devices.board.agent import BoardAgent
from devices.board.runners.fake import FakeRunner
from devices.errors import (
    ERRORS,
    AgentCrashedError,
    AgentTimeoutError,
    DeviceError,
    ModelRejectedError,
    RuntimeMissingError,
)
from devices.measurement import (
    BenchmarkResult,
    BenchmarkSettings,
    Case,
    SampleFile,
    benchmark,
    predict,
)
from devices.profile import DeviceProfile, load_profile
from devices.transport_config import FakeTransport, TransportConfig
from devices.transports import TRANSPORTS, open_transport

SETTINGS = BenchmarkSettings(
    warm_up_count=3, warm_up_time_s=0, min_count=60, min_time_s=0, load_timeout_s=20, inference_timeout_s=1
)
DEVICES = ("fake", "local")
SIDE, CLASSES = 4, 3


def write_model(path: Path, behaviour: str = "ok", seed: int = 0) -> str:
    generator = np.random.default_rng(seed)
    with path.open("wb") as stream:
        np.savez(
            stream,
            weights=generator.normal(size=(SIDE * SIDE * 3, CLASSES)).astype(np.float32),
            bias=generator.normal(size=CLASSES).astype(np.float32),
            kind="linear",
            behaviour=behaviour,
        )
    return str(path)


def fake_case(path: str, **values: Any) -> Case:
    return Case(**{"id": Path(path).stem, "runtime": "fake", "path": path, **values})


def fake_device(**transport: Any) -> DeviceProfile:
    return load_profile("fake").model_copy(update={"transport": FakeTransport(**transport)})


@pytest.mark.parametrize("device", DEVICES)
def test_benchmark_of_several_cases(device: str, tmp_path: Path) -> None:
    cases = [fake_case(write_model(tmp_path / f"m{index}.fake", seed=index)) for index in range(3)]
    events: list[dict[str, Any]] = []
    result = benchmark(load_profile(device), cases, SETTINGS, tell=events.append)
    assert [case.id for case in result.cases] == ["m0", "m1", "m2"]
    assert result.latency_label == ("simulated" if device == "fake" else "measured")
    for case in result.cases:
        assert case.error is None
        assert case.latency_ms is not None
        assert case.latency_ms.count >= 60
        assert case.stopped_by == "target"
        assert case.warm_up_count is not None
        assert case.warm_up_count >= 3
        assert case.size_bytes == Path(case.path).stat().st_size
        assert case.model is not None
        assert case.model["inputs"][0]["shape"] == [1, SIDE, SIDE, 3]
    assert len({case.sha256 for case in result.cases}) == 3
    assert events[-1]["cases_done"] == 3
    assert BenchmarkResult.model_validate(json.loads(result.model_dump_json())) == result


def test_the_fake_device_always_gives_the_same_numbers(tmp_path: Path) -> None:
    cases = [fake_case(write_model(tmp_path / f"m{index}.fake", seed=index)) for index in range(2)]
    one, other = (
        [case.latency_ms for case in benchmark(load_profile("fake"), order, SETTINGS).cases]
        for order in (cases, cases[::-1])
    )
    assert one == other[::-1]
    assert one[0] != one[1]
    slow = benchmark(fake_device(latency_ms=20), cases, SETTINGS).cases[0].latency_ms
    assert slow is not None
    assert 15 <= slow.p50 <= 25


class Fault(NamedTuple):
    behaviour: str
    kind: type[DeviceError]
    words: str


FAULTS = [
    Fault("crash", AgentCrashedError, "SIGSEGV while it worked on 'load'"),
    Fault("crash_on_infer", AgentCrashedError, "SIGSEGV while it worked on 'load'"),
    Fault("reject", ModelRejectedError, "behaviour 'reject'"),
    Fault("hang", AgentTimeoutError, "did not answer 'load' within 2 s"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.behaviour)
def test_a_bad_case_loses_only_itself(device: str, fault: Fault, tmp_path: Path) -> None:
    cases = [
        fake_case(write_model(tmp_path / "good.fake")),
        fake_case(write_model(tmp_path / "bad.fake", fault.behaviour)),
        fake_case(write_model(tmp_path / "fine.fake", seed=1)),
    ]
    settings = SETTINGS.model_copy(update={"load_timeout_s": 2.0})
    good, bad, fine = benchmark(load_profile(device), cases, settings).cases
    assert good.latency_ms is not None
    assert fine.latency_ms is not None
    assert bad.error is not None
    assert bad.latency_ms is None
    assert ERRORS[bad.error.kind] is fault.kind
    assert bad.error.exit_code == fault.kind.exit_code
    assert fault.words in bad.error.message


@pytest.mark.parametrize("request_name", ["load", "warm_up", "measure", "memory"])
@pytest.mark.parametrize(("fault", "kind"), [("die_on", "AgentCrashedError"), ("hang_on", "AgentTimeoutError")])
def test_an_agent_that_fails_at_any_request(request_name: str, fault: str, kind: str, tmp_path: Path) -> None:
    case = fake_case(write_model(tmp_path / "m.fake"))
    error = benchmark(fake_device(**{fault: request_name}), [case], SETTINGS).cases[0].error
    assert error is not None
    assert error.kind == kind
    assert f"'{request_name}'" in error.message


def test_a_device_that_can_not_be_used_is_an_error(tmp_path: Path) -> None:
    case = fake_case(write_model(tmp_path / "m.fake"))
    with pytest.raises(AgentCrashedError):
        benchmark(fake_device(die_on="facts"), [case], SETTINGS)
    profile = load_profile("local").model_copy(update={"python": "/no/such/python"})
    with pytest.raises(DeviceError, match="/no/such/python"):
        benchmark(profile, [case], SETTINGS)


@pytest.mark.parametrize("device", DEVICES)
def test_bad_files(device: str, tmp_path: Path) -> None:
    good = write_model(tmp_path / "good.fake")
    (tmp_path / "cut.fake").write_bytes(Path(good).read_bytes()[:200])
    (tmp_path / "empty.fake").write_bytes(b"")
    cases = [
        fake_case(str(tmp_path / "cut.fake")),
        fake_case(str(tmp_path / "empty.fake")),
        fake_case(str(tmp_path / "absent.fake")),
        fake_case(str(tmp_path), id="directory"),
        fake_case(good, sha256="0" * 64),
    ]
    for case in benchmark(load_profile(device), cases, SETTINGS).cases:
        assert case.error is not None
        assert case.error.kind == "ModelRejectedError", case.error
        assert case.path in case.error.message


def test_equal_ids_are_refused(tmp_path: Path) -> None:
    case = fake_case(write_model(tmp_path / "m.fake"))
    with pytest.raises(ValueError, match="not distinct"):
        benchmark(load_profile("fake"), [case, case], SETTINGS)


def test_groups_of_agents_and_the_time_limit(tmp_path: Path) -> None:
    cases = [fake_case(write_model(tmp_path / f"m{index}.fake", seed=index)) for index in range(5)]
    settings = SETTINGS.model_copy(update={"max_agents": 2, "min_count": 10**6, "max_time_s": 0.2})
    result = benchmark(load_profile("fake"), cases, settings)
    assert [case.stopped_by for case in result.cases] == ["max_time"] * 5
    assert "m0: stopped after 0.2 s" in " ".join(result.warnings)


def test_a_slowdown_a_busy_machine_and_a_governor_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from devices import monitor

    busy = {"cpu_busy_share": 0.3, "governor": "powersave"}
    assert len(monitor.warnings_before(busy)) == 2
    for calm in (0.2, None):
        assert monitor.warnings_before({"cpu_busy_share": calm, "governor": "performance"}) == []
    assert "3 times" in monitor.warnings_after({"throttle_count": 1}, {"throttle_count": 4})[0]
    assert monitor.warnings_after({"throttle_count": None}, {"throttle_count": None}) == []
    assert "slowed down by 50%" in monitor.slowdown("m", [[100]] * 20 + [[150]] * 20)[0]
    assert monitor.slowdown("m", [[100]] * 20 + [[105]] * 20) == []


@pytest.mark.parametrize("device", DEVICES)
def test_predict(device: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.fake")
    images = np.random.default_rng(0).integers(0, 256, (10, SIDE, SIDE, 3), np.uint8)
    with np.load(path) as model:
        expected = images.reshape(10, -1).astype(np.float32) / np.float32(255) @ model["weights"] + model["bias"]
    labels = expected.argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % CLASSES
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    out = tmp_path / "out" / "made"
    files = [SampleFile(path=str(tmp_path / "images.npy"))], str(tmp_path / "labels.npy")
    answer = predict(load_profile(device), fake_case(path), *files, str(out))
    assert (answer.count, answer.correct) == (10, 8)
    np.testing.assert_allclose(np.load(out / "output_0.npy"), expected, rtol=1e-5)
    assert [each.name for each in out.iterdir()] == ["output_0.npy"]
    assert predict(load_profile(device), fake_case(path), files[0], None, str(out)).correct is None


class BadData(NamedTuple):
    id: str
    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    words: str


GOOD_IMAGES = np.zeros((2, SIDE, SIDE, 3), np.uint8)
BAD_DATA = [
    BadData("float", GOOD_IMAGES.astype(np.float32), np.array([0, 1]), "float32"),
    BadData("size", GOOD_IMAGES[:, 1:], np.array([0, 1]), r"\(2, 3, 4, 3\).*takes rows uint8 \(4, 4, 3\)"),
    BadData("none", GOOD_IMAGES[:0], np.array([], np.int64), "holds no samples"),
    BadData("label", GOOD_IMAGES, np.array([0, 3]), "but the model has 3 classes"),
    BadData("negative", GOOD_IMAGES, np.array([0, -1]), "labels reach from -1"),
    BadData("count", GOOD_IMAGES, np.array([0, 1, 2]), r"expected whole numbers \(2,\)"),
    BadData("kind", GOOD_IMAGES, np.array([0.0, 1.0]), "labels are float64"),
]


@pytest.mark.parametrize("data", BAD_DATA, ids=lambda data: data.id)
def test_predict_refuses_bad_data(data: BadData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    np.save(tmp_path / "images.npy", data.images)
    np.save(tmp_path / "labels.npy", data.labels)
    images, out = SampleFile(path=str(tmp_path / "images.npy")), tmp_path / "out"
    model = fake_case(write_model(tmp_path / "m.fake"))
    with pytest.raises(DeviceError, match=data.words):
        predict(load_profile("fake"), model, [images], str(tmp_path / "labels.npy"), str(out))
    assert not out.exists()
    assert list(scratch.iterdir()) == []


def test_the_fake_device_has_no_other_runtime(tmp_path: Path) -> None:
    with (
        open_transport(load_profile("fake")).start_agent() as agent,
        pytest.raises(RuntimeMissingError, match="litert"),
    ):
        agent.request("load", {"runtime": "litert", "path": str(tmp_path / "m"), "num_threads": 1})


@pytest.mark.parametrize("device", DEVICES)
def test_requests_out_of_order(device: str, tmp_path: Path) -> None:
    load = {"runtime": "fake", "path": write_model(tmp_path / "m.fake"), "num_threads": 1}
    with open_transport(load_profile(device)).start_agent() as agent:
        with pytest.raises(DeviceError, match="no model is loaded"):
            agent.request("measure", {"count": 1})
        with pytest.raises(DeviceError, match="whole number of at least 1"):
            agent.request("load", {**load, "num_threads": 0})
        agent.request("load", load)
        with pytest.raises(DeviceError, match="holds a model already"):
            agent.request("load", load)
        with pytest.raises(DeviceError, match="needs a count"):
            agent.request("measure")
        assert len(agent.request("measure", {"count": 7})["latencies_ns"]) == 7
        agent.request("unload")
        agent.request("load", load)
        with pytest.raises(DeviceError, match="no method 'reboot'"):
            agent.request("reboot")


def test_what_is_measured_is_the_inference_alone(tmp_path: Path) -> None:
    """Latencies of the real clock on the real agent add up to less than the wall time, and are not zero."""
    with open_transport(load_profile("local")).start_agent() as agent:
        agent.request("load", {"runtime": "fake", "path": write_model(tmp_path / "m.fake"), "num_threads": 1})
        latencies = agent.request("measure", {"count": 50, "settle_count": 2})["latencies_ns"]
        assert len(latencies) == 50
        assert min(latencies) > 500
        begun = len(agent.request("measure", {"time_s": 0.05})["latencies_ns"])
        assert begun > 10


def test_a_block_settles_before_it_counts(tmp_path: Path) -> None:
    """A core that has waited is slow for ten inferences: none of them is in the numbers, however fast it is."""
    runner, clock = Cooling(), [0]
    runner.clock = clock
    handlers = BoardAgent({"fake": lambda: runner}, clock_ns=lambda: clock[0]).handlers()
    load = {"runtime": "fake", "path": write_model(tmp_path / "m.fake"), "num_threads": 1}
    handlers["load"](load, lambda _: None)

    def latencies(**settling: float) -> list[int]:
        runner.cold = 10
        found: list[int] = handlers["measure"]({"count": 5, **settling}, lambda _: None)["latencies_ns"]
        return found

    assert latencies(settle_count=3) == [2_000_000] * 5
    defaults = BenchmarkSettings()
    assert latencies(settle_count=defaults.settle_count, settle_time_s=defaults.settle_time_s) == [1_000_000] * 5
    runner.warm_ns = 100_000_000
    begin = clock[0]
    assert latencies(settle_count=defaults.settle_count, settle_time_s=defaults.settle_time_s) == [200_000_000] * 5
    assert clock[0] - begin == 6 * 200_000_000, "one inference of a slow network is enough"


def test_a_block_measures_as_long_as_it_settles(tmp_path: Path) -> None:
    """A bench of a network of ten microseconds is not spent settling: twenty of them would be a hundredth of it."""
    settings, events = BenchmarkSettings(min_time_s=0.2), []
    case = fake_case(write_model(tmp_path / "m.fake"))
    result = benchmark(fake_device(latency_ms=0.01), [case], settings, tell=events.append).cases[0]
    assert result.latency_ms is not None
    assert result.latency_ms.p50 < 0.02
    assert result.stopped_by == "target"
    num_blocks = sum("inferences_least" in event for event in events)
    # The clock of the fake device runs between two inferences as long as in one.
    assert num_blocks <= 2 * settings.min_time_s / settings.settle_time_s + 1


class Cooling(FakeRunner):
    """Takes twice as long while it is cold."""

    clock: list[int]
    cold = 0
    warm_ns = 1_000_000

    def infer(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        self.clock[0] += self.warm_ns * (2 if self.cold > 0 else 1)
        self.cold -= 1
        return super().infer(inputs)


def test_the_agent_ignores_modules_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    with open_transport(load_profile("local")).start_agent() as agent:
        assert agent.request("hello")["pid"] != os.getpid()


def test_tables_are_complete() -> None:
    kinds = {each.model_fields["kind"].default for each in get_args(get_args(TransportConfig)[0])}
    assert {"adb", "fake", "local", "ssh", "virtual"} <= kinds
    assert set(TRANSPORTS) == kinds
    assert issubclass(board_errors.ModelRejected, board_errors.AgentError)
    assert {error.exit_code for error in ERRORS.values()} == {2, 3}

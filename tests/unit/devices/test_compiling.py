"""Compiling on a device that does not exist, and what is sent to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.agent import BoardAgent
from devices.board.errors import AgentError, ModelRejected
from devices.board.runners import RUNNERS
from devices.compiled import CompiledManifest
from devices.compiling import compile_on, compiled_case, measure_loading
from devices.errors import CompiledMisfitError, RuntimeMissingError
from devices.measurement import BenchmarkSettings, Case, benchmark, describe_model, predict, profile_case
from devices.profile import load_profile
from devices.records import SampleFile
from devices.transports.fake import FakeAgent, FakeDevice

SETTINGS = BenchmarkSettings(warm_up_count=3, warm_up_time_s=0, min_count=20, min_time_s=0)


@pytest.fixture
def plain(tmp_path: Path) -> Case:
    random = np.random.default_rng(0)
    path = tmp_path / "model.fake"
    with path.open("wb") as stream:
        np.savez(stream, weights=random.normal(size=(48, 3)).astype(np.float32), bias=np.zeros(3, np.float32))
    return Case(id="plain", runtime="fake", path=str(path))


@pytest.fixture
def made(plain: Case, tmp_path: Path) -> tuple[Path, CompiledManifest]:
    out = tmp_path / "compiled"
    out.mkdir()
    manifest = compile_on(load_profile("fake"), plain, "fake", out)
    return out / manifest.files[0].name, manifest


def test_the_manifest_says_what_it_was_made_of_and_for(made: tuple[Path, CompiledManifest], plain: Case) -> None:
    path, manifest = made

    assert path.read_bytes() == Path(plain.path).read_bytes()
    assert (manifest.package, manifest.version, manifest.device) == ("fake", "1", "fake")
    assert manifest.source[0].name == "model.fake"
    assert (manifest.processor.architecture, manifest.processor.cpu_features) == ("fake", ())
    assert manifest.measured is None
    assert manifest.predicted is None


def test_it_is_measured_like_any_other(made: tuple[Path, CompiledManifest], plain: Case) -> None:
    case = compiled_case(*made, label="compiled")

    result = benchmark(load_profile("fake"), [plain, case], SETTINGS)

    assert [each.error for each in result.cases] == [None, None]
    assert [each.compiled for each in result.cases] == [None, "fake"]


def test_starts_of_both_forms_are_compared(made: tuple[Path, CompiledManifest], plain: Case) -> None:
    events: list[dict[str, Any]] = []

    found = measure_loading(
        load_profile("fake"), plain, compiled_case(*made, label="compiled"), pairs=6, tell=events.append
    )

    assert (found.label, found.starts) == ("simulated", 6)
    assert len(events) == 14
    assert found.ratios["latency_ms"].ratio == pytest.approx(1, rel=0.2), "one file has one latency there"


def _nobody(event: dict[str, Any]) -> None:
    del event


WAYS = ("bench", "starts", "predict", "profile", "describe")


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_fit_is_refused_before_anything_is_sent(
    way: str, made: tuple[Path, CompiledManifest], plain: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, case = load_profile("fake"), compiled_case(*made, label="compiled")
    own = FakeAgent._own_facts
    newer = {"runtimes": {"fake": {"runtime": "fake", "version": "2"}}}
    monkeypatch.setattr(FakeAgent, "_own_facts", lambda agent: {**own(agent), **newer})
    sent: list[str] = []
    put = FakeDevice.put
    monkeypatch.setattr(FakeDevice, "put", lambda device, path: (sent.append(path), put(device, path))[1])

    if way == "bench":
        error = benchmark(profile, [case], SETTINGS).cases[0].error
        assert error is not None
        assert (error.kind, error.exit_code) == ("CompiledMisfitError", 2)
        assert "the device has fake 2" in error.message
    else:
        ways = {
            "starts": lambda: measure_loading(profile, case, case, pairs=1),
            "predict": lambda: predict(profile, case, [], None, str(made[0].parent / "out")),
            "profile": lambda: profile_case(profile, case),
            "describe": lambda: describe_model(profile, case),
        }
        with pytest.raises(CompiledMisfitError, match="the device has fake 2"):
            ways[way]()
    assert not [path for path in sent if "compiled" in path]


def test_a_device_that_does_not_list_the_package_can_not_compile(
    plain: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FakeAgent._own_facts
    monkeypatch.setattr(FakeAgent, "_own_facts", lambda agent: {**own(agent), "runtimes": {}})

    with pytest.raises(RuntimeMissingError, match="not among the packages"):
        compile_on(load_profile("fake"), plain, "fake", tmp_path)


def test_the_agent_knows_its_forms(plain: Case) -> None:
    compile_there = BoardAgent(RUNNERS).handlers()["compile"]

    for params in ({"form": "tensorrt"}, {"form": "fake", "level": "most"}):
        with pytest.raises(AgentError, match="forms: xnnpack_cache, ort, openvino_blob, fake; levels: extended, all"):
            compile_there({"path": plain.path, "num_threads": 1, **params}, _nobody)


@pytest.mark.parametrize("known", ["neither", "cache", "model"])
def test_a_cache_of_weights_is_never_loaded_without_both_digests(known: str, tmp_path: Path) -> None:
    for name in ("model.xnnpack", "model.tflite"):
        (tmp_path / name).write_bytes(b"anything")
    digests = {"cache": {"sha256": "0" * 64}, "model": {"weights_sha256": "0" * 64}}.get(known, {})
    load = BoardAgent(RUNNERS).handlers()["load"]

    with pytest.raises(ModelRejected, match="with its digest and that of the model it was made of"):
        load({"runtime": "litert", "path": str(tmp_path / "model.xnnpack"), "num_threads": 1, **digests}, _nobody)


def test_samples_reach_a_compiled_model(made: tuple[Path, CompiledManifest], plain: Case, tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8))
    samples = [SampleFile(path=str(tmp_path / "samples.npy"))]
    answers = []
    for case in (plain, compiled_case(*made, label="compiled")):
        found = predict(load_profile("fake"), case, samples, None, str(tmp_path / case.id))
        answers.append(np.load(found.outputs[0].path))

    np.testing.assert_array_equal(answers[0], answers[1])

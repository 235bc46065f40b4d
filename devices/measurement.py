"""Measures models on a device: latencies of many cases side by side, comparisons, profiles, predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devices.comparison import LEAST_SESSIONS, Comparison, compare, session_ratio
from devices.errors import DeviceError
from devices.latency import relative_half_width
from devices.monitor import Monitor, governor, warnings_after, warnings_before
from devices.profile import DeviceProfile, LatencyLabel
from devices.records import (
    BenchmarkResult,
    BenchmarkSettings,
    Case,
    CaseError,
    CaseResult,
    ImageInput,
    OutputFile,
    Prediction,
    SampleFile,
)
from devices.rounds import TIMEOUT_S, Bench, Tell, Track, load, load_params, refuse_misfit
from devices.transports import Agent, open_transport
from devices.wording import counted

COMPARED_SESSIONS = 10
_MOST_SESSIONS = 40


def benchmark(
    profile: DeviceProfile,
    cases: Sequence[Case],
    settings: BenchmarkSettings | None = None,
    *,
    tell: Tell | None = None,
) -> BenchmarkResult:
    """Measures all cases side by side.

    A case that fails (its model is refused, its agent crashes or hangs) loses its own numbers only; its
    result then holds the error.

    Args:
        profile: The device.
        cases: With distinct ids.
        settings: None takes the defaults.
        tell: Takes progress events: `{"case": id, "state": "loading"}` and
            `{"cases": 4, "cases_done": 1, "inferences_least": 480}`, and warnings.

    Raises:
        BadInputError: The device has no such cores or governor as the settings ask for.
        DeviceError: The device itself can't be used.
        ValueError: Two cases have the same id.
    """
    return _measure(profile, cases, settings or BenchmarkSettings(), tell or _say_nothing, compared=False)


def benchmark_and_compare(
    profile: DeviceProfile,
    cases: Sequence[Case],
    settings: BenchmarkSettings | None = None,
    *,
    tell: Tell | None = None,
) -> BenchmarkResult:
    """Measures all cases side by side and compares each with the first, see `devices.comparison`.

    All agents are started anew in each of `settings.sessions`, at least eight of them. Where `settings.precision` is
    given, further sessions follow until half of each ratio's interval is that narrow, or until a case has run for
    `settings.max_time_s`; `min_count`, `min_time_s` and `max_time_s` are of a case over all sessions.

    Args:
        profile: The device.
        cases: With distinct ids, at least two; the first is the baseline.
        settings: None takes the defaults, with ten sessions.
        tell: See `benchmark`.

    Raises:
        BadInputError: The device has no such cores or governor as the settings ask for.
        DeviceError: The device itself can't be used.
        ValueError: There are fewer than two cases, two of the same id, or more than live side by side.
    """
    settings = settings or BenchmarkSettings(sessions=COMPARED_SESSIONS)
    if not 2 <= len(cases) <= settings.max_agents:
        raise ValueError(
            f"{counted(len(cases), 'case')}; expected 2 to {settings.max_agents}, which are compared side by side"
        )
    settings = settings.model_copy(update={"together": True, "sessions": max(settings.sessions, LEAST_SESSIONS)})
    return _measure(profile, cases, settings, tell or _say_nothing, compared=True)


def _measure(
    profile: DeviceProfile, cases: Sequence[Case], settings: BenchmarkSettings, tell: Tell, *, compared: bool
) -> BenchmarkResult:
    ids = [case.id for case in cases]
    if len(set(ids)) != len(ids):
        raise ValueError(f"the ids of the cases are not distinct: {', '.join(ids)}")
    transport = open_transport(profile)
    with transport.start_agent() as observer, governor(observer, settings.governor):
        before = observer.request("facts", timeout_s=TIMEOUT_S)
        monitor = Monitor(observer, every_s=settings.sample_every_s)
        monitor.look()
        bench = Bench(profile, transport, _of_a_session(settings) if compared else settings, monitor, tell)
        bench.warn(warnings_before(before))
        comparisons: tuple[Comparison, ...] = ()
        if compared:
            comparisons = _compared_sessions(bench, cases, settings)
        else:
            for begin in range(0, len(cases), settings.max_agents):
                group = cases[begin : begin + settings.max_agents]
                for _ in range(settings.sessions):
                    bench.run_session(group, num_cases=len(cases))
                bench.finish(group)
        monitor.look(now=True)
        after = _facts_after(observer)
    bench.warn(warnings_after(before, after))
    bench.warn(monitor.warnings())
    return BenchmarkResult(
        device=profile.name,
        latency_label=profile.latency_label,
        facts=before,
        load_average_before=before["load_average"],
        load_average_after=after.get("load_average"),
        frequency_mhz_before=before["frequency_mhz"],
        frequency_mhz_after=after.get("frequency_mhz"),
        warnings=tuple(bench.warnings),
        settings=settings,
        cases=tuple(bench.results[case.id] for case in cases),
        governor=monitor.governor,
        samples=tuple(monitor.samples),
        comparisons=comparisons,
    )


def _of_a_session(settings: BenchmarkSettings) -> BenchmarkSettings:
    """What one of several sessions that are compared has to give; only all together can be precise."""
    sessions = settings.sessions
    return settings.model_copy(
        update={
            "min_count": max(1, settings.min_count // sessions),
            "min_time_s": settings.min_time_s / sessions,
            "max_time_s": settings.max_time_s / sessions,
            "precision": None,
        }
    )


def _compared_sessions(bench: Bench, cases: Sequence[Case], settings: BenchmarkSettings) -> tuple[Comparison, ...]:
    """Runs the sessions, further ones while the ratios are not precise enough, and compares."""
    comparisons: tuple[Comparison, ...] = ()
    for number in range(1, _MOST_SESSIONS + 1):
        bench.run_session(cases, num_cases=len(cases))
        comparisons = _comparisons([bench.tracks[case.id] for case in cases if case.id not in bench.results])
        if number < settings.sessions:
            continue
        spent_s = max((sum(map(sum, track.blocks())) / 1e9 for track in bench.tracks.values()), default=0.0)
        precise = settings.precision is None or all(
            relative_half_width(each.interval) <= settings.precision for each in comparisons
        )
        if precise or spent_s >= settings.max_time_s or not comparisons:
            for each in comparisons:
                for case in (each.case, each.baseline):
                    bench.tracks[case].stopped_by = "max_time" if not precise else _reached(settings)
            break
    bench.finish(cases)
    return comparisons


def _reached(settings: BenchmarkSettings) -> Any:
    return "target" if settings.precision is None else "precision"


def _comparisons(tracks: Sequence[Track]) -> tuple[Comparison, ...]:
    """Each but the first beside the first."""
    found = []
    for track in tracks[1:]:
        ratios = []
        for one, other in zip(track.sessions, tracks[0].sessions, strict=True):
            rounds = [{"case": one[number], "baseline": other[number]} for number in one if number in other]
            ratio = session_ratio(rounds, "case", "baseline")
            if ratio is not None:
                ratios.append(ratio)
        found.append(compare(track.case.id, tracks[0].case.id, ratios))
    return tuple(found)


def profile_case(profile: DeviceProfile, case: Case, *, count: int = 20) -> dict[str, Any]:
    """Runs a model with the profiler of its runtime.

    Returns:
        See `devices.board.profiling.profile`.

    Raises:
        DeviceError: The device or the model can't be used, or the runtime does not tell.
    """
    transport = open_transport(profile)
    with transport.start_agent() as agent:
        refuse_misfit(profile, agent, case)
        params = {**load_params(profile, transport, case), "count": count}
        found: dict[str, Any] = agent.request("profile", params, timeout_s=BenchmarkSettings().load_timeout_s)
    return found


def predict(
    profile: DeviceProfile,
    case: Case,
    inputs: Sequence[SampleFile],
    labels_path: str | None,
    out_dir: str,
    *,
    tell: Tell | None = None,
) -> Prediction:
    """Runs a model over a set of samples on the device.

    Args:
        profile: The device.
        case: The model.
        inputs: One for each input of the model.
        labels_path: A `.npy` file of whole numbers `(count,)`, or None.
        out_dir: Gets `output_<index>.npy` for each output, see `OutputFile`; made where it is missing.
        tell: Takes progress events: `{"case": id, "done": 100, "total": 1797}`.

    Raises:
        DeviceError: The device or the model can't be used, or the samples do not fit the model.
    """
    tell = tell or _say_nothing
    transport = open_transport(profile)
    given = [{**sample.model_dump(mode="json"), "path": transport.put(sample.path)} for sample in inputs]
    labels = None if labels_path is None else transport.put(labels_path)
    with transport.start_agent() as agent:
        loaded = load(profile, transport, agent, case, timeout_s=BenchmarkSettings().load_timeout_s)
        try:
            answer = agent.request(
                "predict",
                {"inputs": given, "labels": labels},
                idle_timeout_s=BenchmarkSettings().inference_timeout_s,
                on_event=lambda event: tell({"case": case.id, **event}),
            )
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            outputs = []
            for index, output in enumerate(answer.pop("outputs")):
                path = str(Path(out_dir) / f"output_{index}.npy")
                transport.get(output["path"], path)
                outputs.append(OutputFile(**{**output, "path": path, "shape": tuple(output["shape"])}))
        finally:
            with contextlib.suppress(DeviceError):  # it only tidies up; an agent that is gone has been reported
                agent.request("unload", timeout_s=TIMEOUT_S)
    return Prediction(sha256=loaded["sha256"], model=loaded["model"], outputs=tuple(outputs), **answer)


class KnownDevice(NamedTuple):
    """A device and its facts.

    Attributes:
        device: The profile's name.
        latency_label: measured, simulated or predicted.
        facts: See `devices.board.facts.collect`.
    """

    device: str
    latency_label: LatencyLabel
    facts: dict[str, Any]


def know_device(profile: DeviceProfile) -> KnownDevice:
    """Asks a device for its facts.

    Raises:
        DeviceError: It can't be used.
    """
    with open_transport(profile).start_agent() as agent:
        facts: dict[str, Any] = agent.request("facts", timeout_s=TIMEOUT_S)
    return KnownDevice(profile.name, profile.latency_label, facts)


def describe_model(profile: DeviceProfile, case: Case) -> dict[str, Any]:
    """Loads a model on the device and tells what it is.

    Returns:
        `runtime`, `package`, `version`, `inputs` and `outputs`, see `devices.board.runners.contract.tensor_record`.

    Raises:
        DeviceError: The device or the model can't be used.
    """
    transport = open_transport(profile)
    with transport.start_agent() as agent:
        loaded = load(profile, transport, agent, case, timeout_s=BenchmarkSettings().load_timeout_s)
        description: dict[str, Any] = loaded["model"]
        with contextlib.suppress(DeviceError):  # it only tidies up, and all is known
            agent.request("unload", timeout_s=TIMEOUT_S)
    return description


def _facts_after(observer: Agent) -> dict[str, Any]:
    """The facts again; empty where the observer is gone, for the numbers are good without them."""
    try:
        facts: dict[str, Any] = observer.request("facts", timeout_s=TIMEOUT_S)
    except DeviceError:
        return {}
    return facts


def _say_nothing(event: dict[str, Any]) -> None:
    """Takes an event and does nothing."""


__all__ = [
    "BenchmarkResult",
    "BenchmarkSettings",
    "Case",
    "CaseError",
    "CaseResult",
    "ImageInput",
    "KnownDevice",
    "OutputFile",
    "Prediction",
    "SampleFile",
    "Tell",
    "benchmark",
    "benchmark_and_compare",
    "describe_model",
    "know_device",
    "predict",
    "profile_case",
]

"""One model at work without a pause, for minutes: how it slows down as the device grows warm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from devices.latency import LatencySummary, summarize
from devices.measurement import BenchmarkResult, BenchmarkSettings, Case, CaseResult
from devices.monitor import Monitor, governor
from devices.profile import DeviceProfile, LatencyLabel
from devices.records import DeviceSample
from devices.rounds import TIMEOUT_S, load
from devices.transports import Agent, open_transport

Tell = Callable[[dict[str, Any]], None]

MINUTE_S = 60.0
_BLOCK_S = 1.0


class Minute(BaseModel):
    """One minute of work.

    Attributes:
        begin_s: Since the start, in seconds of inferences.
        seconds: How long it was; the last may be shorter.
        latency_ms: Of its inferences.
        device: The state of the device at its end; None where it does not tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    begin_s: float
    seconds: float
    latency_ms: LatencySummary
    device: DeviceSample | None


class SustainedCase(BaseModel):
    """One model at work.

    Attributes:
        id: Of the case.
        runtime: Of the case.
        path: Of the file on this machine.
        sha256: The digest of the file that ran.
        size_bytes: See `devices.records.CaseResult`.
        files: The same.
        model: The same.
        num_threads: Of one inference.
        cores: Those it kept to; None where it was left to the device.
        minutes: In the order of time.
        slowdown: The last minute's median to the first's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    runtime: str
    path: str
    sha256: str
    size_bytes: int
    files: tuple[dict[str, Any], ...]
    model: dict[str, Any]
    num_threads: int
    cores: tuple[int, ...] | None
    minutes: tuple[Minute, ...]
    slowdown: float


class SustainedResult(BaseModel):
    """All models, one after another, so that each has the device to itself.

    Attributes:
        device: The profile's name.
        latency_label: measured, simulated or predicted.
        facts: Of the device, before anything was loaded.
        seconds: How long each worked.
        cases: In the order given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    latency_label: LatencyLabel
    facts: dict[str, Any]
    seconds: float
    cases: tuple[SustainedCase, ...]


def sustain(
    profile: DeviceProfile, cases: Sequence[Case], seconds: float, settings: BenchmarkSettings, *, tell: Tell
) -> SustainedResult:
    """Runs each case without a pause, one after another.

    Args:
        profile: The device.
        cases: With distinct ids.
        seconds: Of inferences, for each.
        settings: Warm-up, cores, governor, seed, limits for a silent agent.
        tell: Takes a message after each minute.

    Raises:
        DeviceError: The device or a model can't be used.
    """
    transport = open_transport(profile)
    with transport.start_agent() as observer, governor(observer, settings.governor):
        facts = observer.request("facts", timeout_s=TIMEOUT_S)
        done = []
        for case in cases:
            tell({"case": case.id, "state": "loading"})
            with transport.start_agent() as agent:
                limit_s = settings.load_timeout_s
                loaded = load(profile, transport, agent, case, timeout_s=limit_s, cores=settings.cores)
                monitor = Monitor(observer, every_s=MINUTE_S)
                minutes = _work(case, agent, monitor, seconds, settings, tell=tell)
            done.append(
                SustainedCase(
                    id=case.id,
                    runtime=case.runtime,
                    path=case.path,
                    sha256=loaded["sha256"],
                    size_bytes=loaded["size_bytes"],
                    files=tuple(loaded["files"]),
                    model=loaded["model"],
                    num_threads=loaded["num_threads"],
                    cores=loaded["cores"] and tuple(loaded["cores"]),
                    minutes=minutes,
                    slowdown=minutes[-1].latency_ms.p50 / minutes[0].latency_ms.p50,
                )
            )
    return SustainedResult(
        device=profile.name,
        latency_label=profile.latency_label,
        facts=facts,
        seconds=seconds,
        cases=tuple(done),
    )


def as_benchmark(result: SustainedResult, settings: BenchmarkSettings) -> BenchmarkResult:
    """The result as the file of results takes it: the latencies are those of the last minute."""
    cases = [
        CaseResult(
            **case.model_dump(exclude={"minutes", "slowdown"}),
            latency_ms=case.minutes[-1].latency_ms,
            minutes=tuple(minute.model_dump(mode="json") for minute in case.minutes),
        )
        for case in result.cases
    ]
    return BenchmarkResult(
        device=result.device,
        latency_label=result.latency_label,
        facts=result.facts,
        load_average_before=result.facts["load_average"],
        load_average_after=None,
        frequency_mhz_before=result.facts["frequency_mhz"],
        frequency_mhz_after=None,
        warnings=(),
        settings=settings,
        cases=tuple(cases),
    )


def _work(
    case: Case, agent: Agent, monitor: Monitor, seconds: float, settings: BenchmarkSettings, *, tell: Tell
) -> tuple[Minute, ...]:
    """The minutes of one case."""
    minutes: list[Minute] = []
    begin_s = 0.0
    while not minutes or seconds - begin_s >= _BLOCK_S:
        blocks: list[list[int]] = []
        spent_s, wanted_s = 0.0, min(MINUTE_S, seconds - begin_s)
        while spent_s < wanted_s:
            # Whole blocks, each at least one inference: a minute may take a little longer than one.
            params = {"time_s": min(_BLOCK_S, wanted_s - spent_s), "settle_count": 0}
            answer = agent.request("measure", params, timeout_s=_BLOCK_S + settings.inference_timeout_s)
            blocks.append(answer["latencies_ns"])
            spent_s += sum(blocks[-1]) / 1e9
        state = monitor.look(now=True)
        minute = Minute(
            begin_s=begin_s, seconds=spent_s, latency_ms=summarize(blocks, seed=settings.seed), device=state
        )
        minutes.append(minute)
        begin_s += spent_s
        heat = "" if state is None or state.temperature_c is None else f", {state.temperature_c:.0f} degrees C"
        tell({"message": f"{case.id}: minute {len(minutes)}: p50 {minute.latency_ms.p50:.3f} ms{heat}"})
    return tuple(minutes)

"""Many cases side by side: each has an agent's process of its own, and they take turns in rounds.

In each round every case runs one short block, in an order that is drawn anew. So whatever slows the machine for a while
hits all cases alike. A session starts all agents anew.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from devices.board.end_to_end import STAGES
from devices.compiled import check_fits
from devices.errors import BadInputError, DeviceError, ModelRejectedError
from devices.latency import percentile, percentile_intervals, relative_half_width, summarize
from devices.monitor import Monitor, slowdown
from devices.profile import DeviceProfile
from devices.records import BenchmarkSettings, Case, CaseError, CaseResult, EndToEnd
from devices.transports import Agent, Transport
from devices.wording import counted

Tell = Callable[[dict[str, Any]], None]
"""Takes one progress event: a JSON object with `message`, `warning`, or numbers by name."""
StoppedBy = Literal["target", "precision", "max_time"]

TIMEOUT_S = 60.0
_CHECK_RESAMPLES = 200
_CHECK_GROWTH = 1.25
"""The precision is looked at again once there are so many times as many latencies."""


@dataclass
class Track:
    """What was measured of one case so far, over all sessions.

    Attributes:
        sessions: Of each its blocks by the number of the round, in nanoseconds.
        loaded: The agent's answer to `load` in the first session.
        stages: Of `devices.board.end_to_end.STAGES`, the nanoseconds of each image, in blocks.
    """

    case: Case
    sessions: list[dict[int, list[int]]] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    warm_up_count: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, list[int]]] = field(default_factory=list)
    decoder: str = ""
    energy_uj: float = 0.0
    energy_reason: str | None = None
    stopped_by: StoppedBy = "target"

    @property
    def image_count(self) -> int:
        """Images that went the whole way."""
        return sum(len(block["infer"]) for block in self.stages)

    def blocks(self) -> list[list[int]]:
        """All blocks in the order of time."""
        return [block for session in self.sessions for block in session.values()]


@dataclass
class _Running:
    """A case whose agent lives and has its model loaded; counts are of this session."""

    track: Track
    agent: Agent
    close: Callable[[], None]
    image: str | None = None
    count: int = 0
    seconds: float = 0.0
    image_seconds: float = 0.0
    checked_count: int = 0
    precise: bool = False
    stopped_by: StoppedBy | None = None


class Bench:
    """The state of one measurement of several cases.

    Args:
        profile: The device.
        transport: The way to it.
        settings: How long.
        monitor: Reads its sensors meanwhile.
        tell: Takes progress events.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        transport: Transport,
        settings: BenchmarkSettings,
        monitor: Monitor,
        tell: Tell,
    ) -> None:
        self._profile, self._transport, self._settings, self._tell = profile, transport, settings, tell
        self._monitor = monitor
        self._order = random.Random(settings.seed)
        self.tracks: dict[str, Track] = {}
        self.results: dict[str, CaseResult] = {}
        self.warnings: list[str] = []
        self._runtime_memory: dict[str, float | None] = {}

    def warn(self, warnings: Sequence[str]) -> None:
        """Says the warnings and keeps them for the result."""
        for warning in warnings:
            self.warnings.append(warning)
            self._tell({"warning": warning})

    def run_session(self, cases: Sequence[Case], *, num_cases: int) -> None:
        """Loads all cases, then measures them in rounds until each has what the settings ask for."""
        cases = [case for case in cases if case.id not in self.results]
        self._order.shuffle(cases)  # what a process gets at its start may depend on who started before it
        with contextlib.ExitStack() as stack:
            running = [started for case in cases if (started := self._start(case, stack)) is not None]
            for each in running:
                each.track.sessions.append({})
            number = 0
            while running:
                self._order.shuffle(running)
                running = [each for each in running if self._advance(each, number)]
                running = self._without_done(running)
                least = min((each.count for each in running), default=0)
                self._tell({"cases": num_cases, "cases_done": len(self.results), "inferences_least": least})
                self._monitor.look()
                number += 1

    def finish(self, cases: Sequence[Case]) -> None:
        """Makes the results of cases that will not be measured any more."""
        for case in cases:
            if case.id not in self.results:
                self._finish(self.tracks[case.id])

    def _start(self, case: Case, stack: contextlib.ExitStack) -> _Running | None:
        """An agent with the case loaded and warmed up; None once its failure is noted."""
        self._tell({"case": case.id, "state": "loading"})
        settings = self._settings
        own = stack.enter_context(contextlib.ExitStack())
        try:
            if settings.runtime_memory:
                self._measure_runtime(case.runtime)
            agent = own.enter_context(self._transport.start_agent())
            image = None if case.image is None else self._transport.put(case.image.path)
            loaded = load(
                self._profile, self._transport, agent, case, timeout_s=settings.load_timeout_s, cores=settings.cores
            )
            warm_up = agent.request(
                "warm_up",
                {"min_count": settings.warm_up_count, "min_time_s": settings.warm_up_time_s},
                timeout_s=settings.warm_up_time_s + settings.inference_timeout_s,
            )
        except BadInputError:  # cores that are not there: that is not this case's fault, and the others have it too
            raise
        except DeviceError as error:
            own.close()
            self._fail(case, error)
            return None
        track = self.tracks.setdefault(case.id, Track(case, loaded=loaded, warm_up_count=warm_up["count"]))
        return _Running(track, agent, own.close, image)

    def _measure_runtime(self, runtime: str) -> None:
        """What a runtime takes of the memory without a model, once for each."""
        if runtime in self._runtime_memory:
            return
        with self._transport.start_agent() as agent:
            found = agent.request("import_runtime", {"runtime": runtime}, timeout_s=self._settings.load_timeout_s)
        before, after = found["baseline_memory_mb"], found["runtime_memory_mb"]
        self._runtime_memory[runtime] = None if before is None or after is None else after - before

    def _advance(self, running: _Running, number: int) -> bool:
        """Runs one block of one case; False once it failed, or has its numbers and waits for nobody."""
        settings, track = self._settings, running.track
        limits: dict[str, Any] = {
            "count": settings.block_count,
            "time_s": settings.block_time_s,
            "settle_count": settings.settle_count,
            "settle_time_s": settings.settle_time_s,
        }
        timeout_s = settings.settle_time_s + settings.block_time_s + settings.inference_timeout_s
        try:
            # Of inferences of microseconds, so many would be over at once, and all the time would go to settling.
            block = {**limits, "min_time_s": settings.settle_time_s}
            answer = running.agent.request("measure", block, timeout_s=timeout_s)
            latencies = answer["latencies_ns"]
            track.sessions[-1][number] = latencies
            running.count += len(latencies)
            running.seconds += sum(latencies) / 1e9
            # One block without its energy, and the sum of the others is not that of all inferences.
            track.energy_reason = track.energy_reason or answer["energy_reason"]
            track.energy_uj += answer["energy_uj"] or 0
            image = track.case.image
            if image is not None and track.image_count < settings.min_count:
                params: dict[str, Any] = {
                    "path": running.image,
                    "preprocess": image.preprocess,
                    "transform": image.transform,
                }
                params = {**limits, **params, "settle_count": 1, "settle_time_s": 0}
                whole = running.agent.request("measure_image", params, timeout_s=timeout_s)
                track.decoder = whole["decoder"]
                track.stages.append(whole["stages_ns"])
                running.image_seconds += sum(map(sum, whole["stages_ns"].values())) / 1e9
            running.stopped_by = self._verdict(running)
            if running.stopped_by is None or settings.together:
                return True
            self._end(running)
        except DeviceError as error:
            self._fail(track.case, error)
            running.close()
        return False

    def _without_done(self, running: list[_Running]) -> list[_Running]:
        """Those that go on: all, until each has its numbers, where they go together."""
        if not self._settings.together or any(each.stopped_by is None for each in running):
            return running
        for each in running:
            try:
                self._end(each)
            except DeviceError as error:
                self._fail(each.track.case, error)
        return []

    def _verdict(self, running: _Running) -> StoppedBy | None:
        """What ends the case in this session; None while it goes on."""
        settings = self._settings
        images = running.track.case.image is None or running.track.image_count >= settings.min_count
        if images and running.count >= settings.min_count and running.seconds >= settings.min_time_s:
            if settings.precision is None:
                return "target"
            if not running.precise and running.count >= _CHECK_GROWTH * running.checked_count:
                running.checked_count = running.count
                blocks = running.track.blocks()
                interval = percentile_intervals(blocks, [90.0], seed=settings.seed, resamples=_CHECK_RESAMPLES)[0]
                running.precise = relative_half_width(interval) <= settings.precision
            if running.precise:
                return "precision"
        return "max_time" if max(running.seconds, running.image_seconds) >= settings.max_time_s else None

    def _end(self, running: _Running) -> None:
        """Ends a case's session; the last one makes its result."""
        track = running.track
        track.memory = running.agent.request("memory", timeout_s=TIMEOUT_S)
        track.stopped_by = running.stopped_by or "max_time"
        running.close()
        if track.stopped_by == "max_time":
            inferences = counted(running.count, "inference")
            limit = f"{track.case.id}: stopped after {self._settings.max_time_s:g} s with {inferences}"
            enough = running.count >= self._settings.min_count and running.seconds >= self._settings.min_time_s
            self.warn([f"{limit}, before its p90 was as certain as asked" if enough else limit])
        if self._settings.sessions == 1:
            self._finish(track)

    def _finish(self, track: Track) -> None:
        case, loaded, blocks = track.case, track.loaded, track.blocks()
        self.warn(slowdown(case.id, blocks))
        count, total_ns = sum(map(len, blocks)), sum(map(sum, blocks))
        self.results[case.id] = CaseResult(
            id=case.id,
            runtime=case.runtime,
            path=case.path,
            latency_ms=summarize(blocks, seed=self._settings.seed),
            throughput_per_s=count * 1e9 / total_ns,
            session_p5_ms=_of_sessions(track, 5),
            session_p50_ms=_of_sessions(track, 50),
            end_to_end=self._end_to_end(track),
            energy_mj=None if track.energy_reason else track.energy_uj / 1000 / count,
            energy_reason=track.energy_reason,
            runtime_memory_mb=self._runtime_memory.get(case.runtime),
            stopped_by=track.stopped_by,
            compiled=case.compiled and case.compiled.form,
            warm_up_count=track.warm_up_count,
            **{
                **loaded,
                **track.memory,
                "files": tuple(loaded["files"]),
                "input_shapes": {name: tuple(shape) for name, shape in loaded["input_shapes"].items()},
                "cores": loaded["cores"] and tuple(loaded["cores"]),
            },
        )

    def _end_to_end(self, track: Track) -> EndToEnd | None:
        if track.case.image is None or not track.stages:
            return None
        whole = [[sum(parts) for parts in zip(*block.values(), strict=True)] for block in track.stages]
        medians = {
            f"{name}_ms": float(np.median([time for block in track.stages for time in block[name]])) / 1e6
            for name in STAGES
        }
        return EndToEnd(
            image=Path(track.case.image.path).name,
            decoder=track.decoder,
            latency_ms=summarize(whole, seed=self._settings.seed),
            **medians,
        )

    def _fail(self, case: Case, error: DeviceError) -> None:
        self._tell({"case": case.id, "state": "failed", "message": f"{case.id}: {error.message}"})
        self.results[case.id] = CaseResult(
            id=case.id,
            runtime=case.runtime,
            path=case.path,
            num_threads=case.num_threads or self._profile.threads,
            error=CaseError(
                kind=type(error).__name__,
                message=error.message,
                details=error.details,
                exit_code=error.exit_code,
            ),
        )


def _of_sessions(track: Track, percent: float) -> tuple[float, ...]:
    """A percentile of each session, in milliseconds."""
    return tuple(
        percentile([latency for block in session.values() for latency in block], percent) / 1e6
        for session in track.sessions
        if session
    )


def load(
    profile: DeviceProfile,
    transport: Transport,
    agent: Agent,
    case: Case,
    *,
    timeout_s: float,
    cores: str | None = None,
) -> dict[str, Any]:
    """Sends the model file to the device and has the agent load it.

    Raises:
        CompiledMisfitError: It is compiled for another processor or version; nothing was sent.
        DeviceError: The device or the model can't be used.
    """
    refuse_misfit(profile, agent, case)
    answer: dict[str, Any] = agent.request(
        "load", load_params(profile, transport, case, cores=cores), timeout_s=timeout_s
    )
    return answer


def refuse_misfit(profile: DeviceProfile, agent: Agent, case: Case) -> None:
    """Asks the device what it is, where a case is compiled, before its file is sent.

    Raises:
        CompiledMisfitError: The file is of another processor or version.
    """
    if case.compiled is not None:
        facts = agent.request("facts", timeout_s=TIMEOUT_S)
        check_fits(case.compiled, facts, path=case.path, device=profile.name)


def load_params(
    profile: DeviceProfile, transport: Transport, case: Case, *, cores: str | None = None
) -> dict[str, Any]:
    """Sends the model file to the device; what the agent needs to load it."""
    if not Path(case.path).is_file():
        raise ModelRejectedError(f"there is no model file {case.path}")
    path = transport.put(case.path)
    weights = Path(case.path).with_suffix(".bin")
    if Path(case.path).suffix == ".xml" and weights.is_file():
        transport.put(str(weights))
    return {
        "runtime": case.runtime,
        "path": path,
        "num_threads": case.num_threads or profile.threads,
        "sha256": case.sha256,
        "weights_sha256": case.weights_sha256,
        "input_shapes": {name: list(shape) for name, shape in case.input_shapes.items()},
        "cores": cores,
        "clusters": _cores_by_name(profile),
        "energy": None if profile.sensors.energy is None else profile.sensors.energy.model_dump(mode="json"),
    }


def _cores_by_name(profile: DeviceProfile) -> dict[str, list[int]]:
    """Those of the profile's clusters, for a board whose kernel does not tell them."""
    found: dict[str, list[int]] = {}
    for cluster in profile.clusters or ():
        found.setdefault(cluster.core, []).extend(cluster.cpus)
    return found

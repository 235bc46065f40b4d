"""Measures models on a device: latencies of many cases side by side, and predictions.

Each case has an agent's process of its own. All are loaded and warmed up one after another, then they take
turns in rounds: in each round every case runs one short block, in an order that is drawn anew. So whatever slows
the machine for a while hits all cases alike.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.errors import DeviceError, ModelRejectedError
from devices.latency import percentile, summarize
from devices.profile import DeviceProfile
from devices.records import (
    BenchmarkResult,
    BenchmarkSettings,
    Case,
    CaseError,
    CaseResult,
    OutputFile,
    Prediction,
    SampleFile,
)
from devices.transports import Agent, Transport, open_transport

Tell = Callable[[dict[str, Any]], None]
"""Takes one progress event: a JSON object with `message`, `warning`, or numbers by name."""

_FACTS_TIMEOUT_S = 60.0
_BUSY_SHARE = 0.25
_SLOWDOWN_RATIO = 1.1
_LEAST_BLOCKS = 5
"""Quarters of fewer blocks say nothing about a trend."""


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
        DeviceError: The device itself can't be used.
        ValueError: Two cases have the same id.
    """
    settings, tell = settings or BenchmarkSettings(), tell or _say_nothing
    ids = [case.id for case in cases]
    if len(set(ids)) != len(ids):
        raise ValueError(f"the ids of the cases are not distinct: {', '.join(ids)}")
    transport = open_transport(profile)
    with transport.start_agent() as observer:
        before = observer.request("facts", timeout_s=_FACTS_TIMEOUT_S)
        bench = _Bench(profile, transport, settings, tell)
        bench.warn(_warnings_before(before))
        for begin in range(0, len(cases), settings.max_agents):
            bench.run_group(cases[begin : begin + settings.max_agents], num_cases=len(cases))
        after = _facts_after(observer)
    bench.warn(_warnings_after(before, after))
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
    )


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
        loaded = _load(profile, transport, agent, case, BenchmarkSettings().load_timeout_s)
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
                agent.request("unload", timeout_s=_FACTS_TIMEOUT_S)
    return Prediction(sha256=loaded["sha256"], model=loaded["model"], outputs=tuple(outputs), **answer)


def describe_model(profile: DeviceProfile, case: Case) -> dict[str, Any]:
    """Loads a model on the device and tells what it is.

    Returns:
        `runtime`, `package`, `version`, `inputs` and `outputs`, see `devices.board.runners.contract.tensor_record`.

    Raises:
        DeviceError: The device or the model can't be used.
    """
    transport = open_transport(profile)
    with transport.start_agent() as agent:
        loaded = _load(profile, transport, agent, case, BenchmarkSettings().load_timeout_s)
        description: dict[str, Any] = loaded["model"]
        with contextlib.suppress(DeviceError):  # it only tidies up, and all is known
            agent.request("unload", timeout_s=_FACTS_TIMEOUT_S)
    return description


@dataclass
class _Running:
    """A case whose agent lives and has its model loaded."""

    case: Case
    agent: Agent
    loaded: dict[str, Any]
    warm_up_count: int
    close: Callable[[], None]
    blocks_ns: list[list[int]] = field(default_factory=list)
    count: int = 0
    seconds: float = 0.0

    def add(self, latencies_ns: list[int]) -> None:
        """Takes one block."""
        self.blocks_ns.append(latencies_ns)
        self.count += len(latencies_ns)
        self.seconds += sum(latencies_ns) / 1e9


class _Bench:
    """The state of one `benchmark`."""

    def __init__(self, profile: DeviceProfile, transport: Transport, settings: BenchmarkSettings, tell: Tell) -> None:
        self._profile, self._transport, self._settings, self._tell = profile, transport, settings, tell
        self.results: dict[str, CaseResult] = {}
        self.warnings: list[str] = []

    def warn(self, warnings: Sequence[str]) -> None:
        """Says the warnings and keeps them for the result."""
        for warning in warnings:
            self.warnings.append(warning)
            self._tell({"warning": warning})

    def run_group(self, cases: Sequence[Case], *, num_cases: int) -> None:
        """Loads all cases, then measures them in rounds until each has its result."""
        order = random.Random(self._settings.seed)
        with contextlib.ExitStack() as stack:
            running = [started for case in cases if (started := self._start(case, stack)) is not None]
            while running:
                order.shuffle(running)
                running = [each for each in running if self._advance(each)]
                least = min((each.count for each in running), default=0)
                self._tell({"cases": num_cases, "cases_done": len(self.results), "inferences_least": least})

    def _start(self, case: Case, stack: contextlib.ExitStack) -> _Running | None:
        """An agent with the case loaded and warmed up; None once its failure is noted."""
        self._tell({"case": case.id, "state": "loading"})
        settings = self._settings
        own = stack.enter_context(contextlib.ExitStack())
        try:
            agent = own.enter_context(self._transport.start_agent())
            loaded = _load(self._profile, self._transport, agent, case, settings.load_timeout_s)
            warm_up = agent.request(
                "warm_up",
                {"min_count": settings.warm_up_count, "min_time_s": settings.warm_up_time_s},
                timeout_s=settings.warm_up_time_s + settings.inference_timeout_s,
            )
        except DeviceError as error:
            own.close()
            self._fail(case, error)
            return None
        return _Running(case, agent, loaded, warm_up["count"], own.close)

    def _advance(self, running: _Running) -> bool:
        """Runs one block of one case; False once the case has its result."""
        settings = self._settings
        try:
            answer = running.agent.request(
                "measure",
                {
                    "count": settings.block_count,
                    "time_s": settings.block_time_s,
                    "settle_count": settings.settle_count,
                },
                timeout_s=settings.block_time_s + settings.inference_timeout_s,
            )
            running.add(answer["latencies_ns"])
            reached = running.count >= settings.min_count and running.seconds >= settings.min_time_s
            if not reached and running.seconds < settings.max_time_s:
                return True
            memory = running.agent.request("memory", timeout_s=_FACTS_TIMEOUT_S)
        except DeviceError as error:
            self._fail(running.case, error)
        else:
            self._finish(running, memory, reached=reached)
        running.close()
        return False

    def _finish(self, running: _Running, memory: dict[str, Any], *, reached: bool) -> None:
        case, loaded = running.case, running.loaded
        if not reached:
            self.warn([f"{case.id}: stopped after {self._settings.max_time_s:g} s with {running.count} inferences"])
        self.warn(_slowdown(case.id, running.blocks_ns))
        self.results[case.id] = CaseResult(
            id=case.id,
            runtime=case.runtime,
            path=case.path,
            latency_ms=summarize(running.blocks_ns, seed=self._settings.seed),
            stopped_by="target" if reached else "max_time",
            warm_up_count=running.warm_up_count,
            **{
                **loaded,
                **memory,
                "files": tuple(loaded["files"]),
                "input_shapes": {name: tuple(shape) for name, shape in loaded["input_shapes"].items()},
            },
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


def _load(profile: DeviceProfile, transport: Transport, agent: Agent, case: Case, timeout_s: float) -> dict[str, Any]:
    """Sends the model file to the device and has the agent load it."""
    if not Path(case.path).is_file():
        raise ModelRejectedError(f"there is no model file {case.path}")
    path = transport.put(case.path)
    weights = Path(case.path).with_suffix(".bin")
    if Path(case.path).suffix == ".xml" and weights.is_file():
        transport.put(str(weights))
    params: dict[str, Any] = {
        "runtime": case.runtime,
        "path": path,
        "num_threads": case.num_threads or profile.threads,
        "sha256": case.sha256,
        "weights_sha256": case.weights_sha256,
        "input_shapes": {name: list(shape) for name, shape in case.input_shapes.items()},
    }
    answer: dict[str, Any] = agent.request("load", params, timeout_s=timeout_s)
    return answer


def _warnings_before(facts: dict[str, Any]) -> list[str]:
    """What makes the numbers worse than the device from the start."""
    warnings = []
    busy = facts["cpu_busy_share"]
    if busy is not None and busy > _BUSY_SHARE:
        warnings.append(f"the device is busy: other programs use {busy:.0%} of its cores; latencies will be too long")
    if facts["governor"] == "powersave":
        warnings.append("the CPU's governor is 'powersave'; latencies will be too long")
    return warnings


def _warnings_after(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What happened to the device meanwhile."""
    if not after:
        return ["the device did not tell its facts after the measurement"]
    warnings = []
    counts = before["throttle_count"], after["throttle_count"]
    if None not in counts and counts[1] > counts[0]:
        warnings.append(f"the CPU was slowed down for heat {counts[1] - counts[0]} times during the measurement")
    return warnings


def _facts_after(observer: Agent) -> dict[str, Any]:
    """The facts again; empty where the observer is gone, for the numbers are good without them."""
    try:
        facts: dict[str, Any] = observer.request("facts", timeout_s=_FACTS_TIMEOUT_S)
    except DeviceError:
        return {}
    return facts


def _slowdown(case_id: str, blocks_ns: list[list[int]]) -> list[str]:
    """A warning where the last quarter of a case's blocks is much slower than the first."""
    quarter = len(blocks_ns) // 4
    if quarter < _LEAST_BLOCKS:
        return []
    first, last = (
        percentile([latency for block in blocks for latency in block], 50)
        for blocks in (blocks_ns[:quarter], blocks_ns[-quarter:])
    )
    if last <= _SLOWDOWN_RATIO * first:
        return []
    message = (
        f"{case_id}: slowed down by {last / first - 1:.0%} meanwhile (heat, or another program); "
        "measure again on a cool and quiet device"
    )
    return [message]


def _say_nothing(event: dict[str, Any]) -> None:
    """Takes an event and does nothing."""


__all__ = [
    "BenchmarkResult",
    "BenchmarkSettings",
    "Case",
    "CaseError",
    "CaseResult",
    "OutputFile",
    "Prediction",
    "SampleFile",
    "Tell",
    "benchmark",
    "describe_model",
    "predict",
]

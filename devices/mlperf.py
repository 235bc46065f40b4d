"""Measures by MLPerf's rules for single-stream and offline: one case after another, each scenario in new processes.

On this machine LoadGen of MLCommons drives the runner where it is installed; elsewhere the agent does what LoadGen
does, see `devices.board.mlperf`. Either way it is no submission: the inputs are random, and nobody has reviewed it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt

from devices import loadgen
from devices.errors import DeviceError
from devices.latency import percentile
from devices.monitor import governor, warnings_before
from devices.profile import DeviceProfile, LatencyLabel
from devices.records import BenchmarkSettings, Case, CaseError, CaseResult
from devices.rounds import TIMEOUT_S, load
from devices.transports import Agent, Transport, open_transport
from devices.transports.local import LocalDevice

Scenario = Literal["single_stream", "offline"]
Tell = Callable[[dict[str, Any]], None]

SCENARIOS: tuple[Scenario, ...] = ("single_stream", "offline")
MIN_DURATION_S = 600.0
"""Of both scenarios (mlcommons/inference, loadgen/mlperf.conf)."""
MIN_COUNT: dict[Scenario, int] = {"single_stream": 100, "offline": 24_576}
"""Queries (LoadGen's default), and samples of the one offline query (mlperf.conf, resnet50)."""
ACCURACY_SHARE = 0.99
"""Of the float model's accuracy, which a quantized one must reach (MLPerf Inference, edge)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MlperfSettings(_Frozen):
    """How long; None takes the rules'.

    Attributes:
        min_duration_s: Of each scenario.
        min_count: Of queries in the single stream, and of samples offline.
    """

    min_duration_s: NonNegativeFloat | None = None
    min_count: PositiveInt | None = None

    def deviations(self, scenario: Scenario) -> tuple[str, ...]:
        """Why a run does not conform to the rules; nothing where it does."""
        found = []
        if self.min_duration_s is not None and self.min_duration_s < MIN_DURATION_S:
            found.append(f"{self.min_duration_s:g} s instead of {MIN_DURATION_S:g} s")
        if self.min_count is not None and self.min_count < MIN_COUNT[scenario]:
            found.append(f"{self.min_count:,} instead of {MIN_COUNT[scenario]:,} {_COUNTED[scenario]}")
        return tuple(found)


_TRIED_S = 1.0
"""How long inferences are tried, to tell how many are needed."""
_COUNTED: dict[Scenario, str] = {"single_stream": "queries", "offline": "samples"}


class EarlyStopping(_Frozen):
    """The estimate of a percentile that holds with a confidence of 99 %.

    Attributes:
        percentile: 0..1.
        needed: Queries at least.
        discarded: The longest ones; None where there are too few queries, or LoadGen does not tell.
        estimate_ns: None where there are too few queries.
    """

    percentile: float
    needed: int
    discarded: int | None
    estimate_ns: int | None


class MlperfRun(_Frozen):
    """One scenario.

    Attributes:
        scenario: Which.
        generator: LoadGen and its version, or "edgeship" where the agent did its work.
        generator_reason: Why it was not LoadGen.
        valid: As LoadGen judges it by the duration and counts that were asked for.
        reasons: Why it is not valid.
        conforms: Whether duration and counts are those of the rules.
        deviations: In which they are not.
        query_count: Queries; offline there is one.
        sample_count: Inferences.
        duration_s: From the first query to the last one's issue; offline to its end.
        samples_per_s: Inferences in a second, without the time between them in the single stream.
        early_stopping: Of the 90th percentile and of the 99th; none offline.
        min_ns: Of the queries; the following ones are alike.
        mean_ns: The average.
        max_ns: The longest.
        percentiles_ns: By the percentile's text.
        logs: The directory of LoadGen's logs; None where the agent did its work.
    """

    scenario: Scenario
    generator: str
    generator_reason: str | None = None
    valid: bool
    reasons: tuple[str, ...] = ()
    conforms: bool
    deviations: tuple[str, ...] = ()
    query_count: int
    sample_count: int
    duration_s: float
    samples_per_s: float
    early_stopping: tuple[EarlyStopping, ...] = ()
    min_ns: int
    mean_ns: int
    max_ns: int
    percentiles_ns: dict[str, int]
    logs: str | None = None

    @property
    def p90_ms(self) -> float | None:
        """The single stream's result: early stopping's estimate of the 90th percentile; None where there is none."""
        estimate = self.early_stopping[0].estimate_ns if self.early_stopping else None
        return None if estimate is None else estimate / 1e6


class AccuracyRule(_Frozen):
    """Whether a model is as accurate as the rules ask for, on samples that it was evaluated on before.

    Attributes:
        accuracy: The model's.
        reference_accuracy: The float model's.
        share: The one to the other.
        holds: Whether that is 99 % at least.
        subset: The digest of the samples.
        count: Of them.
    """

    accuracy: float
    reference_accuracy: float
    share: float
    holds: bool
    subset: str
    count: int


class MlperfCase(_Frozen):
    """One model by the rules.

    Attributes:
        case: What was loaded, or why it could not be measured; without latencies of its own.
        runs: Of each scenario.
    """

    case: CaseResult
    runs: tuple[MlperfRun, ...] = ()


class MlperfResult(_Frozen):
    """All models, one after another.

    Attributes:
        device: The profile's name.
        latency_label: measured, simulated or predicted.
        facts: Of the device, before anything was loaded.
        settings: As given.
        measured_with: Warm-up, cores, governor.
        warnings: Why the numbers may be worse than the device.
        cases: In the order given.
    """

    device: str
    latency_label: LatencyLabel
    facts: dict[str, Any]
    settings: MlperfSettings
    measured_with: BenchmarkSettings
    warnings: tuple[str, ...] = ()
    cases: tuple[MlperfCase, ...]


def measure_by_rules(
    profile: DeviceProfile,
    cases: Sequence[Case],
    settings: MlperfSettings,
    measured_with: BenchmarkSettings,
    *,
    log_dir: Path,
    tell: Tell,
) -> MlperfResult:
    """Measures each case in both scenarios.

    Args:
        profile: The device.
        cases: With distinct ids; one that fails loses its own numbers only.
        settings: How long.
        measured_with: Warm-up, cores, governor, limits for a silent agent; nothing else of it counts.
        log_dir: Gets LoadGen's logs, in a directory for each case and scenario.
        tell: Takes a message for each scenario, and warnings.

    Raises:
        DeviceError: The device itself can't be used.
    """
    transport = open_transport(profile)
    with transport.start_agent() as observer, governor(observer, measured_with.governor):
        facts = observer.request("facts", timeout_s=TIMEOUT_S)
        warnings = tuple(warnings_before(facts))
        for warning in warnings:
            tell({"warning": warning})
        done = []
        for number, case in enumerate(cases, 1):
            run = _CaseRun(profile, transport, case, settings, measured_with)
            slug = re.sub(r"[^A-Za-z0-9._-]+", "_", case.id)[-60:].strip("._")
            try:
                done.append(run.measure(log_dir / f"{number}-{slug}", tell))
            except DeviceError as error:
                tell({"case": case.id, "state": "failed", "message": f"{case.id}: {error.message}"})
                done.append(MlperfCase(case=_failed(profile, case, error)))
    return MlperfResult(
        device=profile.name,
        latency_label=profile.latency_label,
        facts=facts,
        settings=settings,
        measured_with=measured_with,
        warnings=warnings,
        cases=tuple(done),
    )


class _CaseRun:
    """One case on its way through the scenarios."""

    def __init__(
        self,
        profile: DeviceProfile,
        transport: Transport,
        case: Case,
        settings: MlperfSettings,
        measured_with: BenchmarkSettings,
    ) -> None:
        self._profile, self._transport, self._case = profile, transport, case
        self._settings, self._measured_with = settings, measured_with
        self._reason = why_not_loadgen(profile)
        self._loaded: dict[str, Any] = {}
        self._memory: dict[str, Any] = {}
        self._warm_up_count = 0

    def measure(self, log_dir: Path, tell: Tell) -> MlperfCase:
        """Runs the scenarios."""
        runs = tuple(self._run(scenario, log_dir / scenario, tell) for scenario in SCENARIOS)
        loaded, case = self._loaded, self._case
        return MlperfCase(
            case=CaseResult(
                id=case.id,
                runtime=case.runtime,
                path=case.path,
                warm_up_count=self._warm_up_count,
                **{
                    **loaded,
                    **self._memory,
                    "files": tuple(loaded["files"]),
                    "input_shapes": {name: tuple(shape) for name, shape in loaded["input_shapes"].items()},
                    "cores": loaded["cores"] and tuple(loaded["cores"]),
                },
            ),
            runs=runs,
        )

    def _run(self, scenario: Scenario, log_dir: Path, tell: Tell) -> MlperfRun:
        settings, how = self._settings, self._measured_with
        tell({"message": f"{self._case.id}: {scenario.replace('_', ' ')}"})
        with self._start() as agent:
            loaded = load(
                self._profile, self._transport, agent, self._case, timeout_s=how.load_timeout_s, cores=how.cores
            )
            self._loaded = self._loaded or loaded
            warm_up = agent.request(
                "warm_up",
                {"min_count": how.warm_up_count, "min_time_s": how.warm_up_time_s},
                timeout_s=how.warm_up_time_s + how.inference_timeout_s,
            )
            tried = agent.request("measure", {"time_s": _TRIED_S}, timeout_s=_TRIED_S + how.inference_timeout_s)
            self._warm_up_count = self._warm_up_count or warm_up["count"]
            duration_s = MIN_DURATION_S if settings.min_duration_s is None else settings.min_duration_s
            params = {
                "scenario": scenario,
                "min_duration_s": duration_s,
                "min_query_count": settings.min_count or MIN_COUNT[scenario],
                # Short ones are expected: a run with too few samples for its duration is not valid.
                "expected_latency_ns": max(1.0, percentile(tried["latencies_ns"], 10)),
                **({} if self._reason else {"out_dir": str(log_dir.absolute())}),
            }
            found = agent.request(
                "mlperf",
                params,
                idle_timeout_s=how.inference_timeout_s,
                on_event=lambda event: tell({"case": self._case.id, **event}),
            )
            self._memory = agent.request("memory", timeout_s=TIMEOUT_S)
        deviations = settings.deviations(scenario)
        return MlperfRun(
            scenario=scenario,
            generator_reason=self._reason,
            conforms=not deviations,
            deviations=deviations,
            logs=None if self._reason else str(log_dir),
            **{**found, "reasons": tuple(found["reasons"]), "early_stopping": tuple(found["early_stopping"])},
        )

    def _start(self) -> Agent:
        if self._reason is None and isinstance(self._transport, LocalDevice):
            return self._transport.start_agent("devices.loadgen")
        return self._transport.start_agent()


def why_not_loadgen(profile: DeviceProfile) -> str | None:
    """Why LoadGen can't drive the runner on a device; None where it can."""
    if profile.transport.kind != "local":
        return f"{loadgen.PACKAGE} has no wheel for boards; the agent on {profile.name} applies its rules"
    if profile.python not in {None, sys.executable} or not loadgen.is_installed():
        return f"{loadgen.PACKAGE} is not installed for the Python of {profile.name}; the agent applies its rules"
    return None


def _failed(profile: DeviceProfile, case: Case, error: DeviceError) -> CaseResult:
    return CaseResult(
        id=case.id,
        runtime=case.runtime,
        path=case.path,
        num_threads=case.num_threads or profile.threads,
        error=CaseError(
            kind=type(error).__name__, message=error.message, details=error.details, exit_code=error.exit_code
        ),
    )

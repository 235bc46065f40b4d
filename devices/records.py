"""What is asked of a measurement and what it gives: JSON values only, units in the names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from devices.latency import LatencySummary
from devices.profile import LatencyLabel


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Case(_Frozen):
    """One model file in one runtime.

    Attributes:
        id: Names the case in results.
        runtime: A name of `devices.board.runners.RUNNERS`.
        path: The file on this machine.
        sha256: What the file's digest must be on the device; None takes any.
        weights_sha256: The same for the `.bin` beside an OpenVINO `.xml`.
        num_threads: None takes the profile's.
        input_shapes: By the input's name its whole shape, where the file leaves dimensions free. Without an
            entry a free first dimension is 1, and no other may be free.
    """

    id: str
    runtime: str
    path: str
    sha256: str | None = None
    weights_sha256: str | None = None
    num_threads: PositiveInt | None = None
    input_shapes: dict[str, tuple[PositiveInt, ...]] = {}


class BenchmarkSettings(_Frozen):
    """How long and in which order.

    Attributes:
        warm_up_count: At least so many inferences before anything is measured, and
        warm_up_time_s: at least for so long.
        min_count: A case ends once it has so many latencies and
        min_time_s: they sum up to so much time, or
        max_time_s: they sum up to this, whatever their number.
        block_count: A block ends after so many inferences or
        block_time_s: after so much time.
        settle_count: Inferences at the start of each block that are not measured: the caches still hold the
            case before.
        max_agents: So many agents at most live side by side; further cases wait for their turn, in further
            groups.
        seed: Of the order and of the bootstrap.
        load_timeout_s: An agent that has not loaded its model by then is ended.
        inference_timeout_s: The same for a warm-up or a block, on top of the time it is meant to take.
    """

    warm_up_count: PositiveInt = 10
    warm_up_time_s: NonNegativeFloat = 0.5
    min_count: PositiveInt = 200
    min_time_s: NonNegativeFloat = 1.0
    max_time_s: PositiveFloat = 60.0
    block_count: PositiveInt = 20
    block_time_s: PositiveFloat = 0.05
    settle_count: NonNegativeInt = 3
    max_agents: PositiveInt = 16
    seed: int = 0
    load_timeout_s: PositiveFloat = 120.0
    inference_timeout_s: PositiveFloat = 60.0


class CaseError(_Frozen):
    """Why a case has no numbers.

    Attributes:
        kind: A name of `devices.errors.ERRORS`.
        message: For people.
        details: Shown on request.
        exit_code: As of the error.
    """

    kind: str
    message: str
    details: str = ""
    exit_code: int


class CaseResult(_Frozen):
    """What was measured of one case; None wherever `error` says why.

    Attributes:
        sha256: The digest of the file that ran, taken on the device.
        size_bytes: Of the file, and of the weights beside an OpenVINO `.xml`.
        files: Name, digest and size of each of these.
        model: The runner's description: runtime, package, version, inputs, outputs.
        input_shapes: By name the shape that each input was measured with.
        load_ms: From the import of the runtime to a model that is ready.
        first_inference_ms: The first inference, which many runtimes use to prepare themselves.
        latency_ms: Of the inferences after the warm-up.
        stopped_by: "target" where `min_count` and `min_time_s` were reached, "max_time" where not both.
        baseline_memory_mb: Resident memory of the agent before the runtime was imported, in MiB.
        peak_memory_mb: The highest resident memory of the agent, in MiB.
        peak_memory_reason: Why it is None.
        error: What went wrong.
    """

    id: str
    runtime: str
    path: str
    num_threads: int
    sha256: str | None = None
    size_bytes: int | None = None
    files: tuple[dict[str, Any], ...] = ()
    model: dict[str, Any] | None = None
    input_shapes: dict[str, tuple[int, ...]] | None = None
    load_ms: float | None = None
    first_inference_ms: float | None = None
    warm_up_count: int | None = None
    latency_ms: LatencySummary | None = None
    stopped_by: Literal["target", "max_time"] | None = None
    baseline_memory_mb: float | None = None
    peak_memory_mb: float | None = None
    peak_memory_reason: str | None = None
    error: CaseError | None = None


class BenchmarkResult(_Frozen):
    """All cases on one device.

    Attributes:
        device: The profile's name.
        latency_label: measured, simulated or predicted.
        facts: Of the device, before anything was loaded.
        load_average_before: Over 1, 5 and 15 minutes; None where the device does not tell.
        load_average_after: The same at the end.
        frequency_mhz_before: Of the first core.
        frequency_mhz_after: The same at the end.
        warnings: Why the numbers may be worse than the device.
        settings: As given.
        cases: In the order given.
    """

    device: str
    latency_label: LatencyLabel
    facts: dict[str, Any]
    load_average_before: tuple[float, ...] | None
    load_average_after: tuple[float, ...] | None
    frequency_mhz_before: float | None
    frequency_mhz_after: float | None
    warnings: tuple[str, ...]
    settings: BenchmarkSettings
    cases: tuple[CaseResult, ...]


class SampleFile(_Frozen):
    """Samples for one input of a model.

    Attributes:
        name: Of the input; None where the model has only one.
        path: A `.npy` file on this machine, `(count, ...)`, one row a sample.
        transform: What makes a row the input's, of `devices.board.preprocess.InputTransform.to_json`; None
            where the bits are to be fed as they are.
    """

    name: str | None = None
    path: str
    transform: dict[str, Any] | None = None


class OutputFile(_Frozen):
    """What one output of a model answered to all samples.

    Attributes:
        name: Of the output.
        path: A `.npy` file on this machine, float32. Quantized integers are written as their real values,
            other types are cast: whole numbers beyond 2^24 lose exactness.
        shape: Of the file: `(count, *shape)`, where the output's shape loses a first dimension of 1.
        dtype: Of the model's output.
        non_finite: Samples with a value that is not a finite number.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    non_finite: int


class Prediction(_Frozen):
    """What a model answered to a set of samples.

    Attributes:
        count: Samples.
        correct: How many had their label as the highest value of the first output; None without labels.
        outputs: In the order of the model file.
        seconds: For all samples, one by one, without loading.
        sha256: The digest of the file that ran, taken on the device.
        model: The runner's description.
    """

    count: int
    correct: int | None
    outputs: tuple[OutputFile, ...]
    seconds: float = Field(ge=0)
    sha256: str
    model: dict[str, Any]

    @property
    def non_finite(self) -> int:
        """Samples with a value that is not a finite number, summed up over the outputs."""
        return sum(output.non_finite for output in self.outputs)

"""What is asked of a measurement and what it gives: JSON values only, units in the names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from devices.comparison import Comparison
from devices.compiled import CompiledManifest
from devices.latency import LatencySummary
from devices.loading import Loading
from devices.profile import LatencyLabel


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageInput(_Frozen):
    """An image file that goes the whole way through the device.

    Attributes:
        path: On this machine.
        preprocess: Of `devices.board.preprocess.Preprocess.to_dict`.
        transform: Of `devices.board.preprocess.InputTransform.to_json`.
    """

    path: str
    preprocess: dict[str, Any]
    transform: dict[str, Any] = {}


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
        image: Measures the whole way of `min_count` images beside the inference alone; None measures that alone.
        compiled: Of a compiled file its manifest, which must fit the device.
    """

    id: str
    runtime: str
    path: str
    sha256: str | None = None
    weights_sha256: str | None = None
    num_threads: PositiveInt | None = None
    input_shapes: dict[str, tuple[PositiveInt, ...]] = {}
    image: ImageInput | None = None
    compiled: CompiledManifest | None = None


class BenchmarkSettings(_Frozen):
    """How long and in which order.

    Attributes:
        warm_up_count: At least so many inferences before anything is measured, and
        warm_up_time_s: at least for so long.
        min_count: A case ends once it has so many latencies and
        min_time_s: they sum up to so much time, or
        max_time_s: they sum up to this, whatever their number. These three are of each session.
        precision: Where given, a case that has reached both goes on until half of the interval of its p90 is at most
            this share of it, or `max_time_s` is reached.
        sessions: How often all agents are started anew; a process keeps what luck it had at its start.
        together: Whether all cases go on until each has its numbers, so that every round has all.
        block_count: A block ends after so many inferences, once they took as long as it settled, or
        block_time_s: after so much time.
        settle_count: Inferences at the start of each block that are not measured, at least: the core has waited,
            and the caches hold the case before.
        settle_time_s: They take at least so long. A network of a millisecond needs some ten inferences until its
            times stop falling.
        max_agents: So many agents at most live side by side; further cases wait for their turn, in further
            groups.
        cores: Those that the agents keep to: a list such as `0-3`, or a name of the device's cores such as `big` or
            `Cortex-A76`; None leaves it to the device.
        governor: Set on the device while it measures, and put back; None leaves it as it is.
        sample_every_s: How often temperature, frequency and throttling are read.
        runtime_memory: Whether each runtime is also loaded without a model, to tell its memory.
        seed: Of the order and of the bootstrap.
        load_timeout_s: An agent that has not loaded its model by then is ended.
        inference_timeout_s: The same for a warm-up or a block, on top of the time it is meant to take.
    """

    warm_up_count: PositiveInt = 10
    warm_up_time_s: NonNegativeFloat = 0.5
    min_count: PositiveInt = 400
    min_time_s: NonNegativeFloat = 1.0
    max_time_s: PositiveFloat = 60.0
    precision: PositiveFloat | None = None
    sessions: PositiveInt = 1
    together: bool = False
    block_count: PositiveInt = 20
    block_time_s: PositiveFloat = 0.05
    settle_count: NonNegativeInt = 1
    settle_time_s: NonNegativeFloat = 0.02
    max_agents: PositiveInt = 16
    cores: str | None = None
    governor: str | None = None
    sample_every_s: PositiveFloat = 5.0
    runtime_memory: bool = False
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


class EndToEnd(_Frozen):
    """The whole way of an image: file, pixels, model's input, answer, probabilities.

    Attributes:
        image: The file's name.
        decoder: What made pixels of it.
        latency_ms: Of the whole way.
        decode_ms: The median of this part; those below are alike.
        preprocess_ms: Resize, crop, and what makes the result the model's input.
        infer_ms: The inference.
        softmax_ms: From logits to probabilities.
    """

    image: str
    decoder: str
    latency_ms: LatencySummary
    decode_ms: float
    preprocess_ms: float
    infer_ms: float
    softmax_ms: float


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
        stopped_by: "target" where `min_count` and `min_time_s` were reached; "precision" where the interval of p90 is
            as narrow as was asked besides; "max_time" where one of these was not reached in time.
        throughput_per_s: Inferences in a second, one after another: their number by the sum of their times.
        session_p5_ms: The 5th percentile of each session, which other programs on the device hardly move.
        session_p50_ms: The median of each session.
        minutes: Of work without a pause, see `devices.sustained.Minute`; `latency_ms` is then of the last.
        end_to_end: None where no image was given.
        cores: Those that the agent kept to; None where it was left to the device.
        energy_mj: Of one inference, in millijoules, with all that the sensor saw meanwhile, see `devices.board.energy`.
        energy_sensor: What told it: a counter of the processor's package, or a rail of a power monitor.
        energy_reason: Why it is None.
        runtime_memory_mb: What loading the runtime alone adds to the baseline, in MiB.
        baseline_memory_mb: Resident memory of the agent before the runtime was imported, in MiB.
        peak_memory_mb: The highest resident memory of the agent, in MiB.
        peak_memory_reason: Why it is None.
        compiled: The form of a compiled file; None for a model as it was exported.
        loading: Of a compiled file, what it saves at a start, where that was measured.
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
    stopped_by: Literal["target", "precision", "max_time"] | None = None
    throughput_per_s: float | None = None
    session_p5_ms: tuple[float, ...] = ()
    session_p50_ms: tuple[float, ...] = ()
    minutes: tuple[dict[str, Any], ...] = ()
    end_to_end: EndToEnd | None = None
    cores: tuple[int, ...] | None = None
    energy_mj: float | None = None
    energy_sensor: str | None = None
    energy_reason: str | None = None
    runtime_memory_mb: float | None = None
    baseline_memory_mb: float | None = None
    peak_memory_mb: float | None = None
    peak_memory_reason: str | None = None
    compiled: str | None = None
    loading: Loading | None = None
    error: CaseError | None = None


class DeviceSample(_Frozen):
    """The state of a device at one moment, see `devices.board.sensors.sample`.

    Attributes:
        seconds: Since the start of the measurement.
        temperature_c: The highest of all zones.
        frequency_mhz: Of each core.
        throttle_count: Since the start of the device.
        throttled: What limits it now; None where it does not tell.
    """

    seconds: float
    temperature_c: float | None = None
    frequency_mhz: tuple[float, ...] = ()
    throttle_count: int | None = None
    throttled: tuple[str, ...] | None = None


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
        governor: Of the first core while it was measured.
        samples: The device's state, from time to time.
        comparisons: Of each case but the first with the first, where that was asked.
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
    governor: str | None = None
    samples: tuple[DeviceSample, ...] = ()
    comparisons: tuple[Comparison, ...] = ()


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

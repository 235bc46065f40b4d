"""The agent: one process on the board that holds one model and answers requests about it.

hello                                                          -> protocol, python, pid, and what was `mended`
facts                                                          -> see `facts.collect`
sample                                                         -> see `sensors.sample`
set_governor {governor}, restore_governor                      -> nothing
import_runtime {runtime}                                       -> memory before and after, and the time it took
load {runtime, path, num_threads, sha256?, weights_sha256?,
      input_shapes?, cores?, clusters?, energy?}               -> times, description, digest, size, memory, cores
warm_up {min_count, min_time_s}                                -> count, seconds
measure {count?, time_s?, min_time_s?, settle_count?,
         settle_time_s?}                                       -> latencies_ns, energy_uj or energy_reason
measure_image {path, preprocess, transform, count?, time_s?,
               settle_count?, settle_time_s?}                  -> see `end_to_end.stages_record`
mlperf {scenario, min_duration_s, min_query_count,
        expected_latency_ns}                                   -> see `mlperf.run_scenario`
profile {runtime, path, num_threads, input_shapes?, count?}    -> see `profiling.profile`
compile {form, path, num_threads, sha256?, weights_sha256?,
      input_shapes?, level?}                                   -> see `compiling.compile_model`
memory                                                         -> peak_memory_mb
predict {inputs: [{name, path, transform}], labels?, outputs?} -> see `prediction.predict`; `outputs` is a directory
unload                                                         -> nothing
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import platform
import shutil
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from . import facts, sensors
from .companions import companion_of
from .compiling import compile_model
from .cores import pin
from .end_to_end import ImagePath, stages_record
from .energy import EnergyMeter
from .errors import AgentError, ModelRejected
from .governor import GovernorKeeper
from .jsonlines import EmitEvent, Handler
from .launch import DIRECTORY_VARIABLE, PROTOCOL_VERSION
from .memory import peak_memory, resident_memory_mb
from .mlperf import run_scenario
from .prediction import predict
from .profiling import profile
from .runners import IMPORTS, RUNNERS, Runner
from .runners.contract import Feed, make_feeds
from .runners.litert_cached import CACHE_SUFFIX

_NUM_INPUTS = 4

Array = np.ndarray


class BoardAgent:
    """The handlers of one agent and the model they share.

    Args:
        runners: By runtime name, what makes a runner.
        clock_ns: What latencies are read from; the fake device puts a scripted one here.
        root: Of the file system that sensors are read from; the fake device has none.
        on_governor: Called before the governor is set, so that nothing ends this process before it is put back.
    """

    def __init__(
        self,
        runners: Mapping[str, Callable[[], Runner]] = RUNNERS,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        root: str = "",
        on_governor: Optional[Callable[[], None]] = None,
    ) -> None:
        self._runners = runners
        self._clock_ns = clock_ns
        self._root = root
        self._runner: Optional[Runner] = None
        self._feeds: List[Feed] = []
        self._inputs: List[List[Array[Any, Any]]] = []
        self._next_input = 0
        self._scratch = ""
        self._governors = GovernorKeeper(os.environ.get(DIRECTORY_VARIABLE) or os.path.expanduser("~/.edgeship"), root)
        self._on_governor = on_governor
        self._meter: Optional[EnergyMeter] = None
        self._images: Dict[str, ImagePath] = {}

    def handlers(self) -> Dict[str, Handler]:
        """By method name, for `jsonlines.serve`."""
        return {
            "hello": self._hello,
            "facts": self._facts,
            "sample": self._sample,
            "set_governor": self._set_governor,
            "restore_governor": self._restore_governor,
            "import_runtime": self._import_runtime,
            "load": self._load,
            "warm_up": self._warm_up,
            "measure": self._measure,
            "measure_image": self._measure_image,
            "mlperf": self._mlperf,
            "profile": self._profile,
            "compile": self._compile,
            "memory": self._memory,
            "predict": self._predict,
            "unload": self._unload,
        }

    def close(self) -> None:
        """Puts right what must not outlive this process. May be called on any thread, and more than once."""
        self._governors.restore()

    def _hello(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        mended = self._governors.mend()
        return {
            "protocol": PROTOCOL_VERSION,
            "python": platform.python_version(),
            "pid": os.getpid(),
            "mended": mended,
        }

    def _facts(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        return facts.collect()

    def _sample(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        return sensors.sample(self._root)

    def _set_governor(self, params: Dict[str, Any], emit_event: EmitEvent) -> None:  # noqa: ARG002
        if self._on_governor is not None:
            self._on_governor()
        self._governors.set(params["governor"])

    def _restore_governor(self, params: Dict[str, Any], emit_event: EmitEvent) -> None:  # noqa: ARG002
        self._governors.restore()

    def _import_runtime(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        """Imports a runtime into an agent that has no model, to tell its memory and its time from the model's."""
        before, started = resident_memory_mb(), self._clock_ns()
        IMPORTS[params["runtime"]]()
        import_ms = (self._clock_ns() - started) / 1e6
        return {"baseline_memory_mb": before, "runtime_memory_mb": resident_memory_mb(), "import_ms": import_ms}

    def _load(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        if self._runner is not None:
            raise AgentError("the agent holds a model already; unload it, or start another agent")
        runtime, path, num_threads = params["runtime"], params["path"], params["num_threads"]
        if runtime not in self._runners:
            raise AgentError(f"no runtime '{runtime}'; this agent has: {', '.join(sorted(self._runners))}")
        if not isinstance(num_threads, int) or num_threads < 1:
            raise AgentError(f"num_threads is {num_threads!r}; expected a whole number of at least 1")
        input_shapes: Dict[str, List[int]] = params.get("input_shapes") or {}
        files = _check_files(path, params.get("sha256"), params.get("weights_sha256"))
        # Before the runtime is imported, so that the threads it starts keep to the same cores.
        cores = pin(params["cores"], self._root, named=params.get("clusters")) if params.get("cores") else None
        baseline_memory_mb = resident_memory_mb()
        runner = self._runners[runtime]()
        started = self._clock_ns()
        runner.load(path, num_threads=num_threads, input_shapes=input_shapes)
        loaded = self._clock_ns()
        description = runner.describe()
        feeds = make_feeds(description["inputs"], input_shapes)
        inputs = _random_inputs(description["inputs"], feeds)
        first = self._clock_ns()
        _infer_first(runner, inputs[0], path)
        done = self._clock_ns()
        self._runner, self._feeds, self._inputs, self._next_input = runner, feeds, inputs, 0
        self._meter = EnergyMeter(self._root, params.get("energy"))
        return {
            "load_ms": (loaded - started) / 1e6,
            "first_inference_ms": (done - first) / 1e6,
            "num_threads": num_threads,
            "cores": cores,
            "energy_sensor": self._meter.name,
            "sha256": files[0]["sha256"],
            "size_bytes": sum(file["size_bytes"] for file in files),
            "files": files,
            "model": description,
            "input_shapes": {feed.name: list(feed.shape) for feed in feeds},
            "baseline_memory_mb": baseline_memory_mb,
            **peak_memory(),
        }

    def _warm_up(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        self._loaded()
        count, elapsed_ns = self._repeat(self._infer_next, int(params["min_count"]), float(params["min_time_s"]))
        return {"count": count, "seconds": elapsed_ns / 1e9}

    def _measure(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        """Single inferences, timed one by one, until `count` are done or `time_s` has passed, at least one.

        `settle_count` inferences and at least `settle_time_s` of them go before, untimed: the core has waited, and
        another process has just used the caches. With `min_time_s` the count alone does not end it before that time.
        """
        runner, clock_ns = self._loaded(), self._clock_ns
        meter = self._meter = self._meter or EnergyMeter(self._root)
        limit, budget_ns = _limits(params)
        least_ns = float(params.get("min_time_s", 0)) * 1e9
        latencies: List[int] = []
        self._settle(self._infer_next, params)
        with _no_garbage_collection():
            energy = meter.read()
            begin = clock_ns()
            while True:
                inputs = self._input()
                started = clock_ns()
                runner.infer(inputs)
                ended = clock_ns()
                latencies.append(ended - started)
                elapsed_ns = ended - begin
                if elapsed_ns >= budget_ns or (len(latencies) >= limit and elapsed_ns >= least_ns):
                    break
            energy_uj = meter.spent_uj(energy, meter.read(), sum(latencies))
        return {"latencies_ns": latencies, "energy_uj": energy_uj, "energy_reason": meter.reason}

    def _measure_image(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        """The whole way of an image, timed as `measure` times inferences."""
        path, clock_ns = params["path"], self._clock_ns
        if path not in self._images:
            self._images[path] = ImagePath(path, params["preprocess"], params["transform"], self._loaded(), self._feeds)
        image = self._images[path]
        limit, budget_ns = _limits(params)
        stages: List[List[int]] = []
        self._settle(lambda: image.run(clock_ns), params)
        with _no_garbage_collection():
            begin = clock_ns()
            while len(stages) < limit and (not stages or clock_ns() - begin < budget_ns):
                stages.append(image.run(clock_ns))
        return stages_record(stages, image.decoder)

    def _infer_next(self) -> None:
        self._loaded().infer(self._input())

    def _settle(self, infer: Callable[[], Any], params: Mapping[str, Any]) -> None:
        self._repeat(infer, int(params.get("settle_count", 0)), float(params.get("settle_time_s", 0)))

    def _repeat(self, infer: Callable[[], Any], min_count: int, min_time_s: float) -> Tuple[int, int]:
        """Inferences that are not timed one by one: how many there were and the nanoseconds that they took."""
        started, count, elapsed_ns = self._clock_ns(), 0, 0
        while count < min_count or elapsed_ns < min_time_s * 1e9:
            infer()
            count += 1
            elapsed_ns = self._clock_ns() - started
        return count, elapsed_ns

    def infer_prepared(self, index: int) -> None:
        """One inference of one of the prepared sets of inputs, which are taken in turn."""
        self._loaded().infer(self._inputs[index % len(self._inputs)])

    @property
    def num_prepared(self) -> int:
        """How many sets of inputs are prepared."""
        return len(self._inputs)

    def _mlperf(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:
        self._loaded()
        with _no_garbage_collection():
            found: Dict[str, Any] = run_scenario(params, self.infer_prepared, self._clock_ns, emit_event)
        return found

    def _profile(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        return profile(
            params["runtime"],
            params["path"],
            num_threads=params["num_threads"],
            input_shapes=params.get("input_shapes") or {},
            count=int(params.get("count", 20)),
            make_inputs=lambda records, feeds: _random_inputs(records, feeds)[0],
        )

    def _compile(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        _check_files(params["path"], params.get("sha256"), params.get("weights_sha256"))
        return compile_model(
            params["form"],
            params["path"],
            self._scratch_dir(),
            num_threads=params["num_threads"],
            input_shapes=params.get("input_shapes") or {},
            level=params.get("level") or "all",
        )

    def _memory(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        return peak_memory()

    def _predict(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:
        return predict(
            self._loaded(),
            self._feeds,
            params["inputs"],
            labels=params.get("labels"),
            out_dir=params.get("outputs") or self._scratch_dir(),
            emit_event=emit_event,
        )

    def _unload(self, params: Dict[str, Any], emit_event: EmitEvent) -> None:  # noqa: ARG002
        self._runner, self._feeds, self._inputs, self._images = None, [], [], {}
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = ""
        gc.collect()

    def _scratch_dir(self) -> str:
        """A directory for what the host fetches; `unload` removes it."""
        if not self._scratch:
            self._scratch = tempfile.mkdtemp(prefix="edgeship-")
        return self._scratch

    def _loaded(self) -> Runner:
        if self._runner is None:
            raise AgentError("no model is loaded; send 'load' first")
        return self._runner

    def _input(self) -> List[Array[Any, Any]]:
        """The next of the prepared sets of inputs, in turn."""
        self._next_input = (self._next_input + 1) % len(self._inputs)
        return self._inputs[self._next_input]


def _limits(params: Mapping[str, Any]) -> Tuple[float, float]:
    """How many inferences a block has and how many nanoseconds it takes, at most."""
    count, time_s = params.get("count"), params.get("time_s")
    if count is None and time_s is None:
        raise AgentError("measure needs a count, a time_s, or both")
    limit = float("inf") if count is None else int(count)
    return limit, float("inf") if time_s is None else float(time_s) * 1e9


def _random_inputs(records: Sequence[Dict[str, Any]], feeds: Sequence[Feed]) -> List[List[Array[Any, Any]]]:
    """Sets of seeded random tensors, one for each input.

    Floats are of [0, 1). Small integers are of any value, and so are quantized ones; other integers, which may be
    indices, are 0 or 1.
    """
    generator = np.random.default_rng(0)
    by_input = [_random_tensors(generator, record, feed) for record, feed in zip(records, feeds)]
    return [list(tensors) for tensors in zip(*by_input)]


def _random_tensors(generator: np.random.Generator, record: Dict[str, Any], feed: Feed) -> List[Array[Any, Any]]:
    """As many tensors of one input as there are sets."""
    shape, dtype = feed.shape, feed.dtype
    if dtype.kind == "f":
        return [generator.random(shape).astype(dtype) for _ in range(_NUM_INPUTS)]
    if dtype.kind in "iu" and (dtype.itemsize <= 2 or record["quantization"] is not None):
        limits = np.iinfo(dtype)
        return [generator.integers(limits.min, limits.max, shape, dtype, endpoint=True) for _ in range(_NUM_INPUTS)]
    return [generator.integers(0, 2, shape).astype(dtype) for _ in range(_NUM_INPUTS)]


def _infer_first(runner: Runner, inputs: Sequence[Array[Any, Any]], path: str) -> None:
    """The first inference, in which some runtimes find out that the shapes of several inputs do not fit together.

    Raises:
        ModelRejected: The runtime raised.
    """
    try:
        runner.infer(inputs)
    except Exception as error:
        shapes = ", ".join(f"{array.dtype.name} {array.shape}" for array in inputs)
        raise ModelRejected(
            f"{path} was loaded, but an inference of random inputs ({shapes}) failed: {error}; "
            "check the shapes that are given for its inputs"
        ) from error


def _check_files(path: str, sha256: Optional[str], weights_sha256: Optional[str]) -> List[Dict[str, Any]]:
    """Name, digest and size of the model file, and of the file that belongs to it, such as OpenVINO's weights.

    Raises:
        ModelRejected: A file is missing, or its digest is not the expected one; or a cache of weights comes without
            the digests, and nobody knows whether it is of this model.
    """
    expected, companion = [(path, sha256)], companion_of(path)
    if path.endswith(CACHE_SUFFIX) and None in (sha256, weights_sha256):
        raise ModelRejected(
            f"{path} is a cache of weights, and is loaded only with its digest and that of the model it was made of: "
            "with another model the runtime would answer for the wrong one, without a word. Compile it with edgeship "
            "compile, which writes both down"
        )
    if companion is not None and (weights_sha256 is not None or os.path.isfile(companion)):
        expected.append((companion, weights_sha256))
    records = []
    for file, digest in expected:
        try:
            actual, size_bytes = _digest(file)
        except OSError as error:
            raise ModelRejected(f"the model file {file} can't be read: {error.strerror or error}") from error
        if digest is not None and digest != actual:
            raise ModelRejected(f"{file} has the SHA-256 {actual}, but {digest} was expected: it is another file")
        records.append({"name": os.path.basename(file), "sha256": actual, "size_bytes": size_bytes})
    return records


def _digest(path: str) -> tuple[str, int]:
    hasher, size_bytes = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        while True:
            block = stream.read(1 << 20)
            if not block:
                return hasher.hexdigest(), size_bytes
            hasher.update(block)
            size_bytes += len(block)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps a collection of Python's garbage out of the latencies."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

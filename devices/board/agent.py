"""The agent: one process on the board that holds one model and answers requests about it.

hello                                                          -> protocol, python, pid
facts                                                          -> see `facts.collect`
load {runtime, path, num_threads, sha256?, weights_sha256?}    -> times, description, digest, size, memory
warm_up {min_count, min_time_s}                                -> count, seconds
measure {count?, time_s?, settle_count?}                       -> latencies_ns
memory                                                         -> peak_memory_mb
predict {images, labels?, logits?}                             -> count, correct, non_finite, seconds, logits
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
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

import numpy as np

from . import facts
from .errors import AgentError, ModelRejected
from .jsonlines import EmitEvent, Handler
from .memory import peak_memory, resident_memory_mb
from .runners import RUNNERS, Runner
from .runners.contract import fixed_shape

PROTOCOL_VERSION = 1

_NUM_INPUTS = 4
_PROGRESS_EVERY_S = 0.5

Array = np.ndarray


class BoardAgent:
    """The handlers of one agent and the model they share.

    Args:
        runners: By runtime name, what makes a runner.
        clock_ns: What latencies are read from; the fake device puts a scripted one here.
    """

    def __init__(
        self,
        runners: Mapping[str, Callable[[], Runner]] = RUNNERS,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._runners = runners
        self._clock_ns = clock_ns
        self._runner: Optional[Runner] = None
        self._description: Dict[str, Any] = {}
        self._inputs: List[Array[Any, Any]] = []
        self._next_input = 0
        self._scratch = ""

    def handlers(self) -> Dict[str, Handler]:
        """By method name, for `jsonlines.serve`."""
        return {
            "hello": self._hello,
            "facts": self._facts,
            "load": self._load,
            "warm_up": self._warm_up,
            "measure": self._measure,
            "memory": self._memory,
            "predict": self._predict,
            "unload": self._unload,
        }

    def _hello(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        return {"protocol": PROTOCOL_VERSION, "python": platform.python_version(), "pid": os.getpid()}

    def _facts(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        return facts.collect()

    def _load(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        if self._runner is not None:
            raise AgentError("the agent holds a model already; unload it, or start another agent")
        runtime, path, num_threads = params["runtime"], params["path"], params["num_threads"]
        if runtime not in self._runners:
            raise AgentError(f"no runtime '{runtime}'; this agent has: {', '.join(sorted(self._runners))}")
        if not isinstance(num_threads, int) or num_threads < 1:
            raise AgentError(f"num_threads is {num_threads!r}; expected a whole number of at least 1")
        files = _check_files(path, params.get("sha256"), params.get("weights_sha256"))
        baseline_memory_mb = resident_memory_mb()
        runner = self._runners[runtime]()
        started = self._clock_ns()
        runner.load(path, num_threads=num_threads)
        loaded = self._clock_ns()
        description = runner.describe()
        inputs = _random_inputs(description["input"])
        first = self._clock_ns()
        runner.infer(inputs[0])
        done = self._clock_ns()
        self._runner, self._description, self._inputs, self._next_input = runner, description, inputs, 0
        return {
            "load_ms": (loaded - started) / 1e6,
            "first_inference_ms": (done - first) / 1e6,
            "num_threads": num_threads,
            "sha256": files[0]["sha256"],
            "size_bytes": sum(file["size_bytes"] for file in files),
            "files": files,
            "model": description,
            "baseline_memory_mb": baseline_memory_mb,
            **peak_memory(),
        }

    def _warm_up(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        runner = self._loaded()
        min_count, min_time_ns = int(params["min_count"]), float(params["min_time_s"]) * 1e9
        started = self._clock_ns()
        count, elapsed_ns = 0, 0
        while count < min_count or elapsed_ns < min_time_ns:
            runner.infer(self._input())
            count += 1
            elapsed_ns = self._clock_ns() - started
        return {"count": count, "seconds": elapsed_ns / 1e9}

    def _measure(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        """Single inferences, timed one by one, until `count` are done or `time_s` has passed, at least one.

        `settle_count` inferences go before them untimed: another process has just used the caches.
        """
        runner, clock_ns = self._loaded(), self._clock_ns
        count, time_s = params.get("count"), params.get("time_s")
        if count is None and time_s is None:
            raise AgentError("measure needs a count, a time_s, or both")
        limit = float("inf") if count is None else int(count)
        budget_ns = float("inf") if time_s is None else float(time_s) * 1e9
        latencies: List[int] = []
        for _ in range(int(params.get("settle_count", 0))):
            runner.infer(self._input())
        with _no_garbage_collection():
            begin = clock_ns()
            while True:
                image = self._input()
                started = clock_ns()
                runner.infer(image)
                ended = clock_ns()
                latencies.append(ended - started)
                if len(latencies) >= limit or ended - begin >= budget_ns:
                    return {"latencies_ns": latencies}

    def _memory(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:  # noqa: ARG002
        return peak_memory()

    def _predict(self, params: Dict[str, Any], emit_event: EmitEvent) -> Dict[str, Any]:
        runner = self._loaded()
        shape = fixed_shape(self._description["input"])
        images = np.load(params["images"], mmap_mode="r", allow_pickle=False)
        if images.dtype.name != self._description["input"]["dtype"] or images.shape[1:] != shape[1:] or shape[0] != 1:
            raise AgentError(
                f"the images are {images.dtype.name} {images.shape}, but the model takes "
                f"{self._description['input']['dtype']} {shape}; preprocess them with the model's record"
            )
        labels = _load_labels(params.get("labels"), len(images))
        buffer = np.empty(shape, images.dtype)
        logits: Optional[Array[Any, Any]] = None
        path = params.get("logits") or os.path.join(self._scratch_dir(), "logits.npy")
        partial = path + ".partial"
        started = said = time.monotonic()
        try:
            for index in range(len(images)):
                buffer[0] = images[index]
                answer = runner.infer(buffer)
                if logits is None:
                    logits = _logits_file(partial, len(images), answer, labels)
                logits[index] = answer[0]
                if time.monotonic() - said >= _PROGRESS_EVERY_S:
                    said = time.monotonic()
                    emit_event({"done": index + 1, "total": len(images)})
            seconds = time.monotonic() - started
            if logits is None:
                raise AgentError(f"{params['images']} holds no images")
            correct = None if labels is None else int((logits.argmax(axis=1) == labels).sum())
            non_finite = int((~np.isfinite(logits)).any(axis=1).sum())
            logits.flush()  # type: ignore[attr-defined]
            os.replace(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
        emit_event({"done": len(images), "total": len(images)})
        return {
            "count": len(images),
            "correct": correct,
            "non_finite": non_finite,
            "seconds": seconds,
            "logits": path,
        }

    def _unload(self, params: Dict[str, Any], emit_event: EmitEvent) -> None:  # noqa: ARG002
        self._runner, self._description, self._inputs = None, {}, []
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

    def _input(self) -> Array[Any, Any]:
        """The next of the prepared inputs, in turn."""
        self._next_input = (self._next_input + 1) % len(self._inputs)
        return self._inputs[self._next_input]


def _random_inputs(record: Dict[str, Any]) -> List[Array[Any, Any]]:
    """Seeded random tensors of the model's shape and dtype: small integers of any value, floats of [0, 1)."""
    shape, dtype = fixed_shape(record), record["dtype"]
    generator = np.random.default_rng(0)
    if dtype in ("float16", "float32", "float64"):
        return [generator.random(shape).astype(dtype) for _ in range(_NUM_INPUTS)]
    if dtype in ("uint8", "int8", "uint16", "int16"):
        limits = np.iinfo(dtype)
        return [generator.integers(limits.min, limits.max, shape, dtype, endpoint=True) for _ in range(_NUM_INPUTS)]
    if dtype in ("int32", "int64", "uint32", "uint64", "bool"):
        return [generator.integers(0, 2, shape).astype(dtype) for _ in range(_NUM_INPUTS)]
    raise ModelRejected(f"input '{record['name']}' has the type {dtype}, for which there is no random input")


def _check_files(path: str, sha256: Optional[str], weights_sha256: Optional[str]) -> List[Dict[str, Any]]:
    """Name, digest and size of the model file, and of the weights beside an OpenVINO one.

    Raises:
        ModelRejected: A file is missing, or its digest is not the expected one.
    """
    expected = [(path, sha256)]
    if path.endswith(".xml") and os.path.isfile(path[:-4] + ".bin"):
        expected.append((path[:-4] + ".bin", weights_sha256))
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


def _load_labels(path: Optional[str], count: int) -> Optional[Array[Any, Any]]:
    if path is None:
        return None
    labels: Array[Any, Any] = np.load(path, allow_pickle=False)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise AgentError(f"the labels are {labels.dtype.name} {labels.shape}; expected whole numbers ({count},)")
    return labels


def _logits_file(path: str, count: int, answer: Array[Any, Any], labels: Optional[Array[Any, Any]]) -> Array[Any, Any]:
    """A memory-mapped float32 file, `(count, classes)` with as many classes as the first answer has."""
    if answer.ndim != 2 or answer.shape[0] != 1 or answer.dtype != np.float32:
        raise AgentError(f"the model answers {answer.dtype.name} {answer.shape}; expected logits float32 (1, classes)")
    if labels is not None and (labels.min() < 0 or labels.max() >= answer.shape[1]):
        raise AgentError(
            f"the labels reach from {labels.min()} to {labels.max()}, but the model has {answer.shape[1]} classes"
        )
    logits: Array[Any, Any] = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(count, answer.shape[1])
    )
    return logits


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

"""LiteRT's own profiler, through the C API of its library: `python3 litert_profiler.py QUESTION ANSWER`.

A program of its own, with nothing but the standard library: what it calls is declared nowhere in Python, and a library
with other signatures would end the process. It is for ai-edge-litert 2.3, see `litert_times.KNOWN_VERSIONS`. The calls
and records are those of LiteRT's `litert/c/*.h`; the options are TOML texts, as `litert/c/options` writes them.

QUESTION is a JSON file with `library`, `model`, `num_threads`, `count` and `inputs` (of each the tensor's `name` and
the `path` of a file with its bytes). ANSWER gets `inferences`: of each the time of the whole in `ms`, and its `events`,
each `[kind, tag, index, microseconds]`.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from typing import Any, Dict, List

SYMBOLS = (
    "LiteRtCreateEnvironment",
    "LiteRtCreateModelFromFile",
    "LiteRtGetNumModelSignatures",
    "LiteRtGetModelSignature",
    "LiteRtCreateOptions",
    "LiteRtSetOptionsHardwareAccelerators",
    "LiteRtCreateOpaqueOptions",
    "LiteRtAddOpaqueOptions",
    "LiteRtCreateCompiledModel",
    "LiteRtCompiledModelGetProfiler",
    "LiteRtGetNumSignatureInputs",
    "LiteRtGetNumSignatureOutputs",
    "LiteRtGetSignatureInputTensorByIndex",
    "LiteRtGetSignatureOutputTensorByIndex",
    "LiteRtGetTensorName",
    "LiteRtGetRankedTensorType",
    "LiteRtGetCompiledModelInputBufferRequirements",
    "LiteRtGetCompiledModelOutputBufferRequirements",
    "LiteRtCreateManagedTensorBufferFromRequirements",
    "LiteRtGetTensorBufferPackedSize",
    "LiteRtLockTensorBuffer",
    "LiteRtUnlockTensorBuffer",
    "LiteRtRunCompiledModel",
    "LiteRtResetProfiler",
    "LiteRtStartProfiler",
    "LiteRtStopProfiler",
    "LiteRtGetNumProfilerEvents",
    "LiteRtGetProfilerEvents",
)

WARM_UP_COUNT = 3

_CPU = 1
_WRITE = 1
_TENSOR_TYPE_BYTES = 1024  # the record has less than 100; it is only handed on
_UNWRITTEN = 0xAA

Pointer = ctypes.c_void_p


class _Event(ctypes.Structure):
    """`ProfiledEventData` of `litert_profiler_event.h`, of 64-bit processors."""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("begin_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("index", ctypes.c_uint64),
        ("more", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


class _Library:
    """The library; a call that does not succeed raises."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        missing = [name for name in SYMBOLS if not hasattr(self._library, name)]
        if missing:
            raise OSError(f"{path} does not export {len(missing)} of {len(SYMBOLS)} functions, such as {missing[0]}")

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise OSError(f"{name} ended with status {status}")

    def pointer(self, name: str, *arguments: Any) -> Pointer:
        """What a call gives by its last argument."""
        made = Pointer()
        self.call(name, *arguments, ctypes.byref(made))
        return made

    def size(self, name: str, *arguments: Any) -> int:
        """The same, of a number."""
        made = ctypes.c_size_t()
        self.call(name, *arguments, ctypes.byref(made))
        return made.value


class Profiled:
    """A compiled model with a profiler.

    Args:
        question: See the module.

    Raises:
        OSError: LiteRT refuses something, or lacks a function.
        ValueError: The model has not exactly one signature, or its inputs are others.
    """

    def __init__(self, question: Dict[str, Any]) -> None:
        library = self._library = _Library(question["library"])
        self._kept: List[Any] = []
        environment = library.pointer("LiteRtCreateEnvironment", 0, None)
        model = library.pointer("LiteRtCreateModelFromFile", environment, question["model"].encode())
        count = library.size("LiteRtGetNumModelSignatures", model)
        if count != 1:
            raise ValueError(f"the model has {count} signatures, expected 1")
        self._environment, self._signature = (
            environment,
            library.pointer("LiteRtGetModelSignature", model, ctypes.c_size_t(0)),
        )
        options = self._options(int(question["num_threads"]))
        self._compiled = library.pointer("LiteRtCreateCompiledModel", environment, model, options)
        self._profiler = library.pointer("LiteRtCompiledModelGetProfiler", self._compiled)
        self._inputs = self._buffers("Input")
        self._outputs = self._buffers("Output")
        self._write({each["name"]: each["path"] for each in question["inputs"]})

    def _options(self, num_threads: int) -> Pointer:
        library = self._library
        options = library.pointer("LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        keep = ctypes.CFUNCTYPE(None, Pointer)(lambda _: None)  # the texts are Python's, which frees them
        for name, text in (
            ("runtime_options_string", "enable_profiling = true\n"),
            ("xnnpack", f"num_threads = {num_threads}\n"),
        ):
            content = ctypes.create_string_buffer(text.encode())
            self._kept += [content, keep]
            made = library.pointer("LiteRtCreateOpaqueOptions", name.encode(), ctypes.cast(content, Pointer), keep)
            library.call("LiteRtAddOpaqueOptions", options, made)
        return options

    def _buffers(self, side: str) -> Any:
        library = self._library
        count = library.size(f"LiteRtGetNumSignature{side}s", self._signature)
        buffers = (Pointer * count)()
        for index in range(count):
            number = ctypes.c_size_t(index)
            tensor = library.pointer(f"LiteRtGetSignature{side}TensorByIndex", self._signature, number)
            record = ctypes.create_string_buffer(_TENSOR_TYPE_BYTES)
            library.call("LiteRtGetRankedTensorType", tensor, record)
            asked = f"LiteRtGetCompiledModel{side}BufferRequirements"
            needs = library.pointer(asked, self._compiled, ctypes.c_size_t(0), number)
            made = "LiteRtCreateManagedTensorBufferFromRequirements"
            buffers[index] = library.pointer(made, self._environment, record, needs).value
        return buffers

    def _write(self, paths: Dict[str, str]) -> None:
        library = self._library
        for index, buffer in enumerate(self._inputs):
            tensor = library.pointer("LiteRtGetSignatureInputTensorByIndex", self._signature, ctypes.c_size_t(index))
            name = ctypes.c_char_p()
            library.call("LiteRtGetTensorName", tensor, ctypes.byref(name))
            with open(paths[(name.value or b"").decode()], "rb") as stream:
                content = stream.read()
            handle = Pointer(buffer)
            size = library.size("LiteRtGetTensorBufferPackedSize", handle)
            if size != len(content):
                raise ValueError(f"the input {name.value!r} takes {size} bytes, not {len(content)}")
            place = Pointer()
            library.call("LiteRtLockTensorBuffer", handle, ctypes.byref(place), _WRITE)
            ctypes.memmove(place, content, size)
            library.call("LiteRtUnlockTensorBuffer", handle)

    def infer(self) -> Dict[str, Any]:
        """One inference: its time and its events."""
        library = self._library
        library.call("LiteRtResetProfiler", self._profiler)
        library.call("LiteRtStartProfiler", self._profiler)
        begin = time.perf_counter_ns()
        library.call(
            "LiteRtRunCompiledModel", self._compiled, ctypes.c_size_t(0), ctypes.c_size_t(len(self._inputs)),
            self._inputs, ctypes.c_size_t(len(self._outputs)), self._outputs,
        )  # fmt: skip
        elapsed_ms = (time.perf_counter_ns() - begin) / 1e6
        library.call("LiteRtStopProfiler", self._profiler)
        return {"ms": elapsed_ms, "events": self._events()}

    def _events(self) -> List[List[Any]]:
        library = self._library
        number = ctypes.c_int()
        library.call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(number))
        if number.value < 1:
            raise ValueError("the profiler tells of nothing")
        # Twice the room, so that a library with a larger record does not write beyond it, and is noticed.
        events = (_Event * (2 * number.value))()
        ctypes.memset(events, _UNWRITTEN, ctypes.sizeof(events))
        library.call("LiteRtGetProfilerEvents", self._profiler, number.value, events)
        written = len(bytes(events).rstrip(bytes([_UNWRITTEN])))
        expected = number.value * ctypes.sizeof(_Event)
        if not 0 <= expected - written < 8:
            raise ValueError(f"{number.value} events of the profiler take {written} bytes, not {expected}")
        return [
            [event.kind, event.tag.decode(errors="replace"), event.index, event.elapsed_us]
            for event in events[: number.value]
        ]


def main(question_path: str, answer_path: str) -> None:
    """Answers a question, see the module."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: an agent that is ended takes this with it
    with open(question_path, encoding="utf-8") as stream:
        question = json.load(stream)
    model = Profiled(question)
    for _ in range(WARM_UP_COUNT):
        model.infer()
    answer = {"inferences": [model.infer() for _ in range(int(question["count"]))]}
    with open(answer_path, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    main(*sys.argv[1:3])

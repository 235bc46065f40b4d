"""Time per layer of a TFLite file: LiteRT's profiler, asked in a process of its own (see `litert_profiler`)."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

KNOWN_VERSIONS = ("2.3",)
"""Of ai-edge-litert: those whose C API and records `litert_profiler` knows. LiteRT promises neither to stay."""

_BUILT_IN = 1 << 1
_IN_DELEGATE = 1 << 3
_TIMEOUT_S = 80.0
_TAIL_CHARACTERS = 300


class LayerTimes(NamedTuple):
    """What LiteRT's profiler tells.

    Attributes:
        kernels: In the order of execution, each as a layer of `profiling.profile`: the operations that XNNPACK made of
            those that it took, and the others. Whole microseconds, as LiteRT gives them.
        inference_ms: Of a whole inference with the profiler on, the median.
        partitions: Into how many pieces XNNPACK took the graph.
        built_in: Names of the operations that ran outside of XNNPACK, sorted.
    """

    kernels: List[Dict[str, Any]]
    inference_ms: float
    partitions: int
    built_in: List[str]


class NoTimes(Exception):
    """There are no times; the text says why."""


def measure_layers(
    path: str,
    *,
    package: str,
    version: str,
    num_threads: int,
    count: int,
    inputs: Sequence[Tuple[str, np.ndarray[Any, Any]]],
) -> LayerTimes:
    """Asks LiteRT for the time of each layer.

    Args:
        path: Of the model, whose inputs have the shapes that the file states.
        package: The one that brings the runtime.
        version: Of it.
        num_threads: Of one inference.
        count: Inferences after those that warm up.
        inputs: Name of the tensor, and its values.

    Raises:
        NoTimes: This runtime does not tell, or not of this model.
    """
    library = find_library(package, version)
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        records = []
        for number, (name, array) in enumerate(inputs):
            place = os.path.join(scratch, f"input_{number}")
            with open(place, "wb") as stream:
                stream.write(np.ascontiguousarray(array).tobytes())
            records.append({"name": name, "path": place})
        question, answer = os.path.join(scratch, "question.json"), os.path.join(scratch, "answer.json")
        asked = {"library": library, "model": path, "num_threads": num_threads, "count": count, "inputs": records}
        with open(question, "w", encoding="utf-8") as stream:
            json.dump(asked, stream)
        _ask(question, answer)
        with open(answer, encoding="utf-8") as stream:
            return parse_events(json.load(stream)["inferences"])


def find_library(package: str, version: str) -> str:
    """The path of LiteRT's library with the C API.

    Raises:
        NoTimes: The package has none, or one that is not known here.
    """
    if package != "ai-edge-litert":
        raise NoTimes(f"{package} {version} has no profiler that a program can ask, ai-edge-litert 2.3 has one")
    if ".".join(version.split(".")[:2]) not in KNOWN_VERSIONS:
        raise NoTimes(
            f"the profiler of ai-edge-litert is asked by its C API, which is known here of "
            f"{', '.join(KNOWN_VERSIONS)}, and not of {version}"
        )
    spec = importlib.util.find_spec("ai_edge_litert")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        library = os.path.join(folder, "libLiteRt.so")
        if os.path.isfile(library):
            return library
    raise NoTimes(f"{package} {version} comes without libLiteRt.so, whose profiler tells the times")


def _ask(question: str, answer: str) -> None:
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "litert_profiler.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", program, question, answer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NoTimes(f"LiteRT's profiler gave no answer within {_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise NoTimes(f"LiteRT's profiler can't be started: {error}") from error
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
        ending = f"status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        raise NoTimes(f"LiteRT's profiler ended with {ending}: {''.join(said)[-_TAIL_CHARACTERS:]}")


def parse_events(inferences: Sequence[Mapping[str, Any]]) -> LayerTimes:
    """The layers, from what `litert_profiler` answers.

    Raises:
        NoTimes: The inferences do not tell of the same layers, or of none.
    """
    runs = [[event for event in each["events"] if event[0] in (_BUILT_IN, _IN_DELEGATE)] for each in inferences]
    if not runs or not runs[0]:
        raise NoTimes("LiteRT's profiler tells of no layers")
    if any([event[:3] for event in run] != [event[:3] for event in runs[0]] for run in runs):
        raise NoTimes("LiteRT's profiler tells of other layers at each inference")
    kernels: List[Dict[str, Any]] = []
    piece, last = 0, -1
    for number, (kind, tag, index, _) in enumerate(runs[0]):
        ms = statistics.median(run[number][3] for run in runs) / 1000
        if kind == _BUILT_IN:
            last = -1
            kernels.append({"name": f"{tag} {index}", "operation": tag, "where": "built-in kernel", "ms": ms})
            continue
        if last < 0 or index <= last:
            piece += 1
        last = index
        name = f"{tag}, number {index} of piece {piece}"
        kernels.append({"name": name, "operation": tag.split(" (")[0], "where": "XNNPACK", "ms": ms})
    return LayerTimes(
        kernels,
        statistics.median(each["ms"] for each in inferences),
        piece,
        sorted(kernel["operation"] for kernel in kernels if kernel["where"] != "XNNPACK"),
    )

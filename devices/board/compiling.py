"""Compiling on the board: what a runtime does at every start is done once, and its result becomes a file."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from .errors import AgentError, ModelRejected
from .runners.contract import InputShapes
from .runners.litert_cached import CACHE_SUFFIX, LiteRtCachedRunner
from .runners.onnxruntime import import_onnxruntime, session_options
from .runners.openvino import OpenVinoRunner

LEVELS = ("extended", "all")
"""Of ONNX Runtime's optimizations: those that suit every processor, and all, of which some suit this one alone."""


class Compiled(NamedTuple):
    """What a compiler made: names of files in the directory it was given, and the runtime that made them."""

    files: List[str]
    package: str
    version: str


def compile_model(
    form: str,
    path: str,
    out_dir: str,
    *,
    num_threads: int = 1,
    input_shapes: Optional[InputShapes] = None,
    level: str = "all",
) -> Dict[str, Any]:
    """Compiles a model for the processor and the runtime of this board.

    Args:
        form: A key of `COMPILERS`.
        path: The model file.
        out_dir: An existing directory for the result.
        num_threads: Of one inference.
        input_shapes: See `Runner.load`.
        level: Of `LEVELS`; for ONNX Runtime.

    Returns:
        `files` (paths; the one to load in front), `package`, `version`, `seconds`.

    Raises:
        AgentError: There is no such form or level.
        RuntimeMissing: The runtime is not installed.
        ModelRejected: The runtime refuses the model.
    """
    if form not in COMPILERS or level not in LEVELS:
        known = ", ".join(COMPILERS)
        raise AgentError(f"no form '{form}' at the level '{level}'; forms: {known}; levels: {', '.join(LEVELS)}")
    started = time.perf_counter()
    try:
        made = COMPILERS[form](path, out_dir, num_threads, input_shapes, level)
    except (AgentError, OSError):
        raise
    except Exception as error:
        raise ModelRejected(f"{path} can't be compiled to {form}: {error}") from error
    return {
        "files": [os.path.join(out_dir, name) for name in made.files],
        "package": made.package,
        "version": made.version,
        "seconds": time.perf_counter() - started,
    }


def _xnnpack_cache(
    path: str, out_dir: str, num_threads: int, input_shapes: Optional[InputShapes], _level: str
) -> Compiled:
    """The weights as XNNPACK packs them for this processor, beside a copy of the model: the one needs the other."""
    cache = "model" + CACHE_SUFFIX
    shutil.copyfile(path, os.path.join(out_dir, "model.tflite"))
    runner = LiteRtCachedRunner()
    runner.load(os.path.join(out_dir, cache), num_threads=num_threads, input_shapes=input_shapes, write=True)
    described = runner.describe()
    return Compiled([cache, "model.tflite"], described["package"], described["version"])


def _ort(
    path: str,
    out_dir: str,
    num_threads: int,
    input_shapes: Optional[InputShapes],  # noqa: ARG001 (free dimensions stay free)
    level: str,
) -> Compiled:
    """The graph after ONNX Runtime's optimizations, in the format that it loads without parsing."""
    onnxruntime = import_onnxruntime()
    options = session_options(num_threads)
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if level == "all" else levels.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.path.join(out_dir, "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Compiled(["model.ort"], "onnxruntime", onnxruntime.__version__)


def _openvino_blob(
    path: str, out_dir: str, num_threads: int, input_shapes: Optional[InputShapes], _level: str
) -> Compiled:
    """The model as the CPU plugin has prepared it."""
    runner = OpenVinoRunner()
    runner.load(path, num_threads=num_threads, input_shapes=input_shapes)
    with open(os.path.join(out_dir, "model.blob"), "wb") as stream:
        stream.write(runner.export())
    return Compiled(["model.blob"], "openvino", runner.describe()["version"])


def _fake(path: str, out_dir: str, _threads: int, _shapes: Optional[InputShapes], _level: str) -> Compiled:
    """The same file again: the fake runtime has nothing to prepare."""
    shutil.copyfile(path, os.path.join(out_dir, "compiled.fake"))
    return Compiled(["compiled.fake"], "fake", "1")


COMPILERS: Dict[str, Callable[[str, str, int, Optional[InputShapes], str], Compiled]] = {
    "xnnpack_cache": _xnnpack_cache,
    "ort": _ort,
    "openvino_blob": _openvino_blob,
    "fake": _fake,
}
"""By the form of the result."""

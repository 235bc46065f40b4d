"""Takes a model of one's own into the pipeline: checks it and writes the form that targets convert from."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import EdgeshipError, ModelFileError
from pipeline.imports import TITLES, ModelDescription, format_of, import_with_parameters, model_files, model_fingerprint
from pipeline.signature import SIGNATURE_FILE, Signature
from pipeline.stages.base import Stage, Tell
from pipeline.targets import inspect_model

_FROM_OUTSIDE = ("SIGTERM", "SIGINT", "SIGHUP")
_CPU_LIMIT_SIGNAL = "SIGPROF"
_CPU_S_PER_MB = 2.0


class ImportStage(Stage):
    """Reads no artifact; writes the model and its signature.

    The key goes by the content of the model, neither by its path nor by the limit.

    Attributes:
        path: The model's file, or the directory of a SavedModel.
        description: What the recipe says about it.
        backend: Of Keras, whose models become SavedModels.
        cpu_limit_s: Processor time, over all threads, after which the reading of a model is given up, beside 2 s
            for each MB of it. A damaged file can keep a native parser busy for ever (HDF5 does that), while
            NASNetMobile, with its 1,300 layers, takes 15 s.
    """

    stage: ClassVar[str] = "model"
    tools: ClassVar[tuple[str, ...]] = ("ai-edge-litert", "keras", "onnx", "onnxruntime", "openvino", "tensorflow")

    path: str
    description: ModelDescription = ModelDescription()
    backend: Literal["tensorflow"] = "tensorflow"
    cpu_limit_s: float = Field(default=180.0, gt=0)

    def key_config(self) -> dict[str, Any]:
        """All but the path and the limit."""
        return self.model_dump(mode="json", exclude={"path", "cpu_limit_s"})

    def fingerprint(self) -> str:
        """The digest of the model's files.

        Raises:
            InputError: There is no such model, or it can't be read.
            ModelFileError: It is not what its name says.
        """
        return model_fingerprint(Path(self.path))

    def crash_error(self, end: str, last_words: str) -> EdgeshipError | None:
        """A native parser that crashes was given a file that it can't take; an end by a user's signal is none."""
        if any(name in end for name in _FROM_OUTSIDE):
            return None
        title = TITLES[format_of(Path(self.path))]
        if _CPU_LIMIT_SIGNAL in end:
            return ModelFileError(
                f"{self.path} keeps the parser of its format busy without end (it was stopped after "
                f"{self._limit_s():.0f} s of processor time): it is damaged or not {title}. Expected the whole of "
                f"{title}; copy or export it again.",
                details=last_words,
            )
        return ModelFileError(
            f"{self.path} crashes the parser of its format: it is damaged or not {title} (the process that read it "
            f"{end}). Expected the whole of {title}; copy or export it again.",
            details=last_words,
        )

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:  # noqa: ARG002
        """Imports and measures.

        Raises:
            InputError: As of `pipeline.imports.import_model`.
        """
        path = Path(self.path)
        kind = format_of(path)
        tell({"message": f"reading {path.name}, {TITLES[kind]}"})
        with _cpu_limit(self._limit_s()):
            imported = import_with_parameters(path, out_dir, self.description)
        return {
            "format": kind,
            "signature": imported.signature.model_dump(mode="json"),
            "parameters": imported.parameters,
            **_measured(out_dir, imported.signature),
        }

    def _limit_s(self) -> float:
        size_bytes = sum(file.stat().st_size for file in model_files(Path(self.path)))
        return self.cpu_limit_s + _CPU_S_PER_MB * size_bytes / 1e6


@contextlib.contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """Ends this process by SIGPROF once it has used so much processor time, even in the midst of native code."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _measured(directory: Path, signature: Signature) -> dict[str, Any]:
    """Returns the size of the normalized model, and of a model file its precision and its operations."""
    files = [file for file in directory.rglob("*") if file.is_file() and file.name != SIGNATURE_FILE]
    model, operations, precision = directory / signature.model, None, None
    if model.is_file():
        # The runtime took it, so a graph that can't be listed is no reason to refuse it.
        with contextlib.suppress(ModelFileError):
            summary = inspect_model(model)
            operations, precision = summary.operations, summary.precision
    return {
        "size_bytes": sum(file.stat().st_size for file in files),
        "precision": precision,
        "operations": operations,
        "num_operations": None if operations is None else sum(operations.values()),
    }

"""Runs stages, each in the process it needs."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devices.errors import DeviceError
from devices.peer import JsonLinesProcess, PeerDiedError, PeerReplyError, PeerStartError, describe_end
from pipeline.errors import ERRORS, EdgeshipError, StageCrashError, StageError
from pipeline.keys import canonical_json
from pipeline.stages.base import Stage, Tell
from pipeline.store_errors import store_trouble

_TAIL_LINES = 15


class StageExecutor:
    """Runs stages here or in a child process; one child serves all stages that follow each other with one backend.

    Use it as a context manager: its child ends with it.

    Args:
        tell: Takes the progress events of the stages.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._child: JsonLinesProcess | None = None
        self._child_for: tuple[str, str] | None = None

    def run(self, stage: Stage, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
        """Runs a stage and returns its metrics.

        Raises:
            EdgeshipError: As the stage raised it.
            StageCrashError: The stage's process ended without an answer.
            StageError: The stage raised something that is no error of ours, or its metrics are no JSON values.
        """
        run = self._run_in_child if stage.runs_in_child else self._run_here
        metrics = run(stage, inputs, out_dir)
        try:
            canonical_json(metrics)
        except (TypeError, ValueError) as error:
            raise StageError(
                f"Stage {_title(stage)} measured a value that can't be recorded: {error}. Expected finite numbers: "
                f"a diverged training, for one, gives others."
            ) from error
        return metrics

    def _run_in_child(self, stage: Stage, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
        child = self._child_of(stage)
        try:
            result = child.request(
                "run",
                {
                    "module": type(stage).__module__,
                    "stage_class": type(stage).__qualname__,
                    "config": stage.model_dump(mode="json"),
                    "inputs": {role: str(path) for role, path in inputs.items()},
                    "out_dir": str(out_dir),
                },
                on_event=self._tell,
            )
        except PeerReplyError as error:
            raise _as_own_error(stage, error) from error
        except PeerDiedError as error:
            self.close()
            end = describe_end(error.returncode)
            meant = stage.crash_error(end, error.stderr_tail)
            if meant is not None:
                raise meant from error
            raise StageCrashError(
                f"The process of stage {_title(stage)} {end} before it answered. "
                f"Nothing of it was published; what was done before is kept, so run the same command again. "
                f"Last words:\n{_tail(error.stderr_tail)}",
                details=error.stderr_tail,
            ) from error
        return dict(result)

    def close(self) -> None:
        """Ends the child process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_here(self, stage: Stage, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
        try:
            return stage.run(inputs, out_dir, self._tell)
        except (EdgeshipError, DeviceError, BrokenPipeError):
            raise
        except Exception as error:
            trouble = store_trouble(error, out_dir)
            if trouble is not None:
                raise trouble from error
            trace = "".join(traceback.format_exception(error))
            raise _foreign_error(stage, type(error).__name__, str(error), trace) from error

    def _child_of(self, stage: Stage) -> JsonLinesProcess:
        backend = str(getattr(stage, "backend", "tensorflow"))
        wanted = (stage.stage, backend)
        if self._child is None or self._child_for != wanted:
            self.close()
            try:
                self._child = JsonLinesProcess(
                    # -P: what lies in the working directory never stands in for a module of ours or of Python.
                    [sys.executable, "-P", "-m", "pipeline.child"],
                    env=child_environment(backend),
                    name=f"The process of stage {stage.stage}",
                )
            except PeerStartError as error:
                raise StageError(error.message) from error
            self._child_for = wanted
        return self._child


def child_environment(backend: str) -> dict[str, str]:
    """Returns the environment of a stage's process: the Keras backend, determinism, quiet native libraries."""
    return {
        **os.environ,
        # Read by the telemetry of OpenVINO's converter, NNCF and ONNX Runtime, which otherwise calls out without asking
        # and leaves files in the home directory.
        "CI": "true",
        "NNCF_CI": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "KERAS_BACKEND": backend,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(path for path in (_package_root(), os.environ.get("PYTHONPATH", "")) if path),
        "PYTHONWARNINGS": "ignore",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Read by TensorFlow's kernels, so that two runs on a CPU give the same weights to the bit.
        "TF_DETERMINISTIC_OPS": "1",
        # Operations that run beside each other share threads in an order of the moment, and then their sums differ.
        "TF_NUM_INTEROP_THREADS": "1",
    }


def _package_root() -> str:
    return str(Path(__file__).resolve().parents[1])


def _title(stage: Stage) -> str:
    target, precision = getattr(stage, "target", None), getattr(stage, "precision", None)
    return f"{stage.stage} ({target} {precision})" if target and precision else stage.stage


def _as_own_error(stage: Stage, error: PeerReplyError) -> EdgeshipError:
    own = ERRORS.get(error.kind)
    if own is not None:
        return own(error.message, details=error.details)
    return _foreign_error(stage, error.kind, error.message, error.details)


def _foreign_error(stage: Stage, kind: str, message: str, details: str) -> StageError:
    return StageError(
        f"Stage {_title(stage)} failed with {kind}: {_shortened(message)} "
        f"This is not an error of your input; --debug shows the traceback.",
        details=details,
    )


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line[:300]}" for line in lines[-_TAIL_LINES:]) or "    (nothing)"


def _shortened(message: str) -> str:
    first = json.dumps(message.strip())[1:-1] if "\x1b" in message else message.strip()
    return first if len(first) <= 600 else first[:600] + "…"

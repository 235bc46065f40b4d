from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.errors import AgentCrashedError
from pipeline.errors import (
    CorruptArtifactError,
    DataError,
    EdgeshipError,
    GateError,
    InputError,
    ModelFileError,
    RecipeError,
    StageCrashError,
    StageError,
    StoreError,
)
from pipeline.executor import StageExecutor, child_environment
from pipeline.stages.base import Stage, Tell

STAGES = """
import ctypes, errno, os, signal, sys, time
from typing import ClassVar

import pipeline.errors
from pipeline.stages.base import Stage


class First(Stage):
    stage: ClassVar[str] = "first"
    how: str = "ok"
    backend: str = "tensorflow"
    target: str = "litert"
    precision: str = "int8"

    def run(self, inputs, out_dir, tell):
        tell({"message": f"at work: {self.how}"})
        print("chatter", flush=True)
        if self.how == "ok":
            (out_dir / "made").write_text("by the child")
            read = {role: str(path) for role, path in inputs.items()}
            return {"pid": os.getpid(), "backend": os.environ["KERAS_BACKEND"], "inputs": read}
        print("the last words", file=sys.stderr, flush=True)
        if self.how == "segv":
            ctypes.string_at(0)
        if self.how == "exit":
            os._exit(7)
        if self.how == "sys-exit":
            sys.exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "sleep":
            time.sleep(60)
        if self.how == "foreign":
            raise ArithmeticError("nobody's fault " * 100)
        if self.how == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(out_dir / "x"))
        if self.how == "native-full":
            raise RuntimeError("HDF5 write failed: errno = 28, error message = 'No space left on device'")
        if self.how == "really-full":
            with open("/dev/full", "w") as stream:
                stream.write("x" * 100_000)
        if self.how == "missing":
            open(out_dir / "nothing")
        if self.how == "nan":
            return {"loss": float("nan")}
        raise getattr(pipeline.errors, self.how)("in the child's words", details="more of them")


class Second(First):
    stage: ClassVar[str] = "second"
"""


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that both this process and the child can import."""
    name = "stages_of_the_executor_test"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(STAGES)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    yield importlib.import_module(name)
    del sys.modules[name]


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def executor(events: list[dict[str, Any]]) -> Iterator[StageExecutor]:
    with StageExecutor(events.append) as opened:
        yield opened


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_child_runs_the_stage_and_tells_its_progress(
    stages: Any, executor: StageExecutor, events: list[dict[str, Any]], tmp_path: Path
) -> None:
    metrics = executor.run(stages.First(), {"data": tmp_path / "in"}, tmp_path)

    assert metrics["pid"] != os.getpid()
    assert metrics["inputs"] == {"data": str(tmp_path / "in")}
    assert (tmp_path / "made").read_text() == "by the child"
    assert events == [{"message": "at work: ok"}]


def test_one_child_serves_a_stage_and_another_stage_or_backend_gets_its_own(
    stages: Any, executor: StageExecutor, tmp_path: Path
) -> None:
    first, again = (executor.run(stages.First(), {}, tmp_path) for _ in range(2))
    assert first["pid"] == again["pid"]
    assert first["backend"] == "tensorflow"

    other_backend = executor.run(stages.First(backend="jax"), {}, tmp_path)
    assert other_backend["backend"] == "jax"
    other_stage = executor.run(stages.Second(backend="jax"), {}, tmp_path)

    assert len({each["pid"] for each in (first, other_backend, other_stage)}) == 3
    assert not is_alive(first["pid"])
    assert not is_alive(other_backend["pid"])
    executor.close()
    assert not is_alive(other_stage["pid"])
    executor.close()


@dataclass(frozen=True)
class Crash:
    how: str
    says: str


@pytest.mark.parametrize(
    "crash",
    [
        Crash("segv", "was ended by SIGSEGV"),
        Crash("exit", "exited with status 7"),
        Crash("sys-exit", "exited with status 3"),
        Crash("kill", "was ended by SIGKILL (the kernel does this when memory runs out)"),
    ],
    ids=lambda crash: crash.how,
)
def test_a_crash_is_named_with_the_last_words_and_loses_only_the_stage_at_work(
    stages: Any, executor: StageExecutor, tmp_path: Path, crash: Crash
) -> None:
    before = executor.run(stages.First(), {}, tmp_path)

    with pytest.raises(StageCrashError) as caught:
        executor.run(stages.First(how=crash.how), {}, tmp_path)

    assert caught.value.exit_code == 4
    assert f"The process of stage first (litert int8) {crash.says} before it answered" in caught.value.message
    assert "the last words" in caught.value.message
    assert "run the same command again" in caught.value.message
    after = executor.run(stages.First(), {}, tmp_path)
    assert after["pid"] != before["pid"]
    assert not is_alive(before["pid"])


def test_a_child_killed_from_outside_is_a_crash(
    stages: Any, executor: StageExecutor, events: list[dict[str, Any]], tmp_path: Path
) -> None:
    pid = executor.run(stages.First(), {}, tmp_path)["pid"]

    def kill_at_work() -> None:
        while len(events) < 2:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    with pytest.raises(StageCrashError, match="was ended by SIGKILL"):
        executor.run(stages.First(how="sleep"), {}, tmp_path)
    killer.join()


@pytest.mark.parametrize(
    "kind",
    [
        EdgeshipError,
        InputError,
        RecipeError,
        DataError,
        ModelFileError,
        StoreError,
        CorruptArtifactError,
        GateError,
        StageError,
        StageCrashError,
    ],
)
def test_own_errors_keep_type_message_and_exit_code(
    stages: Any, executor: StageExecutor, tmp_path: Path, kind: type[EdgeshipError]
) -> None:
    with pytest.raises(EdgeshipError) as caught:
        executor.run(stages.First(how=kind.__name__), {}, tmp_path)

    assert type(caught.value) is kind
    assert caught.value.message == "in the child's words"
    assert caught.value.exit_code == kind.exit_code
    assert "more of them" in caught.value.details
    assert "Traceback" in caught.value.details


def test_foreign_errors_become_stage_errors_without_a_traceback(
    stages: Any, executor: StageExecutor, tmp_path: Path
) -> None:
    with pytest.raises(StageError) as caught:
        executor.run(stages.First(how="foreign"), {}, tmp_path)

    assert type(caught.value) is StageError
    assert caught.value.message.startswith("Stage first (litert int8) failed with ArithmeticError: nobody's fault")
    assert "--debug shows the traceback" in caught.value.message
    assert len(caught.value.message) < 800
    assert "Traceback" not in caught.value.message
    assert "Traceback" in caught.value.details


@pytest.mark.parametrize("how", ["full", "native-full", "really-full"])
def test_a_full_disk_in_the_child_is_the_stores_error(
    stages: Any, executor: StageExecutor, tmp_path: Path, how: str
) -> None:
    with pytest.raises(StoreError, match="No space left on the device") as caught:
        executor.run(stages.First(how=how), {}, tmp_path)

    assert caught.value.exit_code == 2


def test_another_error_of_the_operating_system_is_not_the_stores(
    stages: Any, executor: StageExecutor, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="failed with FileNotFoundError"):
        executor.run(stages.First(how="missing"), {}, tmp_path)


def test_values_that_are_no_numbers_are_refused(stages: Any, executor: StageExecutor, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="measured a value that can't be recorded"):
        executor.run(stages.First(how="nan"), {}, tmp_path)


class HereStage(Stage):
    """Runs in this process; `does` is called."""

    stage = "here"
    runs_in_child = False

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        del inputs, tell
        return DOES[0](out_dir)


DOES: list[Callable[[Path], dict[str, Any]]] = []


def raising(error: BaseException) -> Callable[[Path], dict[str, Any]]:
    def does(_: Path) -> dict[str, Any]:
        raise error

    return does


@dataclass(frozen=True)
class Here:
    id: str
    error: BaseException
    kind: type[BaseException]
    says: str


@pytest.mark.parametrize(
    "here",
    [
        Here("own", DataError("ours"), DataError, "^ours$"),
        Here("device", AgentCrashedError("gone"), AgentCrashedError, "^gone$"),
        Here("foreign", LookupError("odd"), StageError, "Stage here failed with LookupError: odd"),
        Here("missing-file", FileNotFoundError(2, "no", "/x"), StageError, "failed with FileNotFoundError"),
        Here("full", OSError(28, "No space left on device"), StoreError, "No space left on the device"),
        Here("reader-left", BrokenPipeError(), BrokenPipeError, "^$"),
        Here("interrupt", KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
    ids=lambda here: here.id,
)
def test_errors_of_a_stage_in_this_process(
    executor: StageExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Here
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "DOES", [raising(here.error)])

    with pytest.raises(here.kind, match=here.says) as caught:
        executor.run(HereStage(), {}, tmp_path)

    assert type(caught.value) is here.kind


def test_metrics_of_another_library_are_refused(
    executor: StageExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "DOES", [lambda _: {"accuracy": np.float32(0.5)}])

    with pytest.raises(StageError, match="can't be recorded"):
        executor.run(HereStage(), {}, tmp_path)


def test_nothing_in_the_working_directory_stands_in_for_a_module(
    stages: Any, executor: StageExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cwd"
    place.mkdir()
    for name in ("pipeline", "devices", "json", "errno"):
        (place / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(place)

    assert executor.run(stages.First(), {}, tmp_path)["pid"]


def test_a_child_that_cannot_be_started_is_a_stage_error(
    stages: Any, executor: StageExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))

    with pytest.raises(StageError, match="could not be started"):
        executor.run(stages.First(), {}, tmp_path)


def test_the_environment_of_a_child_is_deterministic_and_keeps_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    environment = child_environment("jax")

    assert environment["KERAS_BACKEND"] == "jax"
    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["PYTHONPATH"].endswith(f"{os.pathsep}/mine")
    assert environment["PATH"] == os.environ["PATH"]

"""Boards that are directories, each installation in a process of its own, forked from one that has NumPy loaded.

Run as a program it is that process: it takes one request a line, forks for each, and says how the child ended. The
child is the real installer on a real directory, with the real self-test of the fake runtime, and the fault that the
request names. A kill is a kill -9.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from devices.board import release_check, requirement
from devices.board.errors import AgentError, RuntimeMissing
from devices.board.release_disk import Disk
from devices.board.release_errors import FailedTest, Refusal, Unfit
from devices.board.release_form import plain_form
from devices.board.release_home import status
from devices.board.release_install import Installer
from devices.board.runners import RUNNERS
from devices.board.runners.fake import FakeRunner


class FailingDisk(Disk):
    """From the nth operation on, those that need room fail, as on a full or a read-only storage."""

    def __init__(self, after: int, error: int) -> None:
        self._left, self._error = after, error

    def record(self, operation: str, *arguments: object) -> None:
        needs = {"mkdir", "create", "append", "symlink", "rename"}
        needs |= {"unlink", "rmdir"} if self._error == errno.EROFS else set()
        self._left -= 1
        if self._left < 0 and operation in needs:
            raise OSError(self._error, os.strerror(self._error), str(arguments[0]))


class PowerCutDisk(Disk):
    """Before the nth operation the power is cut: files that were not synced lose their content, and all ends."""

    def __init__(self, after: int) -> None:
        self._left = after
        self._unsynced: dict[str, None] = {}

    def record(self, operation: str, *arguments: object) -> None:
        if self._left == 0:
            for path in self._unsynced:
                os.truncate(path, 0)
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        if operation == "create":
            self._unsynced[str(arguments[0])] = None
        elif operation == "sync":
            self._unsynced.pop(str(arguments[0]), None)


class OtherAnswers(FakeRunner):
    """A runtime that computes something else."""

    def infer(self, inputs: Any) -> Any:
        return [output + 1000 for output in super().infer(inputs)]


class Slow(FakeRunner):
    """A runtime that takes its time."""

    def infer(self, inputs: Any) -> Any:
        time.sleep(0.12)
        return super().infer(inputs)


def no_runtime() -> FakeRunner:
    raise RuntimeMissing("the runtime 'fake' is not installed on this board")


def run_self_test(directory: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The board's self-test, in this process, which has what it needs loaded."""
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        try:
            form = plain_form(directory, manifest)
            return release_check.check_release(directory, manifest, f"{scratch}/outputs", form)
        except RuntimeMissing as error:
            raise Unfit(str(error)) from error
        except (AgentError, OSError, ValueError, LookupError) as error:
            raise FailedTest(f"the self-test failed: {error}") from error


def prepare(fault: Mapping[str, Any], emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Breaks this process as the fault says; returns options of `Installer`."""
    kind = fault.get("kind", "")

    def on_step(step: str) -> None:
        emit({"step": step})
        if kind == "killed" and step == fault["step"]:
            os.kill(os.getpid(), signal.SIGKILL)

    options: dict[str, Any] = {"self_test": run_self_test, "on_step": on_step}
    if kind in ("disk full", "read-only"):
        options["disk"] = FailingDisk(fault["after"], errno.ENOSPC if kind == "disk full" else errno.EROFS)
    elif kind == "power cut":
        options["disk"] = PowerCutDisk(fault["after"])
    elif kind == "wrong architecture":
        requirement.platform.machine = lambda: "riscv64"  # type: ignore[attr-defined]
    elif kind == "runtime missing":
        RUNNERS["fake"] = no_runtime  # type: ignore[assignment]
    elif kind == "golden mismatch":
        RUNNERS["fake"] = OtherAnswers
    elif kind == "too slow":
        RUNNERS["fake"], release_check.NUM_LATENCIES = Slow, 10
    return options


def answer(request: Mapping[str, Any], emit: Callable[[dict[str, Any]], None]) -> None:
    """What the board's agent does with a request."""
    if request["method"] == "status":
        emit({"answer": status(request["root"])})
        return
    options = prepare(request.get("fault") or {}, emit)
    try:
        emit({"answer": Installer(request["root"], who="tester", **options).install(request["bundle"])})
    except Refusal as error:
        emit({"answer": {"refused": str(error), "kind": error.kind, "step": error.step}})


def emit_line(values: dict[str, Any]) -> None:
    os.write(1, json.dumps(values).encode() + b"\n")


def main() -> None:
    for name in ("numpy.ma", "numpy.random", "encodings.cp437"):  # what each child would import anew
        importlib.import_module(name)
    gc.freeze()  # a child that collects would copy every page
    while line := sys.stdin.buffer.readline():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                emit_line({"pid": os.getpid()})
                answer(json.loads(line), emit_line)
                code = 0
            except BaseException as error:  # noqa: BLE001 (it must not go on as the parent)
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)
        emit_line({"ended": os.waitpid(pid, 0)[1]})


if __name__ == "__main__":
    main()

"""`kill -9` of a run at many moments: the next run goes on, with the same keys, and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import ArtifactStore
from pipeline.store_maintenance import collect

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("data", "train", "calibrate", "export", "verify", "benchmark", "select")

HERE_PROFILE = """\
name: here
description: This machine with the fake runtime.
runtimes: {fake: ""}
preference: [fake]
transport: {kind: local}
latency_label: measured
"""

# Runs the command line with one of its functions replaced: at its n-th call it says so and waits for the end.
STOPPING = """
import os, sys, time
import pipeline.artifacts, pipeline.executor, pipeline.run_directory
from pathlib import Path
from pipeline.cli import main

where, count = sys.argv[1].split(":")
count = int(count)

def stopping(function, matches):
    def stop(*args, **kwargs):
        global count
        if matches(*args):
            count -= 1
            if count == 0:
                print("HERE", file=sys.stderr, flush=True)
                time.sleep(60)
        return function(*args, **kwargs)
    return stop

if where == "fsync":
    os.fsync = stopping(os.fsync, lambda *_: True)
elif where == "publish":
    Path.rename = stopping(Path.rename, lambda path, to: "artifacts" in Path(to).parts)
elif where == "published":
    real = pipeline.artifacts.ArtifactStore._remember
    pipeline.artifacts.ArtifactStore._remember = stopping(real, lambda *_: True)
elif where == "links":
    pipeline.run_directory._link = stopping(pipeline.run_directory._link, lambda *_: True)
elif where == "report":
    pipeline.run_directory.write_durably = stopping(pipeline.run_directory.write_durably, lambda *_: True)
sys.argv[1:] = sys.argv[2:]
main()
"""

# Read by Python when it starts: in the stages' process, the work of one stage never ends.
SLOW_CHILD = """
import sys
if sys.orig_argv[-2:] == ["-m", "pipeline.child"]:
    import ctypes
    import devices.board.jsonlines as jsonlines
    real_serve = jsonlines.serve

    def serve(handlers):
        def slow(params, emit_event):
            if params["stage_class"].lower().removeprefix("fake") == "STAGEstage":
                with open(params["out_dir"] + "/half", "w") as stream:
                    stream.write("half of it")
                emit_event({"warning": "AT WORK"})
                ctypes.PyDLL(None).sleep(60)  # as native code does, it keeps the interpreter's lock
            return handlers["run"](params, emit_event)

        real_serve({"run": slow})

    jsonlines.serve = serve
"""

# The same for the agent: one of its methods never answers.
SLOW_AGENT = """
import sys
if sys.orig_argv[-2:] == ["-m", "devices.board"]:
    import pathlib, time
    import devices.board.agent as agent
    real = agent.BoardAgent.handlers

    def slow(*_):
        pathlib.Path("MARKER").touch()
        time.sleep(60)

    agent.BoardAgent.handlers = lambda self: {**real(self), "METHOD": slow}
"""


def processes_with(mark: str) -> dict[int, str]:
    """The living processes whose environment holds a mark, and their commands."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and mark.encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
    return found


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"never said {text!r}: {''.join(seen)}")


def end(process: subprocess.Popen[str], mark: str) -> None:
    """Kills the run itself, nothing else, and asserts that its children end too."""
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert wait_until(lambda: not processes_with(mark)), processes_with(mark)


def keys(report: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["key"] for stage in report["stages"]}


def assert_recovers(place: Any, expected: dict[str, str]) -> dict[str, Any]:
    """The next run ends well with the same keys, and cleaning leaves what it uses and nothing else."""
    outcome = place.edgeship("run", "tiny.yaml", "--json")
    assert outcome.code == 0, outcome.stderr
    report: dict[str, Any] = outcome.json()
    assert keys(report) == expected
    collect(ArtifactStore(place.store), older_than_s=0, dry_run=False)
    assert sorted(path.name for path in place.artifacts()) == sorted(expected.values())
    assert list((place.store / "work").iterdir()) == []
    assert not list((place.store / "quarantine").glob("*"))
    assert {path.suffix for path in (place.store / "roots").iterdir()} == {".json"}
    assert sorted(path.suffix for path in (place.store / "checked").iterdir()) == [".json"] * len(expected)
    assert not [path for path in place.runs.rglob("*") if path.name.startswith(".") or not path.exists()]
    return report


@pytest.fixture
def mark() -> str:
    return f"EDGESHIP_TEST_MARK_{uuid.uuid4().hex}"


@pytest.fixture
def expected(_finished_directory: Path) -> dict[str, str]:
    return keys(json.loads((_finished_directory / "runs/tiny/report.json").read_text()))


def forget_from(place: Any, stage: str) -> None:
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(place.store / "artifacts" / name)
    shutil.rmtree(place.runs)


def add_hook(place: Any, code: str) -> None:
    (place.directory / "hooks").mkdir()
    (place.directory / "hooks" / "sitecustomize.py").write_text(code)


def hooked(place: Any, mark: str) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(place.directory / "hooks")]), mark: "1"}


def start_slow(place: Any, stage: str, mark: str) -> subprocess.Popen[str]:
    """Starts a run whose child hangs in a stage."""
    add_hook(place, SLOW_CHILD.replace("STAGE", stage))
    process: subprocess.Popen[str] = place.start(place.command("run", "tiny.yaml"), env=hooked(place, mark))
    read_until(process, "AT WORK")
    return process


@pytest.mark.slow  # each takes seven seconds, all of them most of a minute
@pytest.mark.parametrize("stage", ["data", "train", "export"])
def test_the_run_is_killed_while_its_child_is_at_work(
    finished: Any, expected: dict[str, str], mark: str, stage: str
) -> None:
    forget_from(finished, stage)
    process = start_slow(finished, stage, mark)
    assert any("pipeline.child" in command for command in processes_with(mark).values())
    assert list((finished.store / "work").glob("*/half"))

    end(process, mark)

    report = assert_recovers(finished, expected)
    done = [record["name"] for record in report["stages"] if record["cached"]]
    assert {name.split("/")[0] for name in done} == set(STAGES[: STAGES.index(stage)])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "export"])
def test_the_child_is_killed(finished: Any, expected: dict[str, str], mark: str, stage: str) -> None:
    forget_from(finished, stage)
    process = start_slow(finished, stage, mark)
    killed = 0
    while process.poll() is None:  # each export is a child of its own once the one before is gone
        for pid, command in processes_with(mark).items():
            if "pipeline.child" in command and wait_until(lambda: bool(list(finished.store.glob("work/*/half")))):
                time.sleep(0.1)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        time.sleep(0.05)
    _, stderr = process.communicate()

    assert process.returncode == 4, stderr
    assert killed >= 1
    assert "was ended by SIGKILL" in stderr
    assert "Traceback" not in stderr
    assert not processes_with(mark)
    assert (finished.runs / "tiny" / "report.json").exists() == (stage == "export")
    shutil.rmtree(finished.directory / "hooks")
    assert_recovers(finished, expected)


@dataclass(frozen=True)
class Moment:
    stage: str
    where: str
    id: str


MOMENTS = (
    Moment("train", "fsync:1", "first-byte-of-publishing"),
    Moment("train", "fsync:2", "while-the-manifest-is-written"),
    Moment("train", "publish:1", "before-the-rename"),
    Moment("train", "published:1", "after-the-rename"),
    Moment("verify", "publish:2", "second-verification"),
    Moment("benchmark", "publish:1", "publishing-the-measurement"),
    Moment("select", "links:3", "while-the-links-are-made"),
    Moment("select", "report:2", "between-the-two-reports"),
)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.id)
def test_the_run_is_killed_while_it_publishes(
    finished: Any, expected: dict[str, str], mark: str, moment: Moment
) -> None:
    forget_from(finished, moment.stage)
    process = finished.start([sys.executable, "-c", STOPPING, moment.where, "run", "tiny.yaml"], env={mark: "1"})
    read_until(process, "HERE")

    end(process, mark)

    assert_recovers(finished, expected)


@pytest.mark.parametrize("stage", ["verify", "benchmark"])
def test_the_run_is_killed_while_an_agent_is_at_work(
    finished: Any, expected: dict[str, str], mark: str, stage: str
) -> None:
    """The agent hangs in its first prediction (verify) or measurement (benchmark on this machine)."""
    method = {"verify": "predict", "benchmark": "measure"}[stage]
    marker = finished.directory / "at-work"
    add_hook(finished, SLOW_AGENT.replace("MARKER", str(marker)).replace("METHOD", method))
    (finished.directory / "here.yaml").write_text(HERE_PROFILE)
    forget_from(finished, stage)
    device = ["--device", "./here.yaml"] if stage == "benchmark" else []
    process = finished.start(finished.command("run", "tiny.yaml", *device), env=hooked(finished, mark))
    assert wait_until(marker.exists)
    assert any("devices.board" in command for command in processes_with(mark).values())

    end(process, mark)

    assert_recovers(finished, expected)


@pytest.mark.slow
def test_an_interrupt_ends_the_run_with_a_message(finished: Any, expected: dict[str, str], mark: str) -> None:
    forget_from(finished, "train")
    process = start_slow(finished, "train", mark)

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "Interrupted. What was finished is kept; run the same command again to go on." in stderr
    assert "Traceback" not in stderr
    assert wait_until(lambda: not processes_with(mark)), processes_with(mark)
    assert_recovers(finished, expected)

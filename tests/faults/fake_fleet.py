"""A fleet of boards that are directories, some of them broken, and a deployment to it.

Run as a program it deploys, and prints how it ended and how much memory that took.
"""

from __future__ import annotations

import json
import queue
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from devices import release
from devices.board.release_install import STEPS
from devices.errors import AgentCrashedError, ConnectionFailedError, ReleaseRefusedError
from devices.fleet import FleetBoard, Plan, Share, Verdict, parse_share
from devices.fleet_boards import Deployment, came_to, verdict_of
from devices.fleet_rollout import OnStep
from devices.release import ReleaseStatus
from pipeline import fleet_deployment

ROOT = Path(__file__).parents[2]
KINDS = ("connection cut", "disk full", "read-only", "tampered", "wrong key", "wrong architecture", "runtime missing",
         "golden mismatch", "too slow", "service", "power cut")  # fmt: skip
"""What can be wrong with a board, beside an installer that is killed at one of its steps."""


def plan_faults(num_boards: int, num_failing: int) -> dict[str, dict[str, Any]]:
    """By board what is wrong with it: kills at every step, then of each kind about as many, spread over all boards.

    `times`: in how many tries; `gone`: whether the board does not come back after the first.
    """
    chosen: dict[str, dict[str, Any]] = {}
    spread = num_boards // num_failing
    for index in range(num_failing):
        round_, number = divmod(index - len(STEPS), len(KINDS))
        fault: dict[str, Any] = {"kind": KINDS[number], "times": 99 if round_ % 2 == 0 else 1}
        if index < len(STEPS):
            fault = {"kind": "killed", "step": STEPS[index], "times": 99 if index % 3 else 1}
        elif fault["kind"] == "connection cut":
            fault["step"] = STEPS[5 * round_ % len(STEPS)]
        elif fault["kind"] in ("disk full", "read-only"):
            fault["after"] = 4 * round_
        elif fault["kind"] == "power cut":
            fault |= {"after": 3 + 5 * round_, "times": 1, "gone": round_ % 2 == 0}
        chosen[name_of(index * num_boards // num_failing + index % spread)] = fault
    return chosen


def name_of(number: int) -> str:
    return f"board-{number:04d}"


def write_fleet(directory: Path, num_boards: int, num_groups: int = 4) -> Path:
    """Lists boards whose roots are `boards/NAME`."""
    lines = ["schema_version: 1", "name: thousand", "groups:"]
    for group in range(num_groups):
        lines += [f"  group-{group}:", "    profile: local", "    boards:"]
        lines += [
            f"      - {{name: {name_of(number)}, root: boards/{name_of(number)}}}"
            for number in range(group, num_boards, num_groups)
        ]
    path = directory / "fleet.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def make_boards(directory: Path, template: Path, num_boards: int) -> None:
    """Copies of one board that has an old release."""
    for number in range(num_boards):
        shutil.copytree(template, directory / "boards" / name_of(number), symlinks=True)


class Forker:
    """A process that forks one for each request."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fake_board"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What the forked process says, and last how it ended."""
        stdin, stdout = self._streams()
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.flush()
        for line in stdout:
            values: dict[str, Any] = json.loads(line)
            yield values
            if "ended" in values:
                return
        raise RuntimeError("the forking process ended")

    def close(self) -> None:
        for stream in self._streams():
            stream.close()
        self._process.wait()

    def _streams(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@dataclass
class FakeBoards:
    """Does on a fake board what `Deployment` does on a real one; an `Act`.

    Attributes:
        deployment: The bundle.
        faults: By board, see `plan_faults`.
        tampered: What arrives where somebody tampers.
        forkers: Those that are free.
        tries: How often each board was tried.
    """

    deployment: Deployment
    faults: dict[str, dict[str, Any]]
    tampered: Path
    forkers: queue.Queue[Forker]
    tries: Counter[str] = field(default_factory=Counter)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, board: FleetBoard, *, ask: bool, on_step: OnStep) -> Verdict:
        with self.mutex:
            self.tries[board.name] += 1
            number = self.tries[board.name]
        fault = self.faults.get(board.name, {})
        forker = self.forkers.get()
        steps: list[str] = []
        try:
            return self._try(forker, board, fault if number <= fault.get("times", 0) else {}, ask, steps, on_step)
        except (AgentCrashedError, ConnectionFailedError, ReleaseRefusedError) as error:
            return verdict_of(board, error, steps[-1] if steps else "", switched="switch" in steps)
        except tuple(release._ERRORS.values()) as error:
            return verdict_of(board, error, steps[-1] if steps else "", switched="switch" in steps)
        finally:
            self.forkers.put(forker)

    def _try(
        self, forker: Forker, board: FleetBoard, fault: dict[str, Any], ask: bool, steps: list[str], on_step: OnStep
    ) -> Verdict:
        if self.faults.get(board.name, {}).get("gone") and self.tries[board.name] > 1:
            raise ConnectionFailedError("no route to host")
        root = str(board.root)
        if ask:
            *_, told, _ = forker.ask({"method": "status", "root": root})
            row = next((ReleaseStatus(**each) for each in told["answer"] if each["name"] == "net"), None)
            known = came_to(row, self.deployment.digest)
            if known is not None:
                return known
        bundle = self.tampered if fault.get("kind") == "tampered" else self.deployment.bundle
        request = {"method": "install", "root": root, "bundle": str(bundle.absolute()), "fault": fault}
        found: dict[str, Any] | None = None
        lost, pid = False, 0
        for values in forker.ask(request):
            pid = values.get("pid", pid)
            found = values.get("answer", found)
            if "step" in values:
                steps.append(values["step"])
                on_step(values["step"])
                if fault.get("kind") == "connection cut" and values["step"] == fault["step"]:
                    lost = True
                    subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
        if lost or (found is None and fault.get("kind") == "power cut"):
            raise ConnectionFailedError(f"the connection to {board.name} broke")
        if found is None:
            raise AgentCrashedError(f"the agent of device '{board.name}' was ended by SIGKILL")
        if "refused" in found:
            error = release._ERRORS.get(found["kind"], ReleaseRefusedError)(found["refused"])
            error.step = found["step"]
            raise error
        return Verdict("updated" if found["changed"] or ask else "already in use")


@contextmanager
def forkers(number: int) -> Iterator[queue.Queue[Forker]]:
    free: queue.Queue[Forker] = queue.Queue()
    made = [Forker() for _ in range(number)]
    for forker in made:
        free.put(forker)
    yield free
    for forker in made:
        forker.close()


def memory_kib(name: str) -> int:
    """Memory of this process by its name in Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Deploys `new.edgeship` to the fleet of a directory; the second argument is `auto`, `resume` or `restart`."""
    directory, go_on, limit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    plan = Plan(
        canary=Share(20, percent=False),
        max_failures=parse_share(limit, by="limit"),
        attempts=3,
        retry_off_s=0.0,
    )
    faults = json.loads((directory / "faults.json").read_text())
    fleet, boards = fleet_deployment.load(directory / "fleet.yaml", directory / "unused", ())
    asked: Any = fleet_deployment.Asked(directory / "new.edgeship", directory / "runs", go_on)  # type: ignore[arg-type]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = memory_kib("VmRSS")
    began = time.monotonic()
    with forkers(plan.parallel) as free:

        def make_act(deployment: Deployment) -> FakeBoards:
            return FakeBoards(deployment, faults, directory / "tampered.edgeship", free)

        report = fleet_deployment.deploy_to_fleet(asked, fleet, boards, plan, make_act=make_act)
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    told = {
        "report": report,
        "seconds": time.monotonic() - began,
        "cpu_seconds": own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime,
        "before_kib": before,
        "peak_kib": memory_kib("VmHWM"),
    }
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()

"""The self-test of a release: its golden samples through the board's own runtime, and how long an inference takes.

It runs in a process of its own, because a runtime that crashes on a file must not take the installer along.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from .agent import BoardAgent
from .errors import AgentError, RuntimeMissing
from .jsonlines import LIFELINE_VARIABLE, Lifeline
from .release_errors import FailedTest, Refusal, Unfit

TIMEOUT_S = 900.0
NUM_LATENCIES = 400
"""Enough for a 99th percentile, see `devices.latency`."""
MEASURE_S = 10.0

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
)


def run_self_test(directory: str, manifest: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> Dict[str, Any]:
    """Tests a release in a process of its own, which ends with this one.

    Returns:
        `worst` (largest difference from a golden value, as a share of the golden values' range), `latency_p50_ms`,
        `latency_p99_ms` and `num_latencies`.

    Raises:
        FailedTest: The release answers differently, crashes, or takes too long.
        Unfit: Its runtime is missing.
    """
    ours, theirs = os.pipe()  # the reading end is the child's; the writing end closes with this process
    try:
        with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
            return _run(directory, manifest, scratch, ours, timeout_s)
    finally:
        os.close(ours)
        os.close(theirs)


def check_release(directory: str, manifest: Mapping[str, Any], scratch: str) -> Dict[str, Any]:
    """See `run_self_test`; in this process.

    Args:
        directory: Of the release.
        manifest: Of the release.
        scratch: An existing directory for the answers.
    """
    handlers = BoardAgent().handlers()
    model = manifest["model"]
    load = {
        "runtime": manifest["target"],
        "path": os.path.join(directory, model),
        "num_threads": manifest.get("threads", 1),
        "sha256": manifest["files"][model],
        "weights_sha256": manifest["files"].get(model[:-4] + ".bin"),
    }
    handlers["load"](load, _ignore)
    inputs = [
        {"name": each["name"], "path": os.path.join(directory, each["file"]), "transform": each.get("transform")}
        for each in manifest["inputs"]
    ]
    answered = handlers["predict"]({"inputs": inputs, "outputs": scratch}, _ignore)
    worst = _compare(directory, manifest, {each["name"]: each["path"] for each in answered["outputs"]})
    handlers["warm_up"]({"min_count": 5, "min_time_s": 0.0}, _ignore)
    measured = handlers["measure"]({"count": NUM_LATENCIES, "time_s": MEASURE_S}, _ignore)
    latencies_ms = sorted(nanoseconds / 1e6 for nanoseconds in measured["latencies_ns"])
    return {
        "worst": worst,
        "latency_p50_ms": float(np.median(latencies_ms)),
        # By nearest rank: the longest, where there are too few for more.
        "latency_p99_ms": latencies_ms[math.ceil(0.99 * len(latencies_ms)) - 1],
        "num_latencies": len(latencies_ms),
    }


def _compare(directory: str, manifest: Mapping[str, Any], found: Mapping[str, str]) -> float:
    """The largest difference from a golden value, as a share of the golden values' range."""
    wanted: List[Dict[str, Any]] = manifest["outputs"]
    if len(wanted) == 1 and len(found) == 1:
        found = {wanted[0]["name"]: next(iter(found.values()))}
    worst = 0.0
    for each in wanted:
        if each["name"] not in found:
            raise FailedTest(f"the model has the outputs {', '.join(found)}, but {each['name']} is expected")
        golden = np.load(os.path.join(directory, each["file"]), allow_pickle=False)
        answer = np.load(found[each["name"]], allow_pickle=False)
        if not golden.size or answer.shape != golden.shape:
            raise FailedTest(f"{each['name']} has the shape {answer.shape}, its golden values have {golden.shape}")
        limit = manifest["golden_tolerance"] * float(golden.max() - golden.min())
        difference = float(np.abs(answer - golden).max())
        if not difference <= limit:
            raise FailedTest(
                f"the self-test of {manifest['name']} failed: a value of {each['name']} differs by {difference:.4g} "
                f"from its golden value, allowed are {limit:.4g}; the release in use was not changed"
            )
        worst = max(worst, difference / float(golden.max() - golden.min()) if difference else 0.0)
    return worst


def _run(directory: str, manifest: Mapping[str, Any], scratch: str, lifeline: int, timeout_s: float) -> Dict[str, Any]:
    request, answer, words = (os.path.join(scratch, name) for name in ("request", "answer", "words"))
    with open(request, "w", encoding="utf-8") as stream:
        json.dump({"directory": directory, "manifest": manifest, "answer": answer}, stream)
    environment = {**os.environ, LIFELINE_VARIABLE: str(lifeline)}
    for name in _THREAD_VARIABLES:
        environment.setdefault(name, "1")
    with open(words, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path), __name__, request],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=environment,
            pass_fds=[lifeline],
        )
        try:
            status: Optional[int] = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
    if status is None:
        raise FailedTest(f"the self-test took longer than {timeout_s:g} s; the release in use was not changed")
    if status != 0 or not os.path.isfile(answer):
        raise FailedTest(
            f"the self-test {_describe(status)}: the runtime crashes on this model; the release in use was not "
            f"changed\n{_tail(words)}".rstrip()
        )
    with open(answer, encoding="utf-8") as stream:
        told = json.load(stream)
    if "refused" in told:
        kind = Unfit if told["kind"] == Unfit.kind else FailedTest
        raise kind(told["refused"])
    measured: Dict[str, Any] = told
    return measured


def _describe(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _tail(path: str) -> str:
    with open(path, "rb") as stream:
        stream.seek(max(0, os.path.getsize(path) - 1000))
        return stream.read().decode(errors="replace")


def _ignore(event: Dict[str, Any]) -> None:
    """Takes an event and does nothing."""


def _main() -> None:
    Lifeline().hold()
    with open(sys.argv[-1], encoding="utf-8") as stream:
        request = json.load(stream)
    scratch = os.path.dirname(request["answer"])
    answer: Dict[str, Any]
    try:
        answer = check_release(request["directory"], request["manifest"], os.path.join(scratch, "outputs"))
    except RuntimeMissing as error:
        answer = {"refused": str(error), "kind": Unfit.kind}
    except Refusal as error:
        answer = {"refused": str(error), "kind": error.kind}
    except (AgentError, OSError, ValueError, LookupError) as error:
        answer = {"refused": f"the self-test failed: {error}", "kind": FailedTest.kind}
    with open(request["answer"], "w", encoding="utf-8") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    _main()

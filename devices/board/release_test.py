"""The self-test of a release: its golden samples through the board's own runtime, and how long an inference takes.

It runs in a process of its own, because a runtime that crashes on a file must not take the installer along.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any, Dict, Mapping, Optional, Tuple

from .jsonlines import LIFELINE_VARIABLE
from .release_errors import FailedTest, Unfit
from .release_form import PLAIN

TIMEOUT_S = 900.0

_CHECK = f"{__name__.rpartition('.')[0]}.release_check"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_START = (
    "import json, runpy, site, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "sys.argv[2] and site.addsitedir(sys.argv[2]); runpy.run_module(sys.argv[3], run_name='__main__')"
)


def run_self_test(
    directory: str, manifest: Mapping[str, Any], timeout_s: float = TIMEOUT_S, *, packages: str = ""
) -> Dict[str, Any]:
    """Tests a release in a process of its own, which ends with this one.

    Where it has a compiled form that fits this board, that one is tested. If it fails, the model itself is, and what
    was wrong is told.

    Args:
        directory: Of the release.
        manifest: Of the release.
        timeout_s: For one form.
        packages: Directory that the release's packages are imported from; nothing takes what this process has.

    Returns:
        `worst` (largest difference from a golden value, as a share of the golden values' range), `latency_p50_ms`,
        `latency_p99_ms` and `num_latencies`; of a release with a compiled form also `form` (the one that is run),
        `form_reason` (why it is not the compiled one) and, where that failed its test, the same as `form_failed`.

    Raises:
        FailedTest: The release answers differently, crashes, or takes too long.
        Unfit: Its runtime is missing.
    """
    if not manifest.get("compiled"):
        return _tested(directory, manifest, packages, timeout_s)[0]
    tried: Dict[str, str] = {}
    try:
        measured, form = _tested(directory, manifest, packages, timeout_s, tried=tried)
    except (FailedTest, Unfit) as error:
        if tried.get("name", PLAIN) == PLAIN:
            raise
        reason = f"the form {tried['name']} failed its test on this board: {error}"[:1000]
        measured, form = _tested(directory, manifest, packages, timeout_s, plain=True)
        return {**measured, "form": form["name"], "form_reason": reason, "form_failed": reason}
    return {**measured, "form": form["name"], "form_reason": form["reason"]}


def _tested(
    directory: str,
    manifest: Mapping[str, Any],
    packages: str,
    timeout_s: float,
    *,
    plain: bool = False,
    tried: Optional[Dict[str, str]] = None,
) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """What one process measured, and the form that it ran; `tried` gets that also where it fails."""
    ours, theirs = os.pipe()  # the reading end is the child's; the writing end closes with this process
    told: Dict[str, str] = {} if tried is None else tried
    try:
        with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
            asked = {"directory": directory, "manifest": dict(manifest), "plain": plain}
            try:
                return _run(asked, packages, scratch, ours, timeout_s), told
            finally:
                told.update(_form_of(scratch))
    finally:
        os.close(ours)
        os.close(theirs)


def _form_of(scratch: str) -> Dict[str, str]:
    """What the process wrote before it loaded anything."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(scratch, "form"), encoding="utf-8") as stream:
        found: Dict[str, str] = json.load(stream)
        return found
    return {}


def _run(asked: Mapping[str, Any], packages: str, scratch: str, lifeline: int, timeout_s: float) -> Dict[str, Any]:
    request, answer, words = (os.path.join(scratch, name) for name in ("request", "answer", "words"))
    with open(request, "w", encoding="utf-8") as stream:
        json.dump({**asked, "answer": answer}, stream)
    # The process is started elsewhere; a path may be that of a program in one file, given relatively.
    paths = [*([packages] if packages else []), *map(os.path.abspath, sys.path)]
    environment = {**os.environ, LIFELINE_VARIABLE: str(lifeline)}
    for name in _THREAD_VARIABLES:
        environment.setdefault(name, "1")
    with open(words, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(paths), packages, _CHECK, request],
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

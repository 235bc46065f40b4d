"""OpenVINO's own `benchmark_app`, its measuring loop run in blocks, for `cross_checks.py`.

    benchmark_app_blocks.py ARGUMENT... , then JSON lines:

prepare                          -> the median that it prints, once it has run as it is
measure {time_s, settle_time_s}  -> latencies_ns, as its loop times them

The program runs whole, with the arguments given. What it has made (its request, its inputs) is kept, and its loop is
called again on that for each block.
"""

from __future__ import annotations

import sys
from typing import Any

from devices.board.jsonlines import serve


class Kept:
    """The program's loop and what it was called with."""

    def __init__(self) -> None:
        self._benchmark: Any = None
        self._request: Any = None
        self._inputs: Any = None

    def prepare(self, params: dict[str, Any], _: Any) -> dict[str, Any]:  # noqa: ARG002
        """Runs the program."""
        from openvino.tools.benchmark import benchmark
        from openvino.tools.benchmark.main import main

        loop, medians = benchmark.Benchmark.main_loop, []

        def main_loop(itself: Any, requests: Any, inputs: Any, *others: Any) -> Any:
            self._benchmark, self._request, self._inputs = itself, requests[0], inputs
            found = loop(itself, requests, inputs, *others)
            medians.append(found[1])
            return found

        benchmark.Benchmark.main_loop = main_loop
        try:
            main()
        except SystemExit as error:
            if error.code:
                raise RuntimeError(f"benchmark_app ended with {error.code}") from error
        return {"median_ms": medians[0]}

    def measure(self, params: dict[str, Any], _: Any) -> dict[str, Any]:
        """One block."""
        self._times(params["settle_time_s"])
        return {"latencies_ns": [round(each * 1e6) for each in self._times(params["time_s"])]}

    def _times(self, seconds: float) -> list[float]:
        """In milliseconds; none where there is no time."""
        self._benchmark.niter, self._benchmark.duration_seconds = 0, seconds
        times: list[float] = self._benchmark.sync_inference(self._request, self._inputs)[0]
        return times


def main() -> None:
    """Answers until standard input ends."""
    kept = Kept()
    sys.argv[0] = "benchmark_app"
    serve({"prepare": kept.prepare, "measure": kept.measure})


if __name__ == "__main__":
    main()

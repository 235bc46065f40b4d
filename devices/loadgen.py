"""`python -m devices.loadgen`: the board's agent, with LoadGen of MLCommons in its process.

LoadGen has wheels for x86 alone, so that it can't be among what runs on boards. Here it takes the agent's request
`mlperf` with the same answer, and writes its logs into `out_dir`, which the request names besides.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import resource
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from devices.board.agent import BoardAgent
from devices.board.errors import AgentError
from devices.board.jsonlines import EmitEvent, Handler, serve
from devices.board.mlperf import OFFLINE_SLACK, PERCENTILE, PLACES, TAIL_PERCENTILE, least_count

PACKAGE = "mlcommons-loadgen"
DETAIL = "mlperf_log_detail.txt"
SUMMARY = "mlperf_log_summary.txt"

_LINE = ":::MLLOG "
_PROGRESS_EVERY_S = 0.5


def is_installed() -> bool:
    """Whether LoadGen is installed for this Python."""
    return importlib.util.find_spec("mlperf_loadgen") is not None


def handlers() -> dict[str, Handler]:
    """Those of the board's agent; `mlperf` runs through LoadGen."""
    agent = BoardAgent()

    def run(params: dict[str, Any], emit_event: EmitEvent) -> dict[str, Any]:
        if not agent.num_prepared:
            raise AgentError("no model is loaded; send 'load' first")
        return run_loadgen(params, agent.infer_prepared, agent.num_prepared, emit_event)

    return {**agent.handlers(), "mlperf": run}


def run_loadgen(
    params: dict[str, Any], infer: Callable[[int], None], num_samples: int, emit: EmitEvent, *, trace: bool = False
) -> dict[str, Any]:
    """Runs one scenario.

    Args:
        params: As of `devices.board.mlperf.run_scenario`, and `out_dir` for the logs.
        infer: Runs one inference of the sample of that number.
        num_samples: How many there are.
        emit: Takes progress.
        trace: Whether LoadGen logs each query, too.

    Returns:
        As of `devices.board.mlperf.run_scenario`.

    Raises:
        AgentError: An inference failed, or LoadGen left no result.
    """
    import mlperf_loadgen as loadgen

    out_dir = Path(params["out_dir"])
    out_dir.mkdir(parents=True, exist_ok=True)
    failures: list[BaseException] = []
    done, said = 0, time.monotonic()

    def issue(queries: Any) -> None:
        nonlocal done, said
        for query in queries:
            if not failures:
                try:
                    infer(query.index)
                except Exception as error:  # noqa: BLE001 (it is raised after the run: LoadGen can't carry it)
                    failures.append(error)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])
            done += 1
            if time.monotonic() - said >= _PROGRESS_EVERY_S:
                said = time.monotonic()
                emit({"queries": done})

    settings, logs = _settings(loadgen, params), loadgen.LogSettings()
    logs.log_output.outdir = str(out_dir)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = trace
    system = loadgen.ConstructSUT(issue, _flush)
    library = loadgen.ConstructQSL(num_samples, num_samples, _load, _load)
    collects = gc.isenabled()
    gc.disable()
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, logs)
    finally:
        if collects:
            gc.enable()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    if failures:
        raise AgentError(f"an inference failed under LoadGen: {failures[0]}") from failures[0]
    return read_logs(out_dir)


def _settings(loadgen: Any, params: dict[str, Any]) -> Any:
    settings = loadgen.TestSettings()
    offline = params["scenario"] == "offline"
    settings.scenario = loadgen.TestScenario.Offline if offline else loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1000 * float(params["min_duration_s"]))
    settings.min_query_count = int(params["min_query_count"])
    expected_ns = float(params["expected_latency_ns"])
    settings.single_stream_target_latency_percentile = PERCENTILE
    settings.single_stream_expected_latency_ns = round(expected_ns)
    # LoadGen takes a tenth more than that; another tenth lets the run be somewhat faster than the warm-up.
    settings.offline_expected_qps = OFFLINE_SLACK * 1e9 / expected_ns
    return settings


def read_logs(out_dir: Path) -> dict[str, Any]:
    """What LoadGen has written, as `devices.board.mlperf.run_scenario` returns it.

    Raises:
        AgentError: There is no result in the logs.
    """
    logged: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        for line in (out_dir / DETAIL).read_text(encoding="utf-8").splitlines():
            if line.startswith(_LINE):
                record = json.loads(line[len(_LINE) :])
                logged[record["key"]] = record["value"]
    try:
        return _result(logged, (out_dir / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, KeyError) as error:
        raise AgentError(f"LoadGen left no result in {out_dir}: {error}") from error


def _result(logged: dict[str, Any], text: str) -> dict[str, Any]:
    offline = logged["effective_scenario"] == "Offline"
    count = logged["result_query_count"]
    samples = logged["effective_min_sample_count"] if offline else count
    valid = logged["result_validity"] == "VALID" and "Result is : VALID" in text
    reasons = [] if valid else [logged.get("result_invalid_reason", "").strip() or "see LoadGen's summary"]
    if not valid and not logged["early_stopping_met"]:
        reasons = [f"{count} queries, but early stopping needs {least_count(PERCENTILE)}"]
    lasted_s = logged["result_max_latency_ns"] / 1e9 if offline else count / logged["result_qps_with_loadgen_overhead"]
    rate = logged["result_samples_per_second"] if offline else logged["result_qps_without_loadgen_overhead"]
    stopping = []
    for percentile, key in ((PERCENTILE, "early_stopping_latency_ss"), (TAIL_PERCENTILE, "early_stopping_latency_ms")):
        if not offline:
            estimate = logged[key] or None
            discarded = _discarded(text) if percentile == PERCENTILE else None
            stopping.append({"percentile": percentile, "needed": least_count(percentile), "discarded": discarded,
                             "estimate_ns": estimate})  # fmt: skip
    return {
        "generator": f"{PACKAGE} {metadata.version(PACKAGE)}",
        "query_count": count,
        "sample_count": samples,
        "duration_s": lasted_s,
        "samples_per_s": rate,
        "early_stopping": stopping,
        **{f"{name}_ns": logged[f"result_{name}_latency_ns"] for name in ("min", "mean", "max")},
        "percentiles_ns": {
            text: logged[f"result_{text}_percentile_latency_ns"] for text in (f"{100 * place:.2f}" for place in PLACES)
        },
        "valid": valid,
        "reasons": reasons,
    }


def _discarded(text: str) -> int | None:
    """How many of the longest queries LoadGen says it discards."""
    words = text.partition("Would discard ")[2].split()
    return int(words[0]) if words else None


def _flush() -> None:
    """LoadGen has no more queries for now; nothing waits here."""


def _load(indices: list[int]) -> None:
    """The samples are in memory all the time."""


if __name__ == "__main__":
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    serve(handlers())

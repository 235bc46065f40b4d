"""MLCommons LoadGen and our own early stopping, held together on the same latencies."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices import loadgen
from devices.board.errors import AgentError
from devices.board.mlperf import PERCENTILE, TAIL_PERCENTILE, early_stopping, least_count, overlatency_count, summary
from devices.mlperf import MlperfSettings, measure_by_rules
from devices.profile import load_profile
from devices.records import BenchmarkSettings, Case

pytestmark = pytest.mark.skipif(not loadgen.is_installed(), reason="no LoadGen for this platform")


class Load(NamedTuple):
    """Latencies of a system under test: its number of queries and how long one of them works, in microseconds."""

    id: str
    count: int
    seed: int
    longest_us: int

    def work(self) -> Any:
        draw = random.Random(self.seed)

        def infer(_: int) -> None:
            end = time.perf_counter_ns() + 1000 * draw.randrange(1, self.longest_us)
            while time.perf_counter_ns() < end:
                pass

        return infer


LOADS = [
    Load("too few", 63, 0, 300),
    Load("just enough", 64, 1, 300),
    Load("some", 700, 2, 400),
    Load("many", 20_011, 3, 20),
]


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.id)
def test_the_same_latencies_give_the_same_estimates(load: Load, tmp_path: Path) -> None:
    params = {
        "scenario": "single_stream",
        "min_duration_s": 0,
        "min_query_count": load.count,
        "expected_latency_ns": 1e9,
        "out_dir": str(tmp_path),
    }
    found = loadgen.run_loadgen(params, load.work(), 4, lambda _: None, trace=True)
    latencies = traced(tmp_path)
    assert len(latencies) == found["query_count"] == load.count
    ninety, tail = (early_stopping(latencies, each) for each in (PERCENTILE, TAIL_PERCENTILE))
    assert found["early_stopping"][0] == ninety
    assert found["early_stopping"][1]["estimate_ns"] == tail["estimate_ns"]
    assert (ninety["estimate_ns"] is None) == (load.count < 64) == (not found["valid"])
    assert (tail["estimate_ns"] is None) == (load.count < 662)
    assert {name: found[name] for name in summary(latencies)} == summary(latencies)
    if load.count < 64:
        assert found["reasons"] == ["63 queries, but early stopping needs 64"]


def traced(directory: Path) -> list[int]:
    """The latency of each query, from LoadGen's trace, which is not quite JSON."""
    text = (directory / "mlperf_log_trace.json").read_text()
    return [int(latency) for latency in re.findall(r'"complete_ns":(\d+)', text)]


def test_what_loadgen_says_in_words() -> None:
    """The numbers that its summary names for 636 queries."""
    assert (least_count(PERCENTILE), least_count(TAIL_PERCENTILE)) == (64, 662)
    assert overlatency_count(636, PERCENTILE) == 46


@pytest.mark.parametrize("scenario", ["single_stream", "offline"])
def test_an_inference_that_fails_under_loadgen_is_an_error(scenario: str, tmp_path: Path) -> None:
    params = {"scenario": scenario, "min_duration_s": 1, "min_query_count": 5, "expected_latency_ns": 1e6,
              "out_dir": str(tmp_path)}  # fmt: skip

    def infer(index: int) -> None:
        raise ValueError(f"no sample {index}")

    with pytest.raises(AgentError, match=r"failed under LoadGen: no sample \d"):
        loadgen.run_loadgen(params, infer, 4, lambda _: None)


def test_logs_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="LoadGen left no result"):
        loadgen.read_logs(tmp_path)


def test_a_model_by_the_rules_on_this_machine(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    case = Case(id="m.onnx", runtime="onnxruntime", path=str(path), num_threads=1)
    gone = Case(id="gone", runtime="onnxruntime", path=str(tmp_path / "gone.onnx"))
    settings = MlperfSettings(min_duration_s=0.3, min_count=100)
    found = measure_by_rules(
        load_profile("local"), [case, gone], settings, BenchmarkSettings(warm_up_time_s=0), log_dir=tmp_path / "logs",
        tell=lambda _: None,
    )  # fmt: skip
    good, bad = found.cases
    assert [run.generator.split()[0] for run in good.runs] == ["mlcommons-loadgen"] * 2
    assert [run.valid for run in good.runs] == [True, True]
    single, offline = good.runs
    assert (single.conforms, single.deviations) == (False, ("0.3 s instead of 600 s",))
    assert offline.deviations == ("0.3 s instead of 600 s", "100 instead of 24,576 samples")
    assert offline.query_count == 1
    assert offline.sample_count >= 100
    assert offline.samples_per_s == pytest.approx(offline.sample_count / offline.duration_s, rel=1e-3)
    for run in good.runs:
        logs = Path(str(run.logs))
        assert {"mlperf_log_summary.txt", "mlperf_log_detail.txt"} <= {each.name for each in logs.iterdir()}
        assert read_again(logs)["samples_per_s"] == run.samples_per_s
    assert bad.runs == ()
    assert bad.case.error is not None
    assert bad.case.error.kind == "ModelRejectedError"


def write_model(path: Path) -> Path:
    """A product of matrices that takes about a tenth of a millisecond."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1024)) for name in ("image", "logits"))
    node = helper.make_node("MatMul", ["image", "weights"], ["logits"])
    graph = helper.make_graph([node], "product", [image], [logits], [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def read_again(directory: Path) -> dict[str, Any]:
    return loadgen.read_logs(directory)

"""Shows that `edgeship bench --compare` finds a difference of 5 % and invents none, and writes `comparison.json`.

    .venv/bin/python docs/results/comparison.py [--trials 6] [--device local]

Each trial is a whole comparison, with fresh processes: of two copies of one file, where the right answer is "can't
tell"; and of that file with one that does 5 % more work, where it is "slower". The network is a chain of equal
convolutions in ONNX Runtime, 40 of them and 42: whatever else an inference costs is the same for both. What loads the
machine meanwhile is part of the show: the load average is in the rows. Rows are added to those that were measured
before; `--anew` forgets them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from devices.measurement import BenchmarkSettings, Case, benchmark_and_compare
from devices.profile import load_profile

RESULT = Path(__file__).with_suffix(".json")
LAYERS = 40
MORE_LAYERS = 42
WANTED = {"copy": "can't tell", "5 % more work": "slower"}
SETTINGS = BenchmarkSettings(
    sessions=10, min_count=400, min_time_s=8.0, max_time_s=20.0, precision=0.01, warm_up_time_s=0.2
)


def main() -> None:
    """Runs the trials, adds their rows, prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6, help="of each kind")
    parser.add_argument("--device", default="local")
    parser.add_argument("--anew", action="store_true", help="forget the rows that were measured before")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if RESULT.is_file() and not arguments.anew:
        rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        directory = Path(scratch)
        write_network(directory / "a.onnx", LAYERS)
        shutil.copyfile(directory / "a.onnx", directory / "copy.onnx")
        write_network(directory / "more.onnx", MORE_LAYERS)
        for _ in range(arguments.trials):
            for kind, name in (("copy", "copy"), ("5 % more work", "more")):
                rows.append(trial(kind, directory / "a.onnx", directory / f"{name}.onnx", arguments.device))
                print(json.dumps(rows[-1]), flush=True)
                write(rows)


def trial(kind: str, baseline: Path, other: Path, device: str) -> dict[str, Any]:
    """One comparison."""
    cases = [Case(id=path.stem, runtime="onnxruntime", path=str(path), num_threads=1) for path in (baseline, other)]
    begin = time.monotonic()
    seed = int.from_bytes(os.urandom(3), "big")
    result = benchmark_and_compare(load_profile(device), cases, SETTINGS.model_copy(update={"seed": seed}))
    found = result.comparisons[0]
    return {
        "kind": kind,
        "verdict": found.verdict,
        "right": found.verdict == WANTED[kind],
        "ratio": round(found.ratio, 4),
        "interval": found.interval and [round(end, 4) for end in found.interval],
        "sessions": found.sessions,
        "session_ratios": [round(ratio, 4) for ratio in found.session_ratios],
        "seed": seed,
        "p50_ms": [round(case.latency_ms.p50, 3) for case in result.cases if case.latency_ms],
        "min_ms": [round(case.latency_ms.min, 3) for case in result.cases if case.latency_ms],
        "busy_share": result.facts["cpu_busy_share"],
        "load_average": result.load_average_before and result.load_average_before[0],
        "seconds": round(time.monotonic() - begin, 1),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": result.facts["cpu_model"],
    }


def write(rows: list[dict[str, Any]]) -> None:
    """Writes all rows and what they come to."""
    kinds = {}
    for kind in WANTED:
        mine = [row for row in rows if row["kind"] == kind]
        kinds[kind] = {
            "trials": len(mine),
            **{
                verdict: sum(row["verdict"] == verdict for row in mine)
                for verdict in ("faster", "slower", "can't tell")
            },
            "median_ratio": round(float(np.median([row["ratio"] for row in mine])), 4) if mine else None,
        }
    RESULT.write_text(
        json.dumps({"schema_version": 1, "kinds": kinds, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )


def write_network(path: Path, num_layers: int) -> None:
    """Writes a chain of 3x3 convolutions with random weights, `(1, 32, 28, 28)` in and out, each with its ReLU."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    scale = (2 / (32 * 9)) ** 0.5
    weights = [
        numpy_helper.from_array((generator.normal(size=(32, 32, 3, 3)) * scale).astype(np.float32), f"weights{index}")
        for index in range(num_layers)
    ]
    nodes = []
    for index in range(num_layers):
        before = f"layer{index}" if index else "image"
        inputs, conv = [before, f"weights{index}"], f"conv{index}"
        nodes.append(helper.make_node("Conv", inputs, [conv], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [conv], [f"layer{index + 1}"]))
    shape = (1, 32, 28, 28)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"layer{num_layers}", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    main()

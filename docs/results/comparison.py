"""Shows how often `edgeship bench --compare` finds a difference of 5 % and invents one, and writes `comparison.json`.

    .venv/bin/python docs/results/comparison.py --kind copy --trials 100 [--load bursts] [--minutes 50]

Each trial is what `edgeship bench A B --compare --min-time 3 --max-time 5` does, through the same functions, with fresh
processes: of two copies of one file, where the right answer is "can't tell"; or of that file with one that does 5 %
more work, where it is "slower". The network is a chain of equal convolutions in ONNX Runtime, 20 of them and 21:
whatever else an inference costs is the same for both.

Another process loads the machine meanwhile: with `bursts` it works and rests for times that are drawn anew, half of the
time in the mean; with `steady` it always works; with `none` there is none. What other programs do besides is in the
rows as the share of the cores that was busy before.

Every trial is a line of `comparison.jsonl` as soon as it ends, and carries the digest of the code that measures and of
its options. Started again, the script goes on until there are as many trials of a kind, load and code as asked for.
Trials of other code stay in the file and are counted by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from devices.measurement import Case
from devices.profile import load_profile
from pipeline.keys import modules_of
from pipeline.measuring import bench_options, measure

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).with_suffix(".json")
TRIALS = RESULT.with_suffix(".jsonl")
LAYERS = 20
MORE_LAYERS = 21
WANTED = {"copy": "can't tell", "5 % more work": "slower"}
LOADS = ("bursts", "steady", "none")
ASKED: dict[str, Any] = {
    "threads": "1", "cores": None, "governor": None, "min_count": None, "min_time": None, "max_time": None,
    "precision": None, "sessions": None, "compare": True, "sustained": None, "rules": None,
}  # fmt: skip
ROOTS = ("pipeline.measuring", "devices.board.agent")
LEFT_OUT = (
    "models",
    *(f"pipeline.{name}" for name in ("commit", "errors", "imports", "model_source", "quantization", "saved_model")),
    *(f"pipeline.{name}" for name in ("signature", "stages", "store_errors", "targets")),
    *(f"devices.{name}" for name in ("address", "cache", "compiled", "errors", "load", "mlperf", "profile")),
    *(f"devices.{name}" for name in ("provision", "quality", "results", "sustained", "virtual", "wording")),
    *(f"devices.transport{name}" for name in ("_config", "s.adb", "s.client", "s.fake", "s.ssh", "s.virtual")),
    *(f"devices.board.{name}" for name in ("bootstrap", "companions", "compiling", "end_to_end", "errors")),
    *(f"devices.board.{name}" for name in ("interpreter", "launch", "litert", "mlperf", "prediction", "preprocess")),
    *(f"devices.board.{name}" for name in ("profiling", "quantization", "release", "bundle", "serving", "program")),
    *(f"devices.board.{name}" for name in ("environment", "images", "installed", "model", "places", "requirement")),
    *(f"devices.board.{name}" for name in ("confidence", "start", "storage", "wheels")),
    "devices.board_program",
    *(f"devices.board.runners.{name}" for name in ("fake", "litert", "openvino")),
)
"""Beginnings of names of modules that a trial imports, and that its verdict does not come from."""

_LOAD = """
import random, sys, time
draw = random.Random(int(sys.argv[1]))
while True:
    end = time.monotonic() + draw.uniform(0.02, 1.0)
    while time.monotonic() < end:
        sum(range(2000))
    if sys.argv[2] == "bursts":
        time.sleep(draw.uniform(0.02, 1.0))
"""


def main() -> None:
    """Runs the trials that are missing, adds their rows, prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=[*WANTED, "all"], default="all")
    parser.add_argument("--trials", type=int, default=100, help="of each kind, with those that were measured before")
    parser.add_argument("--load", choices=LOADS, default="bursts")
    parser.add_argument("--min-time", type=float, default=3.0, help="seconds of inferences of each file in a trial")
    parser.add_argument("--minutes", type=float, help="start no trial after so long")
    parser.add_argument("--device", default="local")
    arguments = parser.parse_args()
    kinds = list(WANTED) if arguments.kind == "all" else [arguments.kind]
    asked = {**ASKED, "min_time": arguments.min_time, "max_time": 5 / 3 * arguments.min_time}
    code, begin = code_digest(asked), time.monotonic()
    names = {"copy": "copy", "5 % more work": "more"}
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        directory = Path(scratch)
        write_network(directory / "a.onnx", LAYERS)
        shutil.copyfile(directory / "a.onnx", directory / "copy.onnx")
        write_network(directory / "more.onnx", MORE_LAYERS)
        while arguments.minutes is None or time.monotonic() - begin < 60 * arguments.minutes:
            done = {kind: len(counted(read(), kind, arguments.load, code)) for kind in kinds}
            kind = min(kinds, key=lambda kind: done[kind])  # in turn, so that both meet the same machine
            if done[kind] >= arguments.trials:
                break
            other = directory / f"{names[kind]}.onnx"
            row = {"load": arguments.load, "code": code}
            row |= trial(kind, (directory / "a.onnx", other), arguments.device, arguments.load, asked)
            add(row)
            print(json.dumps({name: value for name, value in row.items() if name != "session_ratios"}), flush=True)
            write(read())
    for line in write(read()):
        print(line)


def trial(kind: str, paths: tuple[Path, Path], device: str, load: str, asked: dict[str, Any]) -> dict[str, Any]:
    """One comparison of the second file with the first."""
    cases = [Case(id=path.stem, runtime="onnxruntime", path=str(path), num_threads=1) for path in paths]
    begin = time.monotonic()
    seed = int.from_bytes(os.urandom(3), "big")
    with loaded(load, seed):
        result = measure(load_profile(device), cases, bench_options(**{**asked, "seed": seed}), tell=lambda _: None)
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


@contextlib.contextmanager
def loaded(load: str, seed: int) -> Iterator[None]:
    """Another process loads the machine."""
    if load == "none":
        yield
        return
    # The kernel ends it with this process, should that be killed.
    process = subprocess.Popen([sys.executable, "-c", _LOAD, str(seed), load], preexec_fn=_die_with_parent)  # noqa: PLW1509
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def code_digest(asked: dict[str, Any]) -> str:
    """Of the code that measures and judges, and of what it is asked for."""
    hasher = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for name in modules():
        path = ROOT.joinpath(*name.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        hasher.update(name.encode() + b"\0" + source.read_bytes())
    return hasher.hexdigest()[:12]


def modules() -> list[str]:
    """The modules that a verdict comes from, sorted: what is imported, without what is left out."""
    return sorted(name for name in modules_of(*ROOTS) if not name.startswith(LEFT_OUT))


def read() -> list[dict[str, Any]]:
    """All trials, of whatever code; a torn last line is left out."""
    if not TRIALS.is_file():
        return []
    lines = TRIALS.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def add(row: dict[str, Any]) -> None:
    """Adds one trial."""
    with TRIALS.open("a", encoding="utf-8") as stream:
        if stream.tell() and not TRIALS.read_bytes().endswith(b"\n"):
            stream.truncate(TRIALS.read_bytes().rfind(b"\n") + 1)
        stream.write(json.dumps(row) + "\n")


def counted(rows: list[dict[str, Any]], kind: str, load: str, code: str) -> list[dict[str, Any]]:
    """The trials of one kind, load and code."""
    return [row for row in rows if (row["kind"], row["load"], row["code"]) == (kind, load, code)]


def write(rows: list[dict[str, Any]]) -> list[str]:
    """Writes what the trials come to, by the code that measured; the same for people."""
    summary, lines = [], []
    for code in dict.fromkeys(row["code"] for row in rows):
        for kind, load in itertools.product(WANTED, LOADS):
            mine = counted(rows, kind, load, code)
            if not mine:
                continue
            wrong = sum(not row["right"] for row in mine)
            verdicts = [row["verdict"] for row in mine]
            tally = {
                "code": code,
                "last": mine[-1]["time"],
                "kind": kind,
                "load": load,
                "trials": len(mine),
                **{verdict: verdicts.count(verdict) for verdict in ("faster", "slower", "can't tell")},
                "wrong": wrong,
                "wrong_at_most": round(most_likely_wrong(wrong, len(mine)), 4),
                "median_ratio": round(float(np.median([row["ratio"] for row in mine])), 4),
                "median_seconds": round(float(np.median([row["seconds"] for row in mine])), 1),
            }
            summary.append(tally)
            lines.append(
                f"code {code}, {kind}, load {load}: {wrong} of {len(mine)} wrong (at most {tally['wrong_at_most']:.1%} "
                f"with 95 % confidence), {tally['median_seconds']} s each"
            )
    RESULT.write_text(json.dumps({"schema_version": 3, "summary": summary}, indent=1) + "\n", encoding="utf-8")
    return lines


def most_likely_wrong(wrong: int, count: int) -> float:
    """The upper end of the one-sided 95 % interval of a share (Clopper and Pearson, 1934)."""
    from scipy.stats import beta

    return 1.0 if wrong == count else float(beta.ppf(0.95, wrong + 1, count - wrong))


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

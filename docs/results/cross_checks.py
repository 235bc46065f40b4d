"""Holds our latencies against others' on the same files, and writes `cross_checks.json` and `cross_checks.md` beside it.

    .venv/bin/python docs/results/cross_checks.py [--rounds 6] [--device local]

Three checks, one thread each, MobileNetV2 and MobileNetV3-Small at 224 pixels in float32 and int8 (weights are random,
latency does not depend on them; int8 is what the converters give by default):

- OpenVINO's own `benchmark_app` (sync, latency hint, float32 as precision hint, inputs set before each inference as
  ours are): a run of it and a run of ours take turns, in an order that is drawn anew; limit 5 %. It times the request
  alone; ours has the way of the tensors in and out besides, about 1 % (the three ways in turn in one process).
- A bare loop around ONNX Runtime and LiteRT: a process with nothing but that loop, and our agent, take turns in short
  blocks in a drawn order; both processes are started anew in each round; limit 3 %.
- The same bench of all files twice, one after the other; limit 3 %.

Each round gives one ratio, ours to theirs; the table has Hodges and Lehmann's centre and 95 % interval over the rounds
(which needs six of them). A check holds where the centre is within the limit. The files are kept in
`runs/results/cross_checks`, so that a second run measures at once.
"""  # noqa: E501 (the first line)

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from devices.comparison import signed_rank_interval
from devices.measurement import BenchmarkSettings, Case, benchmark
from devices.monitor import BUSY_SHARE
from devices.peer import JsonLinesProcess
from devices.profile import DeviceProfile, load_profile
from devices.rounds import load
from devices.transports import Agent, open_transport
from pipeline.executor import child_environment

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "runs" / "results" / "cross_checks"
NETWORKS = ("mobilenet_v2", "mobilenet_v3_small")
PRECISIONS = ("float32", "int8")
TARGETS = ("litert", "onnxruntime", "openvino")
LIMITS = {"benchmark_app": 0.05, "bare loop": 0.03, "same bench again": 0.03}
SECONDS = 1.0
"""Of inferences of each file in a run of the bench, and of benchmark_app."""
BLOCKS = 12
BLOCK_S = 0.05
SETTLE = 3
WARM_UP_S = 0.3
SETTINGS = BenchmarkSettings(min_count=50, min_time_s=SECONDS, warm_up_time_s=WARM_UP_S)


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="of each check; six or more give intervals")
    parser.add_argument("--only", default="", help="files whose name holds this text, such as litert/int8")
    parser.add_argument("--device", default="local")
    arguments = parser.parse_args()
    begin = time.monotonic()
    profile, draw = load_profile(arguments.device), random.Random(0)
    files = {name: path for name, path in make_files().items() if arguments.only in name}
    made_s = time.monotonic() - begin
    facts, rows = facts_of(profile), []
    for name, path in files.items():
        if path.suffix == ".xml":
            pairs = [beside_benchmark_app(profile, name, path, draw) for _ in range(arguments.rounds)]
            rows.append(row("benchmark_app", name, pairs))
        else:
            pairs = [beside_bare_loop(profile, name, path, draw) for _ in range(arguments.rounds)]
            rows.append(row("bare loop", name, pairs))
        print(line(rows[-1]), flush=True)
    for name, pairs in twice(profile, files, max(1, arguments.rounds // 6)).items():
        rows.append(row("same bench again", name, pairs))
        print(line(rows[-1]), flush=True)
    result = {
        "schema_version": 1,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": facts["cpu_model"],
        "busy_share_before": facts["cpu_busy_share"],
        "busy_share_after": facts_of(profile)["cpu_busy_share"],
        "rounds": arguments.rounds,
        "seconds_making": round(made_s, 1),
        "seconds_measuring": round(time.monotonic() - begin - made_s, 1),
        "rows": rows,
    }
    (HERE / "cross_checks.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "cross_checks.md").write_text("\n".join(table(result)) + "\n", encoding="utf-8")
    print(f"{sum(each['holds'] for each in rows)} of {len(rows)} hold, {result['seconds_measuring']} s", flush=True)


def make_files() -> dict[str, Path]:
    """The files by `network/target/precision`; makes those that are missing."""
    names = [
        f"{network}/{target}/{precision}" for network in NETWORKS for target in TARGETS for precision in PRECISIONS
    ]
    suffixes = {"litert": ".tflite", "onnxruntime": ".onnx", "openvino": ".xml"}
    files = {name: (WORK / name).with_suffix(suffixes[name.split("/")[1]]) for name in names}
    for network in NETWORKS:
        if all(path.is_file() for name, path in files.items() if name.startswith(network)):
            continue
        print(f"making the files of {network}", flush=True)
        os.environ.update(child_environment("tensorflow"))  # before Keras is loaded
        make_network(network, {name: path for name, path in files.items() if name.startswith(network)})
    return files


def make_network(network: str, files: dict[str, Path]) -> None:
    """Exports one network with random weights."""
    from pipeline import targets
    from pipeline.int8_latency import SIZE, random_network
    from pipeline.targets.base import model_files
    from pipeline.targets.by_hand import BY_HAND

    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        source, calibration = random_network(network, SIZE, Path(scratch))
        samples = list(calibration)
        for target in TARGETS:
            out = Path(scratch) / target
            out.mkdir()
            exported = targets.TARGETS[target].export(source, "float32", calibration, out)
            wanted = {precision: files[f"{network}/{target}/{precision}"] for precision in PRECISIONS}
            quantized = out / f"int8{exported.suffix}"
            BY_HAND[target](source, exported, samples, quantized)
            for precision, made in (("float32", exported), ("int8", quantized)):
                wanted[precision].parent.mkdir(parents=True, exist_ok=True)
                for file in reversed(model_files(made)):  # the .xml last: it tells that all is there
                    file.replace(wanted[precision].with_suffix(file.suffix))


def beside_benchmark_app(profile: DeviceProfile, name: str, path: Path, draw: random.Random) -> tuple[float, float]:
    """Medians in milliseconds of a run of ours and of one of OpenVINO's program."""
    found = {}
    for who in draw.sample(("ours", "theirs"), 2):
        found[who] = bench(profile, {name: path})[name] if who == "ours" else benchmark_app(path)
    return found["ours"], found["theirs"]


def benchmark_app(path: Path) -> float:
    """The median latency that OpenVINO's program finds, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        # The options for hint and threads exclude each other; a file of properties may have both, as our runner does.
        properties = {"CPU": {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": "1",
                              "INFERENCE_PRECISION_HINT": "f32"}}  # fmt: skip
        config = Path(scratch) / "config.json"
        config.write_text(json.dumps(properties), encoding="utf-8")
        command = [
            str(Path(sys.executable).with_name("benchmark_app")), "-m", str(path), "-d", "CPU", "-api", "sync",
            "-hint", "latency", "-load_config", str(config), "-t", str(math.ceil(SECONDS)), "-json_stats",
            "-inference_only", "False", "-report_type", "no_counters", "-report_folder", scratch,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"benchmark_app failed on {path}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        report = json.loads((Path(scratch) / "benchmark_report.json").read_text(encoding="utf-8"))
    return float(report["execution_results"]["latency (ms)"])  # the median, to a hundredth of a millisecond


def bench(profile: DeviceProfile, files: dict[str, Path]) -> dict[str, float]:
    """The medians of a run of our bench, in milliseconds."""
    found = {}
    for case in benchmark(profile, [case_of(name, path) for name, path in files.items()], SETTINGS).cases:
        if case.latency_ms is None:
            raise RuntimeError(f"{case.id} can't be measured: {case.error}")
        found[case.id] = case.latency_ms.p50
    return found


def beside_bare_loop(profile: DeviceProfile, name: str, path: Path, draw: random.Random) -> tuple[float, float]:
    """Medians in milliseconds of our agent and of a bare loop, which take turns; both processes are new."""
    transport = open_transport(profile)
    with bare_loop(path) as bare, transport.start_agent() as agent:  # the one starts while the other does
        load(profile, transport, agent, case_of(name, path), timeout_s=60)
        agent.request("warm_up", {"min_count": 10, "min_time_s": WARM_UP_S}, timeout_s=60)
        bare.request("measure", {"time_s": WARM_UP_S, "settle_count": 0}, timeout_s=60)
        blocks: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(BLOCKS):
            for who in draw.sample(("ours", "theirs"), 2):
                blocks[who].append(block(agent if who == "ours" else bare))
    # The ratio of blocks that ran one after the other: what slowed the machine for a while slowed both.
    ratio = float(np.median(np.array(blocks["ours"]) / np.array(blocks["theirs"])))
    theirs = float(np.median(blocks["theirs"]))
    return ratio * theirs, theirs


def block(process: Agent | JsonLinesProcess) -> float:
    """The median of one block in milliseconds."""
    params = {"time_s": BLOCK_S, "settle_count": SETTLE}
    return float(np.median(process.request("measure", params, timeout_s=60)["latencies_ns"])) / 1e6


def bare_loop(path: Path) -> JsonLinesProcess:
    """A process with a runtime and the shortest loop around it."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    return JsonLinesProcess([sys.executable, str(HERE / "bare_loop.py"), str(path)], env=env, name="the bare loop")


def twice(profile: DeviceProfile, files: dict[str, Path], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Medians of the same bench of all files, run twice, so many times."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    for _ in range(rounds):
        first, second = bench(profile, files), bench(profile, files)
        for name, found in pairs.items():
            found.append((second[name], first[name]))
    return pairs


def case_of(name: str, path: Path) -> Case:
    """One thread."""
    return Case(id=name, runtime=name.split("/")[1], path=str(path), num_threads=1)


def facts_of(profile: DeviceProfile) -> dict[str, Any]:
    """Of the device."""
    with open_transport(profile).start_agent() as agent:
        facts: dict[str, Any] = agent.request("facts", timeout_s=60)
    return facts


def row(check: str, name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What the rounds of one check of one file come to."""
    logs = [math.log(ours / theirs) for ours, theirs in pairs]
    center, interval = signed_rank_interval(logs, confidence=0.95)
    network, target, precision = name.split("/")
    return {
        "check": check,
        "network": network,
        "target": target,
        "precision": precision,
        "ours_ms": round(float(np.median([ours for ours, _ in pairs])), 4),
        "theirs_ms": round(float(np.median([theirs for _, theirs in pairs])), 4),
        "ratio": round(math.exp(center), 4),
        "interval": interval and [round(math.exp(end), 4) for end in interval],
        "ratios": [round(math.exp(each), 4) for each in logs],
        "limit": LIMITS[check],
        "holds": abs(math.exp(center) - 1) <= LIMITS[check],
    }


def line(each: dict[str, Any]) -> str:
    """One row for people."""
    low, high = each["interval"] or (float("nan"), float("nan"))
    return (
        f"{each['check']:17} {each['network']:19} {each['target']:12} {each['precision']:8} {each['ours_ms']:8.3f} ms, "
        f"ratio {each['ratio']:.3f} ({low:.3f} to {high:.3f}) {'holds' if each['holds'] else 'DOES NOT HOLD'}"
    )


def table(result: dict[str, Any]) -> list[str]:
    """The Markdown file."""
    busy = max(result["busy_share_before"] or 0.0, result["busy_share_after"] or 0.0)
    lines = [
        "# Our latencies beside others'",
        "",
        f"Written by `cross_checks.py` on {result['time'][:10]}, {result['cpu']}, one thread,",
        f"{result['rounds']} rounds.",
        f"Other programs used up to {busy:.0%} of the cores"
        + (": measure again on a quiet machine." if busy > BUSY_SHARE else "."),
        "",
        "Ratio: ours to theirs, Hodges and Lehmann's centre over the rounds with its 95 % interval.",
        "",
        "| beside | network | runtime | precision | ours ms | theirs ms | ratio | interval | limit | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in result["rows"]:
        interval = "-" if each["interval"] is None else f"{each['interval'][0]:.3f} to {each['interval'][1]:.3f}"
        lines.append(
            f"| {each['check']} | {each['network']} | {each['target']} | {each['precision']} | {each['ours_ms']:.3f} | "
            f"{each['theirs_ms']:.3f} | {each['ratio']:.3f} | {interval} | {each['limit']:.0%} | "
            f"{'holds' if each['holds'] else '**does not hold**'} |"
        )
    return lines


if __name__ == "__main__":
    main()

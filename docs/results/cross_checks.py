"""Holds our latencies against others' on the same files, and writes `cross_checks.json` and `cross_checks.md` beside it.

    .venv/bin/python docs/results/cross_checks.py [--rounds 6] [--device local]

Three checks, one thread each, MobileNetV2 and MobileNetV3-Small at 224 pixels in float32 and int8 (weights are random,
latency does not depend on them; int8 is what the converters give by default):

- OpenVINO's own `benchmark_app` (sync, latency hint, float32 as precision hint, four images in turn as ours), limit 5 %.
  It times the request alone; ours has the way of the tensors in and out besides, 2 to 3 %.
- A bare loop around ONNX Runtime and LiteRT: a process with nothing but that loop; limit 3 %.
- The same bench of a file twice, one after the other; limit 3 %.

In the first two, theirs and our agent take turns in short blocks in a drawn order; both processes are started anew in
each round. The limits are those of a quiet machine, and one that others share is quiet for seconds at a time. So a piece
of work that never changes runs before and after each block (`quiet.py`), and blocks that it finds disturbed are made
again; it alone decides, and the table says how many were set aside. Everything keeps to one core.

Each round gives one ratio, ours to theirs; the table has Hodges and Lehmann's centre and 95 % interval over the rounds
(which needs six of them). A check holds where the centre is within the limit. Of two runs of ours neither is the
reference, and their ratios would cancel: there the table has the larger to the smaller, the median of the pairs. Each
round is a line of `cross_checks.jsonl` as soon as it ends: started again, the script goes on until there are as many
rounds of the code as it stands, on this processor; `SAME_BUT` names code before it whose rounds still count. The
models are kept in `runs/results/cross_checks`.
"""  # noqa: E501 (the first line)

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import hashlib
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from quiet import Quiet

from devices.comparison import signed_rank_interval
from devices.measurement import BenchmarkSettings, Case, benchmark
from devices.peer import JsonLinesProcess
from devices.profile import DeviceProfile, load_profile
from devices.rounds import load
from devices.transports import Agent, open_transport
from devices.transports.process_agent import ProcessAgent
from pipeline.executor import child_environment
from pipeline.keys import modules_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "runs" / "results" / "cross_checks"
ROUNDS = HERE / "cross_checks.jsonl"
NETWORKS = ("mobilenet_v2", "mobilenet_v3_small")
PRECISIONS = ("float32", "int8")
TARGETS = ("litert", "onnxruntime", "openvino")
LIMITS = {"benchmark_app": 0.05, "bare loop": 0.03, "same bench again": 0.03}
SECONDS = 0.5
"""Of inferences of each file in a run of the bench."""
SAME_BUT: dict[str, tuple[str, ...]] = {"11f57402116c": ("mobilenet_v3_small/openvino/int8",), "f2a8791e8394": ()}
"""Code before it that measured all but these files as the code does now. After the first a block takes at least 20 ms,
which 20 inferences of a millisecond take anyway (decision 0023); after the second only words and places changed."""
BLOCKS = 12
BLOCK_S = 0.05
SETTLE_S = 0.02
IMAGES = 4
"""That benchmark_app takes in turn, as our agent does."""
SIZE = 224
WARM_UP_S = 0.3
SETTINGS = BenchmarkSettings(min_count=50, min_time_s=SECONDS, warm_up_time_s=WARM_UP_S)


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="of each check; six or more give intervals")
    parser.add_argument("--only", default="", help="files whose name holds this text, such as litert/int8")
    parser.add_argument("--device", default="local")
    arguments = parser.parse_args()
    profile = load_profile(arguments.device)
    files = {name: path for name, path in make_files().items() if arguments.only in name}
    cpu = facts_of(profile)["cpu_model"]
    known = Rounds(ROUNDS, {"code": code_digest(), "cpu": cpu})
    checks = [(check, name) for name in files for check in checks_of(name)]
    wanted = [(number, check, name) for number in range(arguments.rounds) for check, name in checks]
    missing = [each for each in wanted if len(known.of(*each[1:])) <= each[0]]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} rounds are known", flush=True)
    whole = True
    try:
        measure_missing(profile, files, missing, known)
    except TimeoutError as error:
        print(f"{error}. What was measured is kept; started again, this goes on.", flush=True)
        whole = False
    write(known, files, cpu)
    sys.exit(0 if whole else 1)


def checks_of(name: str) -> tuple[str, str]:
    """Those that a file takes part in."""
    return "benchmark_app" if "openvino" in name else "bare loop", "same bench again"


def measure_missing(
    profile: DeviceProfile, files: dict[str, Path], missing: Sequence[tuple[int, str, str]], known: Rounds
) -> None:
    """Adds what is missing, round by round.

    Raises:
        TimeoutError: The machine was not quiet for too long.
    """
    if not missing:
        return
    quiet = Quiet()
    for number, check, name in missing:
        counted, set_aside = quiet.counted, quiet.set_aside
        measure = twice if check == "same bench again" else beside
        ours, theirs = measure(profile, name, files[name], random.Random(f"{number} {check} {name}"), quiet)
        aside = {"blocks": quiet.counted - counted, "set_aside": quiet.set_aside - set_aside}
        known.add({"check": check, "name": name, "ours_ms": ours, "theirs_ms": theirs, **aside})
        print(f"{number + 1} {check:17} {name:40} {ours:8.3f} ms, ratio {ours / theirs:.3f}", flush=True)


class Rounds:
    """The rounds that were measured so far, a line each, of this code and processor, or of code that does the same."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self._path, self._state = path, state
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]  # the last line is torn where the script was killed
        if whole != data:
            path.write_bytes(whole)
        rounds = [json.loads(line) for line in whole.splitlines()]
        self.all = [each for each in rounds if each["cpu"] == state["cpu"] and _counts(each, state["code"])]

    def of(self, check: str, name: str) -> list[dict[str, Any]]:
        """Those of one check of one file."""
        return [each for each in self.all if (each["check"], each["name"]) == (check, name)]

    def add(self, found: dict[str, Any]) -> None:
        """Keeps one at once."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.all.append({**self._state, "time": now, **found})
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(self.all[-1]) + "\n")


def _counts(known: dict[str, Any], code: str) -> bool:
    if known["code"] == code:
        return True
    changed = SAME_BUT.get(known["code"])
    return changed is not None and known["name"] not in changed


def code_digest() -> str:
    """Of the code that measures on the device, and of what it is held against."""
    hasher = hashlib.sha256()
    runners = {name for name in modules_of("devices.board.agent") if name.startswith("devices.board.runners.")}
    names = sorted({"devices.board.agent", "devices.records", "devices.rounds", *runners})
    sources = [ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names]
    for source in [*sources, *(HERE / f"{name}.py" for name in ("bare_loop", "benchmark_app_blocks", "quiet"))]:
        hasher.update(source.name.encode() + b"\0" + source.read_bytes())
    return hasher.hexdigest()[:12]


def write(known: Rounds, files: dict[str, Path], cpu: str) -> None:
    """The tables of all rounds that are known."""
    rows = [
        row(check, name, [(each["ours_ms"], each["theirs_ms"]) for each in rounds])
        for check in LIMITS
        for name in files
        if (rounds := known.of(check, name))
    ]
    result = {
        "schema_version": 2,
        "cpu": cpu,
        "first": min((each["time"] for each in known.all), default=None),
        "last": max((each["time"] for each in known.all), default=None),
        "blocks": sum(each["blocks"] for each in known.all),
        "set_aside": sum(each["set_aside"] for each in known.all),
        "rows": rows,
    }
    (HERE / "cross_checks.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "cross_checks.md").write_text("\n".join(table(result)) + "\n", encoding="utf-8")
    for each in rows:
        print(line(each))
    print(f"{sum(each['holds'] for each in rows)} of {len(rows)} hold", flush=True)


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
    from pipeline.int8_latency import random_network
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


def bench(profile: DeviceProfile, name: str, path: Path) -> float:
    """The median of a run of our bench, in milliseconds."""
    (case,) = benchmark(profile, [case_of(name, path)], SETTINGS).cases
    if case.latency_ms is None:
        raise RuntimeError(f"{case.id} can't be measured: {case.error}")
    return case.latency_ms.p50


def beside(profile: DeviceProfile, name: str, path: Path, draw: random.Random, quiet: Quiet) -> tuple[float, float]:
    """Medians in milliseconds of our agent and of what it is held against, which take turns; both are new."""
    transport = open_transport(profile)
    with theirs_of(path) as other, transport.start_agent() as agent:
        load(profile, transport, agent, case_of(name, path), timeout_s=60)
        agent.request("warm_up", {"min_count": 10, "min_time_s": WARM_UP_S}, timeout_s=60)
        other.request("measure", {"time_s": WARM_UP_S, "settle_time_s": 0}, timeout_s=60)
        asked = {"ours": agent, "theirs": other}
        blocks: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(BLOCKS):
            order = draw.sample(sorted(asked), 2)
            for who, median in quiet.measured(lambda order=order: [(each, block(asked[each])) for each in order]):
                blocks[who].append(median)
    # The ratio of blocks that ran one after the other: what slowed the machine for a while slowed both.
    ratio = float(np.median(np.array(blocks["ours"]) / np.array(blocks["theirs"])))
    theirs = float(np.median(blocks["theirs"]))
    return ratio * theirs, theirs


@contextlib.contextmanager
def theirs_of(path: Path) -> Iterator[JsonLinesProcess]:
    """What our agent is held against, which takes `measure` as the agent does."""
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        app = path.suffix == ".xml"
        arguments = benchmark_app(path, Path(scratch)) if app else [str(HERE / "bare_loop.py"), str(path)]
        env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
        with JsonLinesProcess([sys.executable, *arguments], env=env, name="what ours is held against") as process:
            if app:
                process.request("prepare", timeout_s=60)
            yield process


def benchmark_app(path: Path, scratch: Path) -> list[str]:
    """The arguments of OpenVINO's program."""
    # The options for hint and threads exclude each other; a file of properties may have both, as our runner does.
    properties = {"CPU": {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": "1",
                          "INFERENCE_PRECISION_HINT": "f32"}}  # fmt: skip
    config = scratch / "config.json"
    config.write_text(json.dumps(properties), encoding="utf-8")
    arguments = [
        str(HERE / "benchmark_app_blocks.py"), "-m", str(path), "-d", "CPU", "-api", "sync", "-hint", "latency",
        "-load_config", str(config), "-niter", "10", "-inference_only", "False",
    ]  # fmt: skip
    for seed in range(IMAGES):
        np.save(scratch / f"{seed}.npy", np.random.default_rng(seed).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8))
        arguments += ["-i", str(scratch / f"{seed}.npy")]
    return arguments


def block(process: Agent | JsonLinesProcess) -> float:
    """The median of one block in milliseconds."""
    params = {"time_s": BLOCK_S, "settle_time_s": SETTLE_S}
    return float(np.median(process.request("measure", params, timeout_s=60)["latencies_ns"])) / 1e6


def twice(
    profile: DeviceProfile,
    name: str,
    path: Path,
    draw: random.Random,  # noqa: ARG001 (both are ours)
    quiet: Quiet,
) -> tuple[float, float]:
    """Medians in milliseconds of two runs of ours, the larger first: neither is the reference."""
    request = ProcessAgent.request

    def when_quiet(agent: ProcessAgent, method: str, *params: Any, **options: Any) -> Any:
        call = functools.partial(request, agent, method, *params, **options)
        return quiet.measured(call) if method == "measure" else call()

    with mock.patch.object(ProcessAgent, "request", when_quiet):
        first, second = bench(profile, name, path), bench(profile, name, path)
    return max(first, second), min(first, second)


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
    if check == "same bench again":
        center, interval = float(np.median(logs)), None
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
        "rounds": len(logs),
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
    lines = [
        "# Our latencies beside others'",
        "",
        f"Written by `cross_checks.py`, {result['cpu']}, one thread, {result['first'][:10]} to {result['last'][:10]}.",
        f"{result['blocks']} measurements from when the machine was quiet; {result['set_aside']} more were set aside.",
        "",
        "Ratio: ours to theirs, Hodges and Lehmann's centre over the rounds with its 95 % interval. Of the same bench",
        "again: the larger of two to the smaller, the median of all pairs.",
        "",
        "| beside | network | runtime | precision | ours ms | theirs ms | ratio | interval | rounds | limit | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in result["rows"]:
        interval = "-" if each["interval"] is None else f"{each['interval'][0]:.3f} to {each['interval'][1]:.3f}"
        lines.append(
            f"| {each['check']} | {each['network']} | {each['target']} | {each['precision']} | {each['ours_ms']:.3f} | "
            f"{each['theirs_ms']:.3f} | {each['ratio']:.3f} | {interval} | {each['rounds']} | {each['limit']:.0%} | "
            f"{'holds' if each['holds'] else '**does not hold**'} |"
        )
    return lines


if __name__ == "__main__":
    main()

"""Measures what `edgeship-board serve` takes beyond bare inference, and how many requests it answers.

    .venv/bin/python docs/results/serving.py [--rounds 20]

Writes `serving.json` and `serving.md`. The model runs in ONNX Runtime on one thread and takes uint8 (1, 224, 224, 3).
Ways are measured in turn, a block of inferences each, so that whatever else the machine does hits all alike. The
client is a bare socket with a connection that is kept; its own cost counts as the server's.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import io
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from serving_alternatives import KINDS

from devices.board.bundle import write_bundle
from devices.board.model import open_model
from devices.board.release_install import Installer

RESULT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_suffix(".md")
SIZE, CLASSES = 224, 1000
BLOCK = 40
RATE_S = 3.0
CLIENTS = 4
LIMIT_MS = 1.0
SMALL, MOBILE = "small", "mobile"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of all ways in turn")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        root = Path(scratch) / "root"
        for name, channels in ((SMALL, ()), (MOBILE, (16, 24, 40, 80, 112, 160))):
            install_network(root, Path(scratch) / f"{name}.onnx", name, channels)
        overhead = {name: measure_overhead(root, name, rounds) for name in (SMALL, MOBILE)}
        rates = measure_rates(root, max(3, rounds // 3))
    record = {
        "label": "measured",
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "load_average": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rounds": rounds,
        "block": BLOCK,
        "overhead_ms": overhead,
        "requests_per_second": rates,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")
    print(page(record))


def install_network(root: Path, path: Path, name: str, channels: tuple[int, ...]) -> None:
    """Writes a network of depthwise separable convolutions, each halving the size, and installs it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    weights, last, before = [], "x0", 3
    for index, after in enumerate(channels):
        for kind, shape, options in (
            (
                "depthwise",
                (before, 1, 3, 3),
                {"group": before, "pads": [1] * 4, "strides": [2 if index < 5 else 1] * 2},
            ),
            ("pointwise", (after, before, 1, 1), {}),
        ):
            values = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"{kind}{index}"))
            out = f"{kind}{index}_out"
            nodes.append(helper.make_node("Conv", [last, f"{kind}{index}"], [out], **options))
            nodes.append(helper.make_node("Relu", [out], [f"{out}_relu"]))
            last = f"{out}_relu"
        before = after
    weights.append(numpy_helper.from_array(rng.normal(0, 0.01, (before, CLASSES)).astype(np.float32), "head"))
    nodes.append(helper.make_node("ReduceMean", [last], ["pooled"], axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["pooled", "head"], ["logits"]))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])
    graph = helper.make_graph(nodes, name, [image], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    manifest = {
        "schema_version": 2,
        "name": name,
        "target": "onnxruntime",
        "precision": "float32",
        "model": path.name,
        "classes": [str(index) for index in range(CLASSES)],
        "preprocess": {"size": [SIZE, SIZE]},
        "signature": {
            "inputs": [{"name": "image", "dtype": "uint8", "shape": [1, SIZE, SIZE, 3], "transform": None}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, CLASSES], "kind": "logits"}],
        },
        "golden_tolerance": 0.0,
        "inputs": [{"name": "image", "file": path.name, "transform": None}],  # no self-test runs that would read them
        "outputs": [{"name": "logits", "file": path.name}],
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    settings, bundle = root / ".board" / "settings.json", path.with_suffix(".edgeship")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text('{"allow_unsigned": true}', encoding="utf-8")
    with bundle.open("wb") as stream:
        write_bundle(stream, json.dumps(manifest).encode(), None, {path.name: str(path)})
    Installer(str(root), who="the measurement", self_test=lambda *_: {}).install(str(bundle))


@contextlib.contextmanager
def process(*command: str) -> Iterator[int]:
    """A server on a free port, which it prints first."""
    environment = {**os.environ, "PYTHONPATH": str(RESULT.parents[2])}
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            yield int(server.stdout.readline().strip().rpartition(":")[2]) if server.stdout else 0
        finally:
            server.terminate()


def ours(root: Path, name: str, workers: int, threads: int) -> contextlib.AbstractContextManager[int]:
    """The server of this project."""
    options = ("--workers", str(workers), "--threads", str(threads), "--name", name)
    return process("-m", "devices.board", "serve", "--root", str(root), "--port", "0", *options)


def measure_overhead(root: Path, name: str, rounds: int) -> dict[str, Any]:
    """Median milliseconds of bare inference, and by way what is added to it."""
    pixels = np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    model = open_model(name, root=str(root), num_threads=1)
    alternatives = str(Path(__file__).with_name("serving_alternatives.py"))
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(ours(root, name, 1, 1))
        ways: dict[str, Callable[[], object]] = {"bare": lambda: model.run([pixels])}
        for way, (path, body, headers) in requests(name, pixels).items():
            ways[way] = stack.enter_context(client(port, path, body, headers))
        for kind in KINDS:
            other = stack.enter_context(process(alternatives, kind, str(root), name))
            ways[kind] = stack.enter_context(client(other, "/", pixels.tobytes(), {}))
        medians: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, ask in ways.items():
                medians[way].append(statistics.median(timed(ask) for _ in range(BLOCK)))
    bare = medians.pop("bare")
    added = {way: [each - base for each, base in zip(values, bare, strict=True)] for way, values in medians.items()}
    return {
        "bare_p50": round(statistics.median(bare), 3),
        **{
            way: {"p50": round(statistics.median(values), 3), "quartiles": quartiles(values)}
            for way, values in added.items()
        },
    }


def quartiles(values: list[float]) -> list[float]:
    """The first and the third, of the rounds."""
    found = statistics.quantiles(values, n=4)
    return [round(found[0], 3), round(found[2], 3)]


def requests(name: str, pixels: np.ndarray[Any, Any]) -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """By way: path, body and headers."""
    tensor = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8"}
    binary = {**tensor, "parameters": {"binary_data_size": pixels.nbytes}}
    text = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True}}).encode()
    infer, classify = f"/v2/models/{name}/infer", f"/v2/models/{name}/classify"
    jpeg = io.BytesIO()
    Image.fromarray(pixels[0]).save(jpeg, "JPEG", quality=90)
    header = {"Inference-Header-Content-Length": str(len(text))}
    values = json.dumps({"inputs": [{**tensor, "data": pixels.reshape(-1).tolist()}]}).encode()
    return {
        "infer, binary": (infer, text + pixels.tobytes(), header),
        "infer, JSON": (infer, values, {}),
        "classify, PPM": (classify, b"P6 %d %d 255\n" % (SIZE, SIZE) + pixels.tobytes(), {}),
        "classify, JPEG": (classify, jpeg.getvalue(), {}),
    }


@contextlib.contextmanager
def client(port: int, path: str, body: bytes, headers: dict[str, str]) -> Iterator[Callable[[], object]]:
    """What sends one request and waits for its whole answer."""
    lines = [f"POST {path} HTTP/1.1", "Host: board", f"Content-Length: {len(body)}"]
    data = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body
    with socket.create_connection(("127.0.0.1", port), timeout=60) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> None:
            stream.sendall(data)
            received = b""
            while b"\r\n\r\n" not in received:
                received += stream.recv(1 << 16)
            head, _, rest = received.partition(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise RuntimeError(f"the server answered {received[:300]!r}")
            match = re.search(rb"content-length: (\d+)", head.lower())
            left = int(match.group(1)) - len(rest) if match else 0
            while left > 0:
                left -= len(stream.recv(1 << 16))

        for _ in range(5):
            ask()
        yield ask


def timed(ask: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    ask()
    return (time.perf_counter() - begun) * 1e3


def measure_rates(root: Path, rounds: int) -> list[dict[str, Any]]:
    """Requests a second of so many clients at once, for two settings of workers."""
    pixels = np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    path, body, headers = requests(MOBILE, pixels)["infer, binary"]
    cores = len(os.sched_getaffinity(0))
    settings = [(1, cores), (cores, 1)]
    found: list[list[float]] = [[] for _ in settings]
    with contextlib.ExitStack() as stack:
        asking = []
        for workers, threads in settings:
            port = stack.enter_context(ours(root, MOBILE, workers, threads))
            asking.append([stack.enter_context(client(port, path, body, headers)) for _ in range(CLIENTS)])
        for _ in range(rounds):
            for index, clients in enumerate(asking):
                found[index].append(rate(clients))
    return [
        {
            "workers": workers,
            "threads": threads,
            "clients": CLIENTS,
            "p50": round(statistics.median(values), 1),
            "quartiles": quartiles(values),
        }
        for (workers, threads), values in zip(settings, found, strict=True)
    ]


def rate(clients: list[Callable[[], object]]) -> float:
    """Requests a second, all clients together."""
    counts = [0] * len(clients)
    deadline = time.perf_counter() + RATE_S

    def work(index: int) -> None:
        while time.perf_counter() < deadline:
            clients[index]()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(clients))]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def page(record: dict[str, Any]) -> str:
    """The tables."""
    machine = record["machine"]
    lines = [
        "# Serving: what the server takes beyond the model",
        "",
        f"Written by `docs/results/serving.py` on {record['date']}; all values are `measured`,",
        f"on {machine['cores']} cores of {machine['cpu']}, Python {machine['python']}. The load was",
        f"{record['load_average']:.1f}: other work ran meanwhile. Medians of {record['rounds']} rounds, in each",
        f"every way has {record['block']} requests in turn; in brackets the rounds' quartiles. The input is uint8",
        "(1, 224, 224, 3), the model runs in ONNX Runtime on one thread, with one worker. `http.server` and `asyncio`",
        "answer bare bytes without protocol, limits and checks (`serving_alternatives.py`).",
        "",
        "| way | " + " | ".join(f"beyond `{name}`, ms" for name in record["overhead_ms"]) + " |",
        "|---|" + "---|" * len(record["overhead_ms"]),
    ]
    first = next(iter(record["overhead_ms"].values()))
    bare = " | ".join(f"({rows['bare_p50']:.3f} by itself)" for rows in record["overhead_ms"].values())
    lines.append(f"| bare inference | {bare} |")
    for way in list(first)[1:]:
        cells = [
            f"{rows[way]['p50']:.3f} [{rows[way]['quartiles'][0]:.3f}, {rows[way]['quartiles'][1]:.3f}]"
            for rows in record["overhead_ms"].values()
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    worst = max(rows["infer, binary"]["p50"] for rows in record["overhead_ms"].values())
    verdict = "within" if worst <= LIMIT_MS else "beyond"
    lines += [
        "",
        f"Binary tensors take {worst:.3f} ms at most: {verdict} the limit of {LIMIT_MS:g} ms.",
        "",
        f"## Requests a second, `{MOBILE}`, binary, {CLIENTS} clients on the same cores",
        "",
        "| workers | threads each | requests/s | quartiles |",
        "|---|---|---|---|",
    ]
    for row in record["requests_per_second"]:
        low, high = row["quartiles"]
        lines.append(f"| {row['workers']} | {row['threads']} | {row['p50']:.0f} | {low:.0f} to {high:.0f} |")
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    """As the kernel tells it."""
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return match.group(1) if match else platform.machine()


if __name__ == "__main__":
    main()

"""A client that asks a server of models without a pause, until its standard input ends.

`python -m tests.hammer URL NAME`

A line for each release that begins to answer, and at the end one JSON object: `requests`, `failures` (texts),
`releases` (in the order in which they answered), `unlike` (releases that gave two answers to one image). With
`--token` each request carries the environment variable HAMMER_TOKEN.
"""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
NUM_CLIENTS = 2
TIMEOUT_S = 120
RECENT = 4 * NUM_CLIENTS


@dataclass
class Seen:
    """What all clients have seen."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)
    recent: list[str] = field(default_factory=list)
    answers: dict[str, list[float]] = field(default_factory=dict)
    unlike: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, answer: dict[str, Any]) -> None:
        release, values = answer["model_version"], [float(value) for value in answer["outputs"][0]["data"]]
        with self.lock:
            self.requests += 1
            known = self.answers.setdefault(release, values)
            reach = max(map(abs, known)) or 1.0
            if any(abs(one - other) > 1e-3 * reach for one, other in zip(known, values, strict=True)):
                self.unlike.add(release)
            # During a switch requests that began before it are answered by the release before.
            before = self.recent[-RECENT:]
            self.recent = [*before, release]
            if self.releases[-1:] != [release] and release not in before:
                self.releases.append(release)
                tell(release)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def body_of(metadata: dict[str, Any]) -> bytes:
    """A request with the same random tensor each time."""
    (record,) = metadata["inputs"]
    count = 1
    for size in record["shape"]:
        count *= size
    draw = random.Random(0)
    real = record["datatype"].startswith("FP")
    data = [draw.uniform(-1, 1) if real else draw.randrange(128) for _ in range(count)]
    return json.dumps({"inputs": [{**record, "data": data}]}).encode()


def ask(connection: HTTPConnection, path: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ValueError(f"{answer.status}: {content[:200]!r}")
    found: dict[str, Any] = json.loads(content)
    return found


def main(url: str, name: str, *options: str) -> int:
    parts = urlsplit(url)
    headers = {"Authorization": f"Bearer {os.environ['HAMMER_TOKEN']}"} if "--token" in options else {}

    def connect() -> HTTPConnection:
        return HTTPConnection(str(parts.hostname), int(parts.port or 80), timeout=TIMEOUT_S)

    body = body_of(ask(connect(), f"/v2/models/{name}", None, headers))
    seen, ended = Seen(), threading.Event()

    def hammer(*, keep: bool) -> None:
        connection = connect()
        while not ended.is_set():
            try:
                seen.add(ask(connection, f"/v2/models/{name}/infer", body, headers))
            except Exception as error:  # noqa: BLE001 (each is a failure, and the next request may do better)
                seen.failures.append(repr(error))
                connection.close()
                ended.wait(0.1)
            if not keep:
                connection.close()
        connection.close()

    clients = [threading.Thread(target=hammer, kwargs={"keep": bool(number % 2)}) for number in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    sys.stdin.read()
    ended.set()
    for client in clients:
        client.join()
    summary = {"requests": seen.requests, "failures": seen.failures, "releases": seen.releases}
    tell(json.dumps({**summary, "unlike": sorted(seen.unlike)}))
    return 0


class Hammer:
    """The client as a process of its own.

    Args:
        command: That starts it, wherever that is.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines = queue.SimpleQueue[str]()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def wait_for(self, release: str) -> None:
        """Until a release begins to answer."""
        while self._lines.get(timeout=TIMEOUT_S) != release:
            pass

    def end(self) -> dict[str, Any]:
        """What it says of all requests."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(TIMEOUT_S) == 0
        self._reader.join()
        while not (line := self._lines.get_nowait()).startswith("{"):
            pass
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        self._process.kill()
        self._process.wait(30)
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

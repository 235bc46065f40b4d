"""`edgeship-board serve` as a process of its own, and raw requests to it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, clean_environment


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class BoardServer:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    tls: ssl.SSLContext | None = None
    log: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def connect(self, *, timeout_s: float = 20) -> HTTPConnection:
        if self.tls is not None:
            return HTTPSConnection("localhost", self.port, timeout=timeout_s, context=self.tls)
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def raw(self, data: bytes, *, timeout_s: float = 20) -> bytes:
        """Sends bytes, then nothing more, and returns all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as stream:
            with contextlib.suppress(OSError):
                stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionError):
                while piece := stream.recv(1 << 16):
                    received += piece
            return received

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match.group(1)) / 1024

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(
    root: Path, *arguments: str, tls: ssl.SSLContext | None = None, program: Path | None = None
) -> Iterator[BoardServer]:
    """Serves what is installed under a root on a free port; by the program in one file where it is given."""
    started = ["-m", "devices.board"] if program is None else [str(program)]
    command = [sys.executable, *started, "serve", "--root", str(root), "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT if program is None else "/",
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = process.stderr
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(iter(errors.readline, "")))
    reader.start()
    try:
        url = process.stdout.readline().strip()
        assert url, f"it did not start: {log}"
        yield BoardServer(url, process, tls, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        reader.join()
        process.stdout.close()
        errors.close()

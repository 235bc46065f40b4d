"""Servers that are well, or not, with a release; and a watcher in this process."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from devices.board.release_health import make_probe
from devices.board.release_home import Home, linked
from devices.board.release_service import Service, set_service
from devices.board.release_watch import watch_over

FAULTS = ("gone", "silent", "not ready", "crashes", "restarts", "old", "switch failed", "errors", "no JSON")


@dataclass
class FakeServer:
    """Serves what `current` names, as `edgeship-board serve` does; with a release that is `bad` it is not well."""

    root: Path
    url: str = ""
    bad: str = ""
    fault: str = ""
    served: str = ""
    asked: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def use(self, **settings: Any) -> None:
        """Sets it as the service of the root."""
        set_service(str(self.root), None, {"url": self.url, "come_up_s": 30, "watch_s": 0.1, **settings})

    def answer(self, path: str) -> tuple[int, str] | None:
        """Status and body; None closes the connection without."""
        current = linked(str(self.root / "net" / "current")) or ""
        fault = self.fault if current == self.bad else ""
        self.served = self.served if fault in {"old", "switch failed"} else current
        self.asked[current] = self.asked.get(current, 0) + (path == "/v2/models/net/ready")
        self.counts[fault] = self.counts.get(fault, 0) + 1
        if fault == "gone" or (fault == "crashes" and self.asked[current] > 2):
            return None
        if fault == "silent":
            return 503, ""
        if path == "/metrics":
            started = 1.0 + self.counts.get("restarts", 0)
            failed, errors = self.counts.get("switch failed", 0), self.counts.get("errors", 0)
            return 200, (
                f"process_start_time_seconds {started}\n"
                f'edgeship_model_switches_total{{model="net",outcome="failed"}} {failed}\n'
                f'edgeship_model_errors_total{{model="net",release="{self.bad}",code="500"}} {errors}\n'
            )
        if path.endswith("/ready"):
            return (400 if fault == "not ready" else 200), "{}"
        return 200, "" if fault == "no JSON" else json.dumps({"name": "net", "versions": [self.served]})


@contextlib.contextmanager
def fake_server(root: Path) -> Iterator[FakeServer]:
    fake = FakeServer(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = fake.answer(self.path)
            if answer is None:
                self.close_connection = True
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    class QuietServer(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A watcher that is killed leaves its connection open."""

    with QuietServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


class HereWatcher:
    """A watcher in this process, with the disk of the installer; see `devices.board.release_watcher.Watcher`."""

    def __init__(self, home: Home, service: Service) -> None:
        self._home, self._service = home, service
        self._probe = make_probe(service, home.name)

    def go(self) -> None:
        """See `Watcher`."""

    def abandon(self) -> None:
        """See `Watcher`."""

    def outcome(self, on_step: Any) -> dict[str, Any] | None:
        try:
            return watch_over(self._home, self._service, self._probe, on_step)
        except OSError:
            return None

"""Connections and threads: one thread for each client, which also runs the model, so that no request changes threads.

Measured beside a request handler of `http.server` and beside asyncio with a pool of threads, see
docs/decisions/0019-serving.md.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
import traceback
from typing import Callable, Dict, List, NamedTuple, Optional

from .metrics import Metrics
from .routes import Application, error_response
from .wire import Connection, ConnectionEnded, HttpError, Response

Tell = Callable[[str], None]

_BACKLOG = 128
_SWITCH_INTERVAL_S = 0.001
_MARKED_S = 0.05
"""After so long a thread has marked the request that it has begun to read."""
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


class Patience(NamedTuple):
    """How long the server waits, in seconds, and for how many.

    Attributes:
        idle_s: Between two requests of a client.
        request_s: For all of a request, from its first byte on.
        answer_s: For a client to take its answer.
        drain_s: For the requests at work, when the server stops.
        max_connections: At once; more are answered with 503.
    """

    idle_s: float = 60.0
    request_s: float = 20.0
    answer_s: float = 20.0
    drain_s: float = 20.0
    max_connections: int = 64


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OSError: The address is taken or not of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address, family=family, backlog=_BACKLOG)


class Server:
    """Accepts clients until it is told to stop, then finishes what has begun.

    Args:
        application: What answers.
        listener: As `listen` gives it; the server closes it.
        tls: Of the connections, None for plain ones.
        patience: See there.
        counted: Where requests are counted.
        tell: Takes lines for the log.
    """

    def __init__(
        self,
        application: Application,
        listener: socket.socket,
        *,
        tls: Optional[ssl.SSLContext],
        patience: Patience,
        counted: Metrics,
        tell: Tell,
    ) -> None:
        self._application, self._listener, self._tls = application, listener, tls
        self._patience, self._metrics, self._tell = patience, counted, tell
        self._lock = threading.Lock()
        self._idle: Dict[socket.socket, bool] = {}
        """The open connections, each with whether it waits for a request."""
        self._stopping = False  # no Event: a handler of a signal may interrupt another in its lock
        application.gauges[("edgeship_connections", "gauge", "Open connections.")] = lambda: [
            ((), float(len(self._idle)))
        ]

    def stop(self) -> None:
        """Lets `run` return; may be called from a handler of a signal."""
        self._stopping = True

    def run(self, tick: Callable[[], None] = lambda: None, tick_s: float = 0.5) -> bool:
        """Serves until `stop`.

        Args:
            tick: Called again and again, with at most `tick_s` between.
            tick_s: See there.

        Returns:
            Whether all requests were finished when it stopped.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._listener.settimeout(tick_s)
        due = 0.0
        while not self._stopping:
            if time.monotonic() >= due:
                tick()
                due = time.monotonic() + tick_s
            self._accept()
        self._application.ready = False
        self._listener.settimeout(0)  # who has connected already is answered still
        while self._accept():
            pass
        self._listener.close()
        return self._drain()

    def _accept(self) -> bool:
        try:
            stream, _ = self._listener.accept()
        except (BlockingIOError, TimeoutError, socket.timeout, InterruptedError):
            return False
        except OSError as error:  # such as no file descriptor left
            self._tell(f"a connection could not be accepted: {error}")
            time.sleep(0.1)
            return False
        with self._lock:
            full = len(self._idle) >= self._patience.max_connections
            if not full:
                self._idle[stream] = True
        if full:
            self._refuse(stream)
            return True
        try:
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()
        except RuntimeError as error:  # no thread left
            self._tell(f"a connection could not be served: {error}")
            self._forget(stream)
        return True

    def _refuse(self, stream: socket.socket) -> None:
        with contextlib.suppress(OSError), stream:
            stream.settimeout(0)
            if self._tls is None:
                stream.send(_FULL)
                stream.shutdown(socket.SHUT_WR)

    def _forget(self, stream: socket.socket) -> None:
        with self._lock:
            self._idle.pop(stream, None)
        with contextlib.suppress(OSError):
            stream.close()

    def _serve(self, stream: socket.socket) -> None:
        """One client, from the first request to the last."""
        shown = stream
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                stream.settimeout(self._patience.request_s)
                shown = self._tls.wrap_socket(stream, server_side=True)
                with self._lock:  # wrapping takes the descriptor over
                    self._idle[shown] = self._idle.pop(stream)
            connection = Connection(shown)
            while self._answer_one(connection, shown):
                pass
        except (ConnectionEnded, OSError):  # of TLS as well: a client without a certificate
            pass
        except Exception:  # noqa: BLE001 (one client must not end the server; the fault is told)
            self._tell(traceback.format_exc())
        finally:
            self._forget(shown)

    def _answer_one(self, connection: Connection, stream: socket.socket) -> bool:
        """Answers the next request; returns whether another may follow."""
        patience = self._patience
        try:
            head = connection.read_head(idle_s=patience.idle_s, request_s=patience.request_s)
        except HttpError as error:
            self._metrics.request("other", error.status, 0.0)
            connection.send(error_response(error), keep_alive=False, head_only=False, timeout_s=patience.answer_s)
            connection.linger()
            return False
        begun = time.perf_counter()
        self._mark(stream, idle=False)
        endpoint = "other"
        try:
            endpoint, response = self._application.handle(head, connection)
        except ConnectionEnded:
            raise
        except Exception:  # noqa: BLE001 (a fault of ours is answered and told, and the server goes on)
            self._tell(traceback.format_exc())
            response = error_response(HttpError(500, "the server failed at this request; its log says why", close=True))
        keep_alive = self._may_go_on(response, connection, wanted=head.keep_alive)
        head_only = head.method == "HEAD"
        connection.send(response, keep_alive=keep_alive, head_only=head_only, timeout_s=patience.answer_s)
        self._metrics.request(endpoint, response.status, time.perf_counter() - begun)
        if not keep_alive:
            connection.linger()
            return False
        self._mark(stream, idle=True)
        return True

    def _may_go_on(self, response: Response, connection: Connection, *, wanted: bool) -> bool:
        ends = response.close or self._stopping
        return wanted and not ends and connection.is_between_requests

    def _mark(self, stream: socket.socket, *, idle: bool) -> None:
        with self._lock:
            self._idle[stream] = idle
        if idle and self._stopping:
            _end_reading(stream)

    def _drain(self) -> bool:
        """Ends the connections that wait, and waits for the others."""
        time.sleep(_MARKED_S)
        with self._lock:
            waiting: List[socket.socket] = [stream for stream, idle in self._idle.items() if idle]
        for stream in waiting:
            _end_reading(stream)
        deadline = time.monotonic() + self._patience.drain_s
        while time.monotonic() < deadline:
            with self._lock:
                if not self._idle:
                    return True
            time.sleep(0.01)
        return False


def _end_reading(stream: socket.socket) -> None:
    """Lets a thread that waits for a request go on as if the client had gone; what has arrived is read still."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(stream, socket.SHUT_RD)  # of a TLS socket the connection below it

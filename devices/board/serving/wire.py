"""HTTP/1.1 as far as a server of models needs it, read strictly and with bounds (RFC 9112).

Whatever could be read in two ways is refused: two lengths, a length beside chunks, folded lines, bare line feeds,
spaces before a colon. A body goes straight from the socket into the memory that the model reads.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from http import HTTPStatus
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 64

_MAX_CHUNK_LINE_BYTES = 256
_BUFFER_BYTES = 64 * 1024
_LINGER_BYTES, _LINGER_S = 64 << 20, 2.0
_JOINED_BYTES = 64 * 1024
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (/[\x21-\x7e]*) HTTP/1\.([01])")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*)?)")
_ANY_VERSION = re.compile(rb"[^ ]+ [^ ]+ HTTP/\d\.\d")
_SINGLE = ("content-length", "transfer-encoding", "host", "authorization", "inference-header-content-length")


class HttpError(Exception):
    """A request that is answered with an error.

    Args:
        status: Of the answer.
        message: What was received, what was expected.
        headers: Further ones of the answer.
        close: Whether what follows on the connection can't be told from this request any more.
    """

    def __init__(
        self, status: int, message: str, *, headers: Optional[Mapping[str, str]] = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.close = status, message, close
        self.headers = dict(headers or {})


class ConnectionEnded(Exception):
    """The client has gone, or was silent for too long between two requests."""


class Head(NamedTuple):
    """The first lines of a request.

    Attributes:
        method: Such as `POST`.
        path: Without the query.
        query: What follows the question mark, as it came.
        headers: By name in lower case; those that come twice are joined by commas.
        keep_alive: Whether the client wants to go on with the connection.
        length: Of the body in bytes; None for a chunked one.
    """

    method: str
    path: str
    query: str
    headers: Dict[str, str]
    keep_alive: bool
    length: Optional[int]


class Response(NamedTuple):
    """An answer.

    Attributes:
        status: Such as 200.
        body: All of it.
        content_type: Of the body.
        headers: Further ones.
        close: Whether the connection ends with it.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}
    close: bool = False


def parse_head(data: bytes) -> Head:
    """Reads a request's head.

    Args:
        data: Without the empty line that ends it.

    Raises:
        HttpError: It is none, or could be read in two ways.
    """
    first, *lines = data.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        if _ANY_VERSION.fullmatch(first) and b" HTTP/1." not in first:
            raise HttpError(505, "the request is of another version than HTTP/1.0 or HTTP/1.1", close=True)
        raise _bad("the first line of the request is no method, path and version")
    if len(lines) > MAX_HEADERS:
        raise HttpError(431, f"the request has {len(lines)} headers; expected {MAX_HEADERS} at most", close=True)
    headers: Dict[str, str] = {}
    for line in lines:
        header = _HEADER_LINE.fullmatch(line)
        if header is None:
            raise _bad("a header of the request is not 'name: value' on one line")
        name, value = header.group(1).decode("ascii").lower(), header.group(2).decode("latin-1").rstrip(" \t")
        if name in headers:
            if name in _SINGLE:
                raise _bad(f"the header {name} comes twice; expected it once")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    path, _, query = match.group(2).decode("ascii").partition("?")
    is_old = match.group(3) == b"0"
    if not is_old and "host" not in headers:
        raise _bad("the request has no header host, which HTTP/1.1 asks for")
    wanted = [token.strip() for token in headers.get("connection", "").lower().split(",")]
    keep_alive = "close" not in wanted and (not is_old or "keep-alive" in wanted)
    return Head(match.group(1).decode("ascii"), path, query, headers, keep_alive, _length(headers, is_old))


def _length(headers: Mapping[str, str], is_old: bool) -> Optional[int]:
    """The length of the body; None for chunks."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or is_old:
            raise _bad("the request has chunks beside a length, or chunks in HTTP/1.0")
        if coding.lower() != "chunked":
            raise HttpError(501, f"the transfer-encoding is '{coding[:32]}'; expected 'chunked' or none", close=True)
        return None
    if length is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise _bad("the content-length is no whole number")
    return int(length)


def _bad(message: str) -> HttpError:
    return HttpError(400, message, close=True)


class Connection:
    """One client, request after request.

    Args:
        stream: The connected socket.
        clock: Seconds.
    """

    def __init__(self, stream: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket, self._clock = stream, clock
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0
        self._deadline = 0.0
        self._unread: Optional[int] = 0

    @property
    def is_between_requests(self) -> bool:
        """Whether all of the last request was read, so that the next one can be told from it."""
        return self._unread == 0

    def read_head(self, *, idle_s: float, request_s: float) -> Head:
        """Waits for the next request.

        Args:
            idle_s: How long the client may be silent before it.
            request_s: How long the whole request may take from its first byte on, its body included.

        Raises:
            ConnectionEnded: There is none.
            HttpError: It is none that can be answered otherwise.
        """
        self._deadline = self._clock() + idle_s
        if self._begin == self._end:
            try:
                self._fill()
            except HttpError as error:
                raise ConnectionEnded from error
        self._deadline = self._clock() + request_s
        searched = self._begin
        while True:
            found = self._buffer.find(b"\r\n\r\n", searched, self._end)
            if found >= 0 or self._end - self._begin > MAX_HEAD_BYTES:
                break
            searched = max(self._begin, self._end - 3)
            kept = self._begin
            self._fill()
            searched -= kept - self._begin
        if found < 0 or found - self._begin > MAX_HEAD_BYTES:
            raise HttpError(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes", close=True)
        head = bytes(self._view[self._begin : found])
        self._begin = found + 4
        self._unread = None
        parsed = parse_head(head)
        self._unread = parsed.length
        return parsed

    def expect_continue(self, head: Head) -> None:
        """Tells a client that waits for it to send the body."""
        expected = head.headers.get("expect")
        if expected is None:
            return
        if expected.lower() != "100-continue":
            raise HttpError(417, "the header expect is not '100-continue'", close=True)
        if self._begin == self._end:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def read_into(self, target: memoryview) -> None:
        """Fills the memory with the next bytes of a body that is not chunked.

        Raises:
            HttpError: They did not come in time.
            ConnectionEnded: The client has gone.
        """
        self._read_exactly(target)
        self._unread = (self._unread or 0) - len(target)

    def _read_exactly(self, target: memoryview) -> None:
        done = min(len(target), self._end - self._begin)
        target[:done] = self._view[self._begin : self._begin + done]
        self._begin += done
        while done < len(target):
            done += self._receive(target[done:])

    def read_chunks(self, limit: int, reserve: Callable[[int], None]) -> bytearray:
        """The body of a request in chunks.

        Args:
            limit: Of its bytes.
            reserve: Told of the bytes of each chunk before they are read.

        Raises:
            HttpError: The chunks are broken, too many or too slow.
            ConnectionEnded: The client has gone.
        """
        body = bytearray()
        while True:
            line = self._read_line()
            match = re.fullmatch(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e]*)?", line)
            if match is None:
                raise _bad("a chunk of the body does not begin with its length")
            size = int(match.group(1), 16)
            if size == 0:
                break
            if len(body) + size > limit:
                raise HttpError(413, f"the body has more than {limit} bytes", close=True)
            reserve(size)
            begin = len(body)
            body.extend(bytes(size))
            with memoryview(body) as view:
                self._read_exactly(view[begin:])
            if self._read_line() != b"":
                raise _bad("a chunk of the body is longer than its length says")
        for _ in range(MAX_HEADERS):
            if self._read_line() == b"":
                self._unread = 0
                return body
        raise _bad("the body has too many trailing headers")

    def _read_line(self) -> bytes:
        while True:
            found = self._buffer.find(b"\r\n", self._begin, self._end)
            if found >= 0:
                break
            if self._end - self._begin > _MAX_CHUNK_LINE_BYTES:
                raise _bad("a line between the chunks of the body is too long")
            self._fill()
        line = bytes(self._view[self._begin : found])
        self._begin = found + 2
        return line

    def _fill(self) -> None:
        """Receives at least one byte into the buffer."""
        if self._begin:
            kept = self._end - self._begin
            self._buffer[:kept] = self._buffer[self._begin : self._end]
            self._begin, self._end = 0, kept
        self._end += self._receive(self._view[self._end :])

    def _receive(self, target: memoryview) -> int:
        left = self._deadline - self._clock()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            count = self._socket.recv_into(target)
        except (TimeoutError, socket.timeout) as error:  # two classes before Python 3.10
            raise HttpError(408, "the request did not come in time", close=True) from error
        except OSError as error:
            raise ConnectionEnded from error
        if not count:
            raise ConnectionEnded
        return count

    def send(self, response: Response, *, keep_alive: bool, head_only: bool, timeout_s: float) -> None:
        """Sends an answer.

        Raises:
            ConnectionEnded: The client has gone or does not read.
        """
        lines: List[str] = [
            f"HTTP/1.1 {response.status} {_reason(response.status)}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        if not keep_alive:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        with contextlib.suppress(OSError):
            self._socket.settimeout(timeout_s)
        if head_only:
            self._send(head)
        elif len(response.body) <= _JOINED_BYTES:
            self._send(head + response.body)
        else:
            self._send(head)
            self._send(response.body)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionEnded from error

    def linger(self) -> None:
        """Reads on for a moment after the last answer: closed at once, it could be lost with what was not read."""
        deadline = self._clock() + _LINGER_S
        received = 0
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while received < _LINGER_BYTES and self._clock() < deadline:
                self._socket.settimeout(max(0.01, deadline - self._clock()))
                count = self._socket.recv_into(self._view)
                if not count:
                    break
                received += count


def aligned_bytes(size: int) -> Tuple[memoryview, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """Memory that is not cleared first, aligned for every type of number; as a view to write and as an array."""
    array = np.empty(size, np.uint8)
    return array.data, array


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"

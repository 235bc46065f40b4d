from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.board.serving.wire import (
    MAX_HEAD_BYTES,
    Connection,
    ConnectionEnded,
    HttpError,
    Response,
    aligned_bytes,
    parse_head,
)


def head(*lines: str, first: str = "POST /v2/models/net/infer?a=b HTTP/1.1") -> bytes:
    return "\r\n".join([first, "Host: board", *lines]).encode("latin-1")


def test_a_head() -> None:
    parsed = parse_head(head("Content-Length: 12", "X-Two: a", "x-two:  b \t"))
    assert (parsed.method, parsed.path, parsed.query) == ("POST", "/v2/models/net/infer", "a=b")
    assert parsed.headers == {"host": "board", "content-length": "12", "x-two": "a, b"}
    assert (parsed.length, parsed.keep_alive) == (12, True)


@dataclass(frozen=True)
class Refused:
    id: str
    data: bytes
    status: int = 400


@pytest.mark.parametrize(
    "case",
    [
        Refused("nothing", b""),
        Refused("no version", b"GET /"),
        Refused("HTTP/2", b"PRI /x HTTP/2.0", 505),
        Refused("no path", b"GET board HTTP/1.1\r\nHost: b"),
        Refused("a whole address", b"GET http://board/ HTTP/1.1\r\nHost: b"),
        Refused("no host", b"GET / HTTP/1.1"),
        Refused("two hosts", head("Host: other")),
        Refused("two lengths", head("Content-Length: 1", "Content-Length: 1")),
        Refused("a list of lengths", head("Content-Length: 1, 1")),
        Refused("a signed length", head("Content-Length: +1")),
        Refused("a length in another script", head("Content-Length: \xb2")),
        Refused("a length beside chunks", head("Content-Length: 1", "Transfer-Encoding: chunked")),
        Refused("chunks in HTTP/1.0", head("Transfer-Encoding: chunked", first="POST / HTTP/1.0")),
        Refused("another coding", head("Transfer-Encoding: gzip, chunked"), 501),
        Refused("a space before the colon", head("Content-Length : 1")),
        Refused("a folded line", head("X: a", " b")),
        Refused("a bare line feed", head("X: a\nContent-Length: 3")),
        Refused("a bare carriage return", head("X: a\rContent-Length: 3")),
        Refused("a null", head("X: a\0b")),
        Refused("no colon", head("X")),
        Refused("a name with spaces", head("X Y: a")),
        Refused("many headers", head(*(f"X{index}: a" for index in range(70))), 431),
    ],
    ids=lambda case: case.id,
)
def test_heads_that_are_refused(case: Refused) -> None:
    with pytest.raises(HttpError) as refused:
        parse_head(case.data)
    assert refused.value.status == case.status
    assert refused.value.close


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    with contextlib.suppress(HttpError):
        assert parse_head(data).path.startswith("/")


class Pair:
    """A connection and the client's end of it."""

    def __init__(self) -> None:
        ours, self.client = socket.socketpair()
        self._ours = ours
        self.connection = Connection(ours)

    def send(self, data: bytes, *, piece: int = 0) -> None:
        """Sends from another thread, so that no buffer is too small."""

        def work() -> None:
            for begin in range(0, len(data), piece or len(data)):
                self.client.sendall(data[begin : begin + (piece or len(data))])

        threading.Thread(target=work, daemon=True).start()

    def read_head(self) -> object:
        return self.connection.read_head(idle_s=2, request_s=2)

    def close(self) -> None:
        self._ours.close()
        self.client.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


@pytest.mark.parametrize("piece", [0, 1, 7])
def test_requests_one_after_another(pair: Pair, piece: int) -> None:
    pair.send((head("Content-Length: 5") + b"\r\n\r\n" + b"01234") * 3, piece=piece)
    for _ in range(3):
        pair.read_head()
        assert not pair.connection.is_between_requests
        view, array = aligned_bytes(5)
        pair.connection.read_into(view)
        assert array.tobytes() == b"01234"
        assert pair.connection.is_between_requests


def test_a_large_body(pair: Pair) -> None:
    body = bytes(range(256)) * 4000
    pair.send(head(f"Content-Length: {len(body)}") + b"\r\n\r\n" + body)
    pair.read_head()
    view, array = aligned_bytes(len(body))
    pair.connection.read_into(view)
    assert array.tobytes() == body


@pytest.mark.parametrize("piece", [0, 1, 5])
def test_chunks(pair: Pair, piece: int) -> None:
    body = b"4\r\nabcd\r\nA;note=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    pair.send(head("Transfer-Encoding: chunked") + b"\r\n\r\n" + body, piece=piece)
    pair.read_head()
    reserved: list[int] = []
    assert pair.connection.read_chunks(100, reserved.append) == b"abcd0123456789"
    assert reserved == [4, 10]
    assert pair.connection.is_between_requests


@dataclass(frozen=True)
class Chunks:
    id: str
    body: bytes
    status: int = 400


@pytest.mark.parametrize(
    "case",
    [
        Chunks("no number", b"x\r\n"),
        Chunks("a signed number", b"+4\r\nabcd\r\n0\r\n\r\n"),
        Chunks("an underscore", b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n"),
        Chunks("longer than it says", b"2\r\nabcd\r\n0\r\n\r\n"),
        Chunks("a huge number", b"fffffffffffffffffff\r\n"),
        Chunks("too many bytes", b"65\r\n", 413),
        Chunks("too many bytes in all", b"40\r\n" + b"a" * 64 + b"\r\n40\r\n", 413),
        Chunks("an endless line", b"1" + b";" * 400),
        Chunks("endless trailers", b"0\r\n" + b"a: b\r\n" * 100),
        Chunks("the end missing", b"4\r\nabcd\r\n", 408),
    ],
    ids=lambda case: case.id,
)
def test_chunks_that_are_refused(pair: Pair, case: Chunks) -> None:
    pair.send(head("Transfer-Encoding: chunked") + b"\r\n\r\n" + case.body)
    pair.connection.read_head(idle_s=2, request_s=0.3)
    with pytest.raises(HttpError) as refused:
        pair.connection.read_chunks(100, lambda _: None)
    assert refused.value.status == case.status
    assert not pair.connection.is_between_requests


def test_a_head_without_end(pair: Pair) -> None:
    pair.send(b"GET / HTTP/1.1\r\nX: " + b"a" * 2 * MAX_HEAD_BYTES)
    with pytest.raises(HttpError) as refused:
        pair.read_head()
    assert refused.value.status == 431


def test_a_slow_head_is_refused_although_bytes_keep_coming(pair: Pair) -> None:
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.02):
            pair.client.sendall(b"X")

    sender = threading.Thread(target=work)
    sender.start()
    try:
        with pytest.raises(HttpError) as refused:
            pair.connection.read_head(idle_s=10, request_s=0.3)
    finally:
        ended.set()
        sender.join()
    assert refused.value.status == 408


def test_silence_and_leaving_end_the_connection(pair: Pair) -> None:
    with pytest.raises(ConnectionEnded):
        pair.connection.read_head(idle_s=0.05, request_s=2)
    pair.client.close()
    with pytest.raises(ConnectionEnded):
        pair.read_head()


@pytest.mark.parametrize("size", [3, 200_000])
def test_an_answer(pair: Pair, size: int) -> None:
    response = Response(200, b"b" * size, "text/plain", {"X-One": "1"})
    sending = threading.Thread(
        target=pair.connection.send, args=(response,), kwargs={"keep_alive": False, "head_only": False, "timeout_s": 5}
    )
    sending.start()
    headers = ["Content-Type: text/plain", f"Content-Length: {size}", "X-One: 1", "Connection: close"]
    expected = "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode() + b"b" * size
    received = b""
    while len(received) < len(expected):
        received += pair.client.recv(1 << 16)
    sending.join()
    assert received == expected


def test_a_client_that_does_not_read(pair: Pair) -> None:
    with pytest.raises(ConnectionEnded):
        pair.connection.send(Response(200, b"b" * 10_000_000), keep_alive=True, head_only=False, timeout_s=0.1)

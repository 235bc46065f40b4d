"""Requests that nobody would send: the server answers or closes, lives on, and keeps its memory."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.board_server import BoardServer, serving
from tests.releases import NAME, put_fake
from tests.ssh_board import wait_for

pytestmark = pytest.mark.slow

INFER = f"/v2/models/{NAME}/infer"
CLASSIFY = f"/v2/models/{NAME}/classify"
MAX_GROWTH_MB = 2.0
MAX_HUGE_GROWTH_MB = 16.0
PATIENCE_S = 15


def tensor(**more: object) -> dict[str, object]:
    return {"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8", **more}


def request(body: bytes, *headers: str, path: str = INFER, method: str = "POST", length: int | None = None) -> bytes:
    given_length = len(body) if length is None else length
    lines = [f"{method} {path} HTTP/1.1", "Host: board", f"Content-Length: {given_length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes) -> bytes:
    lines = [f"POST {INFER} HTTP/1.1", "Host: board", "Transfer-Encoding: chunked", "", ""]
    return "\r\n".join(lines).encode() + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def good_requests() -> list[bytes]:
    flat = json.dumps({"id": "a", "inputs": [tensor(data=[3] * 192)]}).encode()
    nested = json.dumps({"inputs": [tensor(data=np.full((1, 8, 8, 3), 3).tolist())]}).encode()
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [tensor(parameters={"binary_data_size": 192})], "outputs": outputs}).encode()
    return [
        request(flat),
        request(nested),
        request(text + bytes(192), f"Inference-Header-Content-Length: {len(text)}"),
        chunked(flat[:100], flat[100:]),
        request(b"P6 8 8 255\n" + bytes(192), path=CLASSIFY),
        request(b"", path="/metrics", method="GET"),
        request(b"", path=f"/v2/models/{NAME}", method="GET"),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoardServer]:
    scratch = tmp_path_factory.mktemp("fuzz")
    put_fake(scratch / "root", scratch)
    with serving(scratch / "root", "--workers", "2") as running:
        for data in good_requests():
            assert b" 200 OK\r\n" in running.raw(data)
        before, files = held(running), listing(scratch)
        yield running
        assert running.ask("/v2/health/ready").status == 200
        assert not wait_for(lambda: all(now <= then for now, then in zip(held(running), before, strict=True))), (
            held(running),
            before,
        )
        assert listing(scratch) == files
        assert running.stop() == 0
        assert not [line for line in running.log if "Traceback" in line], running.log


def held(server: BoardServer) -> tuple[int, int]:
    """Open files and threads of the server."""
    process = Path(f"/proc/{server.process.pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def listing(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def send(server: BoardServer, data: bytes) -> bytes:
    """What comes back, which is an answer or nothing, and soon."""
    begun = time.monotonic()
    answer = server.raw(data)
    assert time.monotonic() - begun < PATIENCE_S
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert b" 500 " not in answer.split(b"\r\n", 1)[0]
    assert server.process.poll() is None
    return answer


QUICK = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(st.binary(max_size=2000))
def test_any_bytes(server: BoardServer, data: bytes) -> None:
    send(server, data)


@QUICK
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "X"]),
    path=st.sampled_from([INFER, CLASSIFY, "/v2", "/metrics"]) | st.text(st.characters(codec="ascii"), max_size=40),
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                ["Content-Length", "Transfer-Encoding", "Inference-Header-Content-Length", "Expect", "Connection", "X"]
            ),
            st.sampled_from(["0", "-1", "5", "99999999999999999", "chunked", "close", "100-continue", "é", "\t", ""]),
        ),
        max_size=4,
    ),
    body=st.binary(max_size=300),
)
def test_any_head(server: BoardServer, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
    lines = [
        f"{method} /{path.removeprefix('/')} HTTP/1.1",
        "Host: b",
        *(f"{name}: {value}" for name, value in headers),
    ]
    send(server, "\r\n".join([*lines, "", ""]).encode() + body)


@QUICK
@given(
    pieces=st.lists(
        st.sampled_from([b"0", b"1", b"5", b"a;b=c", b"ffffffff", b"-1", b"\r\n", b"\r", b"\n", b"{}", b"x" * 300])
        | st.binary(max_size=20),
        max_size=12,
    )
)
def test_any_chunks(server: BoardServer, pieces: list[bytes]) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    send(server, head.encode() + b"".join(pieces))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PIXELS = st.sampled_from(
    [[3] * 192, [3] * 191, [], np.full((1, 8, 8, 3), 3).tolist(), ["a"] * 192, [256] * 192, [None]]
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={"binary_data_size": st.sampled_from([192, 0, -1, 191, 2**40, "192"]) | ANYTHING, "binary_data": ANYTHING},
)
RIGHT = {"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [3] * 192}
TENSOR = st.builds(
    lambda changes, absent: {key: value for key, value in {**RIGHT, **changes}.items() if key not in absent},
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["other", ""]) | ANYTHING,
            "shape": st.sampled_from([[192], [-1, 8, 8, 3], [0], []]) | ANYTHING,
            "datatype": st.sampled_from(["FP32", "BYTES", "INT64", "BOOL"]) | ANYTHING,
            "data": PIXELS | ANYTHING,
            "parameters": PARAMETERS | ANYTHING,
        },
    ),
    st.sets(st.sampled_from([*RIGHT]), max_size=1),
)
OUTPUT = st.fixed_dictionaries(
    {"name": st.sampled_from(["logits", "other"]) | ANYTHING}, optional={"parameters": PARAMETERS}
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, min_size=1, max_size=2) | ANYTHING},
    optional={
        "id": st.text(max_size=8) | ANYTHING,
        "outputs": st.lists(OUTPUT, max_size=2) | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)


@QUICK
@given(
    content=REQUEST | ANYTHING,
    rest=st.just(b"") | st.binary(max_size=200),
    split=st.none() | st.integers(-2, 3),
    version=st.sampled_from(["", "", "", "0"]) | st.text(max_size=5),
)
def test_any_request_of_the_protocol(
    server: BoardServer, content: object, rest: bytes, split: int | None, version: str
) -> None:
    """JSON of the protocol's form or nearly so, with binary parts that fit or do not."""
    text = json.dumps(content).encode()
    path = f"/v2/models/{NAME}/versions/{quote(version, safe='')}/infer" if version else INFER
    headers = [] if split is None else [f"Inference-Header-Content-Length: {len(text) + split}"]
    answer = send(server, request(text + rest, *headers, path=path))
    status, body = int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]
    assert status == 200 or 400 <= status < 500
    assert status == 200 or json.loads(body)["error"]


HUGE = [
    request(b"[" * 60_000),
    request(b'{"a":' * 12_000),
    request(b'{"inputs":' + b"9" * 60_000 + b"}"),
    request(json.dumps({"inputs": [tensor(shape=[2**62] * 50, data=[])]}).encode()),
    request(json.dumps({"inputs": [tensor(shape=[10**9, 10**9], data=[])]}).encode()),
    request(json.dumps({"inputs": [tensor(data=["x" * 30_000, *[""] * 191])]}).encode()),
    request(json.dumps({"inputs": [tensor(datatype="BYTES", data=["x"] * 192)]}).encode()),
    request(json.dumps({"inputs": [tensor(data=[1e308] * 192)]}).encode()),
    request(json.dumps({"inputs": [tensor(parameters={"binary_data_size": 2**63})]}).encode()),
    request(b"{}", "Inference-Header-Content-Length: 2", length=2**40),
    request(b"{}", length=10**17),
    request(b"P6 99999 99999 255\n" + b"x" * 1000, path=CLASSIFY),
    request(b"P6" + b" " * 2_000_000, path=CLASSIFY),
    request(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\0\0\0" + bytes(50), path=CLASSIFY),
    request(b"\xff\xd8\xff\xe0" + bytes(100_000), path=CLASSIFY),
    request(b"", f"X: {'a' * 30_000}"),
    request(b"", *[f"X{index}: a" for index in range(2000)]),
    request(b"", path="/" + "v2/" * 5000, method="GET"),
    request(b"", path=f"/v2/models/{'%00' * 1000}", method="GET"),
]


@pytest.mark.parametrize("data", [pytest.param(data, id=f"huge {index}") for index, data in enumerate(HUGE)])
def test_huge_requests(server: BoardServer, data: bytes) -> None:
    before = server.memory_mb()
    for _ in range(5):
        status = int(send(server, data).split(b" ", 2)[1] or 0)
        assert 400 <= status < 500
    assert server.memory_mb() - before < MAX_HUGE_GROWTH_MB


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A request with some bytes changed, removed, repeated or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(changed) + 1)
        end = min(len(changed), begin + rng.choice([1, 1, 2, 8, 64]))
        kind = rng.randrange(5)
        if kind == 0:
            changed[begin:end] = rng.randbytes(end - begin)
        elif kind == 1:
            del changed[begin:end]
        elif kind == 2:
            changed[begin:begin] = changed[begin:end] * rng.choice([1, 2, 50])
        elif kind == 3:
            changed[begin:begin] = rng.choice([b"\r\n", b"\0", b"9" * 20, b"[" * 500, b'"', b"-", b"1e999", b": "])
        else:
            del changed[begin:]
    return bytes(changed)


def test_mutated_requests_and_the_memory(server: BoardServer) -> None:
    rng = random.Random(0)
    originals = good_requests()
    sizes = []
    for _ in range(4):
        for _ in range(750):
            send(server, mutated(rng, rng.choice(originals)))
            send(server, rng.choice(originals))
        sizes.append(server.memory_mb())
    assert sizes[-1] - sizes[0] < MAX_GROWTH_MB, sizes
    for data in originals:
        assert b" 200 OK\r\n" in server.raw(data)

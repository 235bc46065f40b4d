"""`devices.peer` and `devices.board.jsonlines` against each other, through real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from devices.peer import (
    JsonLinesProcess,
    PeerDiedError,
    PeerReplyError,
    PeerStartError,
    PeerTimeoutError,
)

ROOT = Path(__file__).parents[3]

SERVER = """
import ctypes, os, subprocess, sys, time
from devices.board.jsonlines import serve

class Detailed(Exception):
    details = "own details"

def events(params, emit):
    for index in range(params["count"]):
        emit({"index": index})
        time.sleep(params.get("pause_s", 0))
    return {"done": params["count"]}

def chatter(params, emit):
    print("printed", flush=True)
    os.write(1, b'{"id": 1, "result": "forged"}\\n')
    subprocess.run(["echo", "from a child"], check=True)
    return {"read": os.read(0, 10).decode()}

def fail(params, emit):
    raise Detailed("it failed")

def noise(params, emit):
    os.write(2, b"x" * params["count"] + b"the end")

def grandchild(params, emit):
    return subprocess.Popen(["sleep", "1000"]).pid

serve({
    "echo": lambda params, emit: params,
    "events": events,
    "chatter": chatter,
    "fail": fail,
    "noise": noise,
    "grandchild": grandchild,
    "unjson": lambda params, emit: object(),
    "sleep": lambda params, emit: time.sleep(1000),
    "sleep_with_lock": lambda params, emit: ctypes.PyDLL(None).sleep(1000),
    "exit": lambda params, emit: os._exit(params["status"]),
    "kill": lambda params, emit: os.kill(os.getpid(), params["signal"]),
})
"""

COMMAND = [sys.executable, "-c", SERVER]


def start() -> JsonLinesProcess:
    return JsonLinesProcess(COMMAND, cwd=ROOT, name="the peer")


def is_gone(pid: int, *, within_s: float = 5.0) -> bool:
    """Whether a process ends in time; one that nobody reaps counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_answers_in_order_and_events_before_them() -> None:
    events: list[dict[str, Any]] = []
    with start() as peer:
        assert peer.request("echo", {"text": "ä\n"}) == {"text": "ä\n"}
        assert peer.request("events", {"count": 3}, on_event=events.append) == {"done": 3}
        assert peer.request("events", {"count": 3}) == {"done": 3}
    assert events == [{"index": 0}, {"index": 1}, {"index": 2}]


def test_large_requests_and_answers() -> None:
    with start() as peer:
        numbers = list(range(300_000))
        assert peer.request("echo", {"numbers": numbers}, timeout_s=60)["numbers"] == numbers


def test_chatter_does_not_reach_the_protocol() -> None:
    with start() as peer:
        assert peer.request("chatter") == {"read": ""}
        assert peer.request("echo", {}) == {}
    assert "printed" in peer.stderr_tail
    assert "forged" in peer.stderr_tail
    assert "from a child" in peer.stderr_tail


def test_an_exception_becomes_a_reply_error_and_the_peer_lives_on() -> None:
    with start() as peer:
        with pytest.raises(PeerReplyError, match="it failed") as caught:
            peer.request("fail")
        assert caught.value.kind == "Detailed"
        assert caught.value.details.startswith("own details\n")
        assert "Traceback" in caught.value.details
        with pytest.raises(PeerReplyError, match="no method 'nothing'; there are: chatter"):
            peer.request("nothing")
        with pytest.raises(PeerReplyError) as caught:
            peer.request("unjson")
        assert caught.value.kind == "TypeError"
        assert peer.request("echo", {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("method", "params", "words", "signal_name"),
    [
        ("exit", {"status": 3}, "exited with status 3", None),
        ("kill", {"signal": int(signal.SIGSEGV)}, "was ended by SIGSEGV", "SIGSEGV"),
        ("kill", {"signal": int(signal.SIGKILL)}, "memory", "SIGKILL"),
    ],
    ids=["exit", "segv", "kill"],
)
def test_death_is_told_with_its_cause(method: str, params: dict[str, int], words: str, signal_name: str | None) -> None:
    with start() as peer:
        peer.request("noise", {"count": 10})
        with pytest.raises(PeerDiedError, match=words) as caught:
            peer.request(method, params)
        assert caught.value.signal_name == signal_name
        assert f"while it worked on '{method}'" in caught.value.message
        assert caught.value.stderr_tail == "x" * 10 + "the end"
        with pytest.raises(PeerDiedError):
            peer.request("echo")


def test_a_peer_that_does_not_start() -> None:
    with pytest.raises(PeerStartError, match="no-such-program"):
        JsonLinesProcess(["/no-such-program"], name="the peer")
    broken = [sys.executable, "-c", "import no_such_module"]
    with JsonLinesProcess(broken) as peer, pytest.raises(PeerDiedError, match="status 1") as caught:
        peer.request("echo")
    assert "no_such_module" in caught.value.stderr_tail


@pytest.mark.parametrize("method", ["sleep", "sleep_with_lock"])
def test_timeout_ends_the_peer(method: str) -> None:
    with start() as peer:
        peer.request("echo")
        with pytest.raises(PeerTimeoutError, match=rf"did not answer '{method}' within 0\.2 s"):
            peer.request(method, timeout_s=0.2)
        assert is_gone(peer.pid, within_s=0.1)


def test_events_renew_the_idle_timeout_only() -> None:
    with start() as peer:
        peer.request("echo")
        many = {"count": 8, "pause_s": 0.1}
        assert peer.request("events", many, idle_timeout_s=0.6) == {"done": 8}
        with pytest.raises(PeerTimeoutError, match=r"within 0\.3 s"):
            peer.request("events", many, timeout_s=0.3, idle_timeout_s=5)


def test_only_the_end_of_standard_error_is_kept() -> None:
    with start() as peer:
        peer.request("noise", {"count": 1_000_000})
    assert peer.stderr_tail.endswith("xthe end")
    assert len(peer.stderr_tail) <= 2 * 64 * 1024


@pytest.mark.parametrize("method", ["sleep", "sleep_with_lock"])
def test_close_in_the_middle_of_a_request_is_quick(method: str) -> None:
    peer = start()
    peer.request("echo")
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            peer.request(method)
        except PeerDiedError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    begun = time.monotonic()
    os.kill(peer.pid, signal.SIGKILL)
    thread.join(5)
    peer.close()
    peer.close()
    assert time.monotonic() - begun < 3
    assert len(failures) == 1


def test_close_ends_a_peer_that_ignores_the_end_of_its_input() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    peer = JsonLinesProcess([sys.executable, "-c", deaf])
    begun = time.monotonic()
    peer.close(grace_s=0.2)
    assert time.monotonic() - begun < 3
    assert is_gone(peer.pid, within_s=0.1)


def test_close_ends_grandchildren() -> None:
    with start() as peer:
        pid = peer.request("grandchild")
    assert is_gone(pid)


def test_an_interrupted_request_does_not_answer_the_next() -> None:
    class Interrupt(Exception):
        pass

    def interrupt(event: dict[str, Any]) -> None:
        raise Interrupt

    with start() as peer:
        with pytest.raises(Interrupt):
            peer.request("events", {"count": 2}, on_event=interrupt)
        assert peer.request("echo", {"a": 1}) == {"a": 1}


PARENT = f"""
import sys, threading
from devices.peer import JsonLinesProcess
peer = JsonLinesProcess({COMMAND!r})
peer.request("echo")
# A lifeline that hung on the thread that started the child would end it here.
started = []
thread = threading.Thread(target=lambda: started.append(JsonLinesProcess({COMMAND!r})))
thread.start()
thread.join()
assert started[0].request("echo", {{"a": 1}}) == {{"a": 1}}
print(peer.pid, started[0].pid, flush=True)
peer.request(sys.argv[1])
"""


@pytest.mark.parametrize("method", ["sleep", "sleep_with_lock"])
def test_children_die_with_a_parent_that_is_killed(method: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, method], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(0.2)
    assert not any(is_gone(pid, within_s=0.05) for pid in children)
    parent.kill()
    parent.wait()
    assert all(is_gone(pid) for pid in children)


def test_the_end_of_input_alone_ends_a_busy_peer() -> None:
    child = subprocess.Popen(COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        child.stdin.write(b'not json\n{"id": 1, "method": "sleep"}\n')
        child.stdin.flush()
        assert b"JSONDecodeError" in child.stdout.readline()
        child.stdin.close()
        assert child.wait(5) == 0

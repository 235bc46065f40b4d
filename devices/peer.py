"""The asking half of the JSON-lines protocol: a child process that answers requests.

`devices.board.jsonlines.serve` is the answering half and describes the protocol. Board agents and the
pipeline's stage processes are both such children.

    PeerError
    ├── PeerStartError      the command could not be started
    ├── PeerDiedError       the process ended before it answered
    ├── PeerTimeoutError    it did not answer in time and was ended
    └── PeerReplyError      it answered with an error
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from devices.board.jsonlines import LIFELINE_VARIABLE

OnEvent = Callable[[dict[str, Any]], None]

_STDERR_TAIL_BYTES = 64 * 1024
_LINE_LIMIT_BYTES = 256 * 1024 * 1024
_READ_BYTES = 1 << 16


class PeerError(Exception):
    """Base of what can go wrong with a peer.

    Attributes:
        name: What the peer is to its user, such as "the agent of device local".
        method: The request it was working on, empty before the first.
        stderr_tail: The end of what it wrote to standard error.
    """

    def __init__(self, message: str, *, name: str, method: str = "", stderr_tail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.name = name
        self.method = method
        self.stderr_tail = stderr_tail


class PeerStartError(PeerError):
    """The command could not be started."""


class PeerDiedError(PeerError):
    """The process ended before it answered.

    Attributes:
        returncode: As of `subprocess.Popen`: the exit status, or minus the number of the signal.
        signal_name: Such as "SIGSEGV"; None when it exited by itself.
    """

    def __init__(self, returncode: int, *, name: str, method: str, stderr_tail: str) -> None:
        self.returncode = returncode
        self.signal_name = _signal_name(returncode)
        message = f"{name} {describe_end(returncode)}"
        if method:
            message += f" while it worked on '{method}'"
        super().__init__(message, name=name, method=method, stderr_tail=stderr_tail)


class PeerTimeoutError(PeerError):
    """The peer did not answer in time; it has been ended.

    Attributes:
        timeout_s: The time it had.
    """

    def __init__(self, timeout_s: float, *, name: str, method: str, stderr_tail: str) -> None:
        self.timeout_s = timeout_s
        message = f"{name} did not answer '{method}' within {timeout_s:g} s and was ended"
        super().__init__(message, name=name, method=method, stderr_tail=stderr_tail)


class PeerReplyError(PeerError):
    """The peer answered with an error; it lives and takes further requests.

    Attributes:
        kind: The name of the exception's type over there.
        details: Its own details and the traceback.
    """

    def __init__(self, kind: str, message: str, details: str, *, name: str, method: str, stderr_tail: str) -> None:
        super().__init__(message, name=name, method=method, stderr_tail=stderr_tail)
        self.kind = kind
        self.details = details


def describe_end(returncode: int) -> str:
    """How a process ended, in words: "was ended by SIGSEGV", "exited with status 1"."""
    name = _signal_name(returncode)
    if name == "SIGKILL":
        return "was ended by SIGKILL (the kernel does this when memory runs out)"
    return f"was ended by {name}" if name else f"exited with status {returncode}"


def _signal_name(returncode: int) -> str | None:
    if returncode >= 0:
        return None
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


class JsonLinesProcess:
    """A child process that answers requests, one at a time.

    The child leads a session of its own, so a Ctrl-C in the terminal reaches only this process, and ending
    the child ends what it started. It dies with this process, however this process ends. Use it as a context
    manager.

    Args:
        arguments: The command; nothing is split or quoted.
        env: The whole environment of the child; None inherits ours.
        cwd: Its working directory.
        name: What the child is to the reader of an error message.

    Raises:
        PeerStartError: The command can't be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        name: str = "",
    ) -> None:
        self.name = name or Path(arguments[0]).name
        self._lock = threading.Lock()
        self._last_id = 0
        self._received = bytearray()
        self._stderr = bytearray()
        self._method = ""
        lifeline, self._lifeline = os.pipe()
        environment = {**(os.environ if env is None else env), LIFELINE_VARIABLE: str(lifeline)}
        try:
            self._process = subprocess.Popen(
                list(arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=cwd,
                bufsize=0,
                start_new_session=True,
                pass_fds=(lifeline,),
            )
        except OSError as error:
            os.close(self._lifeline)
            command = " ".join(arguments)
            raise PeerStartError(
                f"{self.name} could not be started: {error} (command: {command})", name=self.name
            ) from error
        finally:
            os.close(lifeline)
        streams = self._process.stdin, self._process.stdout, self._process.stderr
        self._stdin, self._stdout, self._stderr_pipe = cast("tuple[IO[bytes], ...]", streams)
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._stderr_thread = threading.Thread(target=self._drain_stderr, name=f"stderr of {self.name}", daemon=True)
        self._stderr_thread.start()
        self._closed = False

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    @property
    def stderr_tail(self) -> str:
        """The last 64 KiB that the child wrote to standard error."""
        return bytes(self._stderr).decode(errors="replace")

    def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Any:
        """Sends one request and waits for its answer.

        Args:
            method: The name of the handler over there.
            params: JSON values.
            timeout_s: From now to the answer; None waits as long as the child lives.
            idle_timeout_s: From now to the first event, from one to the next, and to the answer.
            on_event: Takes the events that come before the answer, on the calling thread.

        Returns:
            The result, a JSON value.

        Raises:
            PeerDiedError: The child ended first.
            PeerTimeoutError: It took longer than `timeout_s`, or was silent for `idle_timeout_s`; it has been
                ended.
            PeerReplyError: It answered with an error.
        """
        with self._lock:
            self._last_id += 1
            self._method = method
            patience = _Patience(timeout_s, idle_timeout_s)
            line = json.dumps({"id": self._last_id, "method": method, "params": dict(params or {})})
            try:
                self._send(line.encode() + b"\n", patience)
                return self._receive_answer(patience, on_event)
            except TimeoutError:
                self._kill()
                self._collect_stderr()
                raise PeerTimeoutError(
                    patience.exceeded_s(), name=self.name, method=method, stderr_tail=self.stderr_tail
                ) from None

    def close(self, *, grace_s: float = 2.0) -> None:
        """Ends the child: by closing its standard input, after `grace_s` by force. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._wait_for_end(grace_s)
        finally:
            self._kill()
            os.close(self._lifeline)
            self._stdout.close()
            self._collect_stderr()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes, patience: _Patience) -> None:
        if self._closed:
            raise self._death()
        fd = self._stdin.fileno()
        view = memoryview(data)
        while view:
            _wait(patience, write=fd)
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._death() from None

    def _receive_answer(self, patience: _Patience, on_event: OnEvent | None) -> Any:
        while True:
            line = self._receive_line(patience)
            patience.renew()
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            if not isinstance(answer, dict):
                self._note(line + b"\n")  # not ours: chatter from before the child took over its streams
            elif "event" in answer:
                if on_event is not None:
                    on_event(answer["event"])
            elif answer.get("id") != self._last_id:
                continue  # the answer to a request that was interrupted here
            elif "error" in answer:
                raise self._reply_error(answer["error"])
            else:
                return answer.get("result")

    def _receive_line(self, patience: _Patience) -> bytes:
        fd = self._stdout.fileno()
        searched = 0
        while True:
            end = self._received.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._received[:end])
                del self._received[: end + 1]
                return line
            searched = len(self._received)
            if searched > _LINE_LIMIT_BYTES:
                self._kill()
                raise self._death()
            _wait(patience, read=fd)
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                raise self._death()
            self._received += data

    def _reply_error(self, error: Mapping[str, Any]) -> PeerReplyError:
        return PeerReplyError(
            str(error.get("type", "Exception")),
            str(error.get("message", "")),
            str(error.get("details", "")),
            name=self.name,
            method=self._method,
            stderr_tail=self.stderr_tail,
        )

    def _death(self) -> PeerDiedError:
        """The child closed its end: takes its status, or ends it if it lives on without one."""
        self._wait_for_end(5.0)
        self._kill()
        self._collect_stderr()
        returncode = self._process.returncode
        return PeerDiedError(returncode, name=self.name, method=self._method, stderr_tail=self.stderr_tail)

    def _wait_for_end(self, timeout_s: float) -> None:
        """Waits for the child's end without taking its status: its process group stays ours to signal."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.0005
        while self._process.returncode is None and time.monotonic() < deadline:
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)

    def _kill(self) -> None:
        """Ends the child and what it started, and takes its status, so that no zombie stays."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _collect_stderr(self) -> None:
        """Waits for the last of standard error; a grandchild that left our session may still hold it open."""
        self._stderr_thread.join(1.0)

    def _drain_stderr(self) -> None:
        with self._stderr_pipe as stream:
            while data := os.read(stream.fileno(), _READ_BYTES):
                self._note(data)

    def _note(self, data: bytes) -> None:
        self._stderr += data
        if len(self._stderr) > 2 * _STDERR_TAIL_BYTES:
            del self._stderr[:-_STDERR_TAIL_BYTES]


class _Patience:
    """How long to wait for an answer, in all and for the next sign of life."""

    def __init__(self, timeout_s: float | None, idle_timeout_s: float | None) -> None:
        self._timeout_s, self._idle_timeout_s = timeout_s, idle_timeout_s
        self._begin = self._last_sign = time.monotonic()

    def renew(self) -> None:
        """The other side gave a sign of life."""
        self._last_sign = time.monotonic()

    def remaining_s(self) -> float | None:
        """Seconds left, at least 0; None without a limit."""
        deadlines = []
        if self._timeout_s is not None:
            deadlines.append(self._begin + self._timeout_s)
        if self._idle_timeout_s is not None:
            deadlines.append(self._last_sign + self._idle_timeout_s)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def exceeded_s(self) -> float:
        """The limit that was exceeded."""
        waited_s = time.monotonic() - self._begin
        if self._timeout_s is not None and waited_s >= self._timeout_s:
            return self._timeout_s
        return self._idle_timeout_s or 0.0


def _wait(patience: _Patience, *, read: int | None = None, write: int | None = None) -> None:
    """Waits until the descriptor is ready; TimeoutError once the patience is at its end."""
    poller = select.poll()
    if read is not None:
        poller.register(read, select.POLLIN)
    if write is not None:
        poller.register(write, select.POLLOUT)
    remaining_s = patience.remaining_s()
    if not poller.poll(None if remaining_s is None else math.ceil(remaining_s * 1000)):
        raise TimeoutError

"""The answering half of the JSON-lines protocol; `devices.peer` is the asking half.

A request is one line `{"id": 3, "method": "load", "params": {...}}`. The answer is any number of
`{"event": {...}}` lines and then `{"id": 3, "result": ...}` or
`{"id": 3, "error": {"type": "ValueError", "message": "...", "details": "..."}}`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import select
import signal
import threading
import traceback
from typing import Any, Callable, Dict, Mapping, NoReturn, Optional

Event = Dict[str, Any]
EmitEvent = Callable[[Event], None]
Handler = Callable[[Dict[str, Any], EmitEvent], Any]

LIFELINE_VARIABLE = "EDGESHIP_LIFELINE_FD"
"""Names the file descriptor of a pipe whose other end only the asking process holds."""

_READ_BYTES = 1 << 16
_F_SETSIG = 10  # Linux; Python's fcntl does not name it before 3.11


class Lifeline:
    """A pipe that tells this process when the asking one is gone, see `LIFELINE_VARIABLE`."""

    def __init__(self) -> None:
        self._fd: Optional[int] = None

    def hold(self) -> None:
        """Asks the kernel to kill this process once the asking side's end of the lifeline closes.

        A thread that waits for the end of standard input needs the interpreter's lock, which a native call may
        hold for minutes; a signal does not. Unlike PR_SET_PDEATHSIG this follows the process, not the thread that
        started us.
        """
        text = os.environ.pop(LIFELINE_VARIABLE, "")
        if not text:
            return
        self._fd = int(text)
        with contextlib.suppress(OSError):  # an emulated kernel may lack it; the end of standard input is left then
            fcntl.fcntl(self._fd, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(self._fd, _F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | os.O_ASYNC)
        os.set_inheritable(self._fd, False)
        if select.select([self._fd], [], [], 0)[0]:
            os._exit(0)  # the asking side was gone before we asked for the signal

    def let_go(self) -> None:
        """Takes that back: from now on the end of standard input ends this process, and lets it tidy up before."""
        if self._fd is not None:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_ASYNC)


def serve(
    handlers: Mapping[str, Handler],
    *,
    at_end: Callable[[], None] = lambda: None,
    lifeline: Optional[Lifeline] = None,
) -> None:
    """Answers requests from standard input, one at a time on the calling thread, until the asker is gone.

    Never returns: at the end of standard input the process ends with status 0, even in the middle of a
    request, and even when native code holds the interpreter's lock where the asking side gave a lifeline.
    Standard output is kept for the protocol alone; what native libraries or `print` write to it goes to
    standard error, and standard input reads as empty.

    Args:
        handlers: By method name, a function of (params, emit_event) whose result is a JSON value. An
            exception becomes an error line with its type's name, its message, and the traceback as details.
        at_end: Called right before the process ends because the asker is gone, on any thread; not where a signal
            ends it.
        lifeline: None makes one.
    """
    requests_fd, answers_fd = _take_standard_streams()
    (lifeline or Lifeline()).hold()

    def end() -> NoReturn:
        with contextlib.suppress(Exception):  # nobody is there any more to be told
            at_end()
        os._exit(0)

    write_lock = threading.Lock()

    def write(line: Dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with write_lock:
            _write_all(answers_fd, data, end)

    def emit_event(event: Event) -> None:
        write({"event": event})

    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_lines, args=(requests_fd, lines, end), name="requests", daemon=True).start()
    while True:
        line = lines.get()
        if line.strip():
            _answer(line, handlers, write, emit_event)


def _answer(
    line: bytes,
    handlers: Mapping[str, Handler],
    write: Callable[[Dict[str, Any]], None],
    emit_event: EmitEvent,
) -> None:
    """Answers one request line; any exception of the handler becomes an error line."""
    number: Any = None
    try:
        request = json.loads(line)
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            raise TypeError('expected an object like {"id": 1, "method": "hello", "params": {}}')
        number = request.get("id")
        handler = handlers.get(request["method"])
        if handler is None:
            raise LookupError(f"no method '{request['method']}'; there are: {', '.join(sorted(handlers))}")
        result = handler(request.get("params") or {}, emit_event)
        write({"id": number, "result": result})
    except Exception as error:  # noqa: BLE001 (whatever a handler raises is reported to the asking side)
        write({"id": number, "error": describe_error(error)})


def describe_error(error: BaseException) -> Dict[str, str]:
    """The error line's content: type name, message, and as details its own details and its traceback."""
    own_details = getattr(error, "details", "")
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    details = f"{own_details}\n\n{trace}" if isinstance(own_details, str) and own_details else trace
    return {"type": type(error).__name__, "message": str(error) or type(error).__name__, "details": details}


def _take_standard_streams() -> tuple[int, int]:
    """Keeps the real streams for the protocol: 0 becomes /dev/null, 1 becomes standard error."""
    requests_fd, answers_fd = os.dup(0), os.dup(1)
    null_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.dup2(2, 1)
    os.close(null_fd)
    return requests_fd, answers_fd


def _read_lines(requests_fd: int, lines: queue.Queue[bytes], end: Callable[[], NoReturn]) -> None:
    """Hands over complete lines; ends the process at the end of the stream."""
    rest = b""
    while True:
        try:
            data = os.read(requests_fd, _READ_BYTES)
        except OSError:
            data = b""
        if not data:
            end()
        *complete, rest = (rest + data).split(b"\n")
        for line in complete:
            lines.put(line)


def _write_all(fd: int, data: bytes, end: Callable[[], NoReturn]) -> None:
    """Writes everything, or ends the process when nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BrokenPipeError:
            end()
